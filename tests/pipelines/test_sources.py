"""Which videos a run reads, and which version DVC gives them."""

from pathlib import Path

import pytest

from components.errors import KinoflowError
from pipelines.config import load_run_config
from pipelines.sources import resolve_source, source_version

TINY = {"demo_data": {"num_videos": 1, "num_images": 2, "seed": 3, "folder": "world"}}


def test_demo_data_are_made_when_absent_and_again_when_others_are_wanted(tmp_path: Path) -> None:
    source = Path(resolve_source(load_run_config("smoke", TINY), None, tmp_path))
    assert source == tmp_path / "world" / "videos"
    first = {path.name: path.read_bytes() for path in source.iterdir()}
    stamp = (tmp_path / "world" / "truth.json").stat().st_mtime_ns
    resolve_source(load_run_config("smoke", TINY), None, tmp_path)
    assert (tmp_path / "world" / "truth.json").stat().st_mtime_ns == stamp
    resolve_source(load_run_config("smoke", {**TINY, "demo_data.num_images": 3}), None, tmp_path)
    assert len(list(source.glob("image-*.txt"))) > len([name for name in first if name.startswith("image-")]) // 2
    resolve_source(load_run_config("smoke", TINY), None, tmp_path)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == first


def test_a_named_source_becomes_absolute_and_s3_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.mp4").write_bytes(b"x")
    config = load_run_config("smoke")
    assert resolve_source(config, "mine", tmp_path) == str(tmp_path / "mine")
    assert resolve_source(config, "mine/{a,b}.mp4", tmp_path) == str(tmp_path / "mine/{a,b}.mp4")
    for address in ("s3://bucket/videos", "https://example.org/list.csv?key=1"):
        assert resolve_source(config, address, tmp_path) == address
    with pytest.raises(KinoflowError, match="does not exist"):
        resolve_source(config, "yours", tmp_path)


def test_the_version_is_that_of_the_nearest_tracked_folder(tmp_path: Path) -> None:
    videos = tmp_path / "data" / "videos"
    videos.mkdir(parents=True)
    assert source_version(str(videos)) == ""
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 1f2e.dir\n  path: data\n", encoding="utf-8")
    assert source_version(str(videos)) == "1f2e.dir"
    assert source_version("s3://bucket/data/videos") == source_version("https://example.org/list.csv") == ""
