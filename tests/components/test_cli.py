"""Command lines: mistakes are one sentence and exit code 1, faults of the program keep their traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from components.cli import run_cli, user_sentence
from components.config import CurateConfig, CurationRules
from components.curate.scores.clip import ModelUnusable, load_clip
from components.errors import KinoflowError
from model.geometry import frame_indices


class Outer(BaseModel):
    rules: CurationRules


def _run(
    function: Callable[..., None], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> SystemExit | Exception | None:
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    try:
        run_cli(function)
    except (SystemExit, Exception) as error:
        return error
    return None


def test_options_come_from_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, int]] = []

    def main(out: Path, count: int = 3) -> None:
        seen.append((out, count))

    ended = _run(main, ["here", "--count", "5"], monkeypatch)
    assert isinstance(ended, SystemExit)
    assert ended.code == 0
    assert seen == [(Path("here"), 5)]


def test_a_mistake_is_one_line_and_an_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KINOFLOW_PROGRESS_FILE", str(tmp_path / "events"))

    def main() -> None:
        raise KinoflowError("The file 'a\nb' is missing;\n  put it there.")

    ended = _run(main, [], monkeypatch)
    assert isinstance(ended, SystemExit)
    assert ended.code == 1
    assert capsys.readouterr().err == "error: The file 'a b' is missing; put it there.\n"
    assert json.loads((tmp_path / "events").read_text()) == {"error": "The file 'a b' is missing; put it there."}


def test_a_fault_keeps_its_traceback_and_is_an_event_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KINOFLOW_PROGRESS_FILE", str(tmp_path / "events"))

    def main() -> None:
        raise ValueError("a bug")

    assert isinstance(_run(main, [], monkeypatch), ValueError)
    assert json.loads((tmp_path / "events").read_text()) == {"error": "ValueError: a bug"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_whoever_noticed_it() -> None:
    with pytest.raises(OSError) as plain, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert "disk is full" in (user_sentence(plain.value) or "")
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "disk is full" in (user_sentence(rust) or "")
    try:
        raise RuntimeError("writing failed") from plain.value
    except RuntimeError as wrapped:
        assert "disk is full" in (user_sentence(wrapped) or "")


def test_which_errors_are_the_users() -> None:
    assert user_sentence(KinoflowError("Mend it.")) == "Mend it."
    assert user_sentence(ValueError("somewhere")) is None
    assert user_sentence(ZeroDivisionError("somewhere")) is None
    with pytest.raises(ValidationError) as invalid:
        Outer.model_validate({"rules": {"min_frames": 0}})
    assert user_sentence(invalid.value) == "rules.min_frames: Input should be greater than or equal to 1."
    with pytest.raises(ValueError) as refused:
        frame_indices(5, 5, 3)
    assert user_sentence(refused.value) == str(refused.value)


def test_a_package_that_an_image_does_not_hold_is_one_sentence() -> None:
    sentence = user_sentence(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert sentence is not None
    assert "torch is not installed here; run this in Kinoflow's image `train`" in sentence
    assert user_sentence(ModuleNotFoundError("No module named 'components.x'", name="components.x")) is None


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({}, False),
        ({"clip": {"folder": "clip"}}, True),
        ({"captions": {"captioner": {"source": {"kind": "folder", "folder": "vlm"}}}}, True),
        ({"captions": {"captioner": {"source": {"kind": "openai", "url": "http://vllm/v1", "model": "m"}}}}, False),
    ],
)
def test_curation_says_whether_it_needs_torch(given: dict[str, object], needs: bool) -> None:
    assert CurateConfig.model_validate(given).needs_torch is needs


def test_clip_without_torch_ends_the_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnusable, match="transformers is not installed here"):
        load_clip(str(tmp_path), "clip.folder")
