"""The commands around packed datasets: what they print, and the sentence that ends each mistake."""

import json
from pathlib import Path

import pytest

from components import manifest
from tests.components.pack.conftest import World, make_world
from tests.pipelines.test_cli import kinoflow

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Clips as DVC's stages leave them, in the current folder."""
    (tmp_path / ".kinoflow").mkdir()
    (tmp_path / "sources").mkdir()
    monkeypatch.chdir(tmp_path)
    return make_world("work", tmp_path / "sources")


@pytest.mark.usefixtures("world")
def test_sources_beside_the_clips_are_found(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    arguments = ("pack", "work/curate", "--out", "packed", "--workers", "1", "--short-side", "32", "--fps", "12")
    code, out, err = kinoflow(monkeypatch, capsys, *arguments)
    assert code == 0, err
    digest = manifest.load("work/curate").digest
    assert "packed: 6 of 6 clips in 1 shards" in out and "(0 copied, 4 encoded, 2 pictures, 0 failed)" in out
    assert f"dataset {digest}\n" in out
    for prefix in ("work/curate", "packed"):
        assert kinoflow(monkeypatch, capsys, "digest", prefix) == (0, f"{digest}\n", "")
    assert kinoflow(monkeypatch, capsys, "digest", "packed", "--out", "digest.json")[0] == 0
    assert json.loads(Path("digest.json").read_text(encoding="utf-8")) == {"dataset_digest": digest, "clips": 6}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("work/nothing", "--out", "packed"), "Nothing is published at work/nothing"),
        (("demo", "--out", "packed"), "There is no run 'demo'"),
        (("work/curate", "--out", "packed", "--short-side", "33"), "pack: short_side_px"),
        (("work/objects", "--out", "packed"), "Nothing is published at work/objects"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    code, _, err = kinoflow(monkeypatch, capsys, "pack", *arguments)
    assert code == 1 and words in err and err.count("\n") == 1, err
    assert not Path("packed", manifest.NAME).exists()


@pytest.mark.usefixtures("world")
def test_sources_elsewhere_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    Path("work/objects").rename("elsewhere")
    code, _, err = kinoflow(monkeypatch, capsys, "pack", "work/curate", "--out", "packed")
    assert code == 1 and "name their prefix with --objects" in err
    code, _, err = kinoflow(
        monkeypatch, capsys, "pack", "work/curate", "--out", "packed", "--workers", "1", "--objects", "elsewhere"
    )
    assert code == 0, err
