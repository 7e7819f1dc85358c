"""Which checkpoints the studio offers, and what it says before it opens."""

import json
import os
from pathlib import Path

import pytest

from components.errors import KinoflowError
from pipelines.config import load_run_config
from pipelines.studio_command import catalogue, check_named
from tests.components.studio.tiny_run import write_summary


@pytest.fixture
def runs(tmp_path: Path, monkeypatch) -> Path:
    """Two finished runs, the second one newer, and one that cannot be read; no registry."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs"
    for age, name in enumerate(("new", "old")):
        write_summary(folder / name, [f"s3://b/{name}/1", f"s3://b/{name}/2"], load_run_config("demo"))
        os.utime(folder / name / "summary.json", (1e9 - age, 1e9 - age))
    (folder / "broken").mkdir()
    (folder / "broken" / "summary.json").write_text(json.dumps({"stages": [{}]}))
    return folder


def test_last_stages_come_before_the_others_and_new_runs_before_old(runs):
    labels = [choice.label for choice in catalogue([], runs)]
    assert labels == ["new · stage2", "old · stage2", "new · stage1", "old · stage1"]


def test_what_was_named_comes_first(runs):
    choices = catalogue(["old", "s3://b/elsewhere"], runs)
    assert [choice.label for choice in choices[:3]] == ["old · stage2", "s3://b/elsewhere", "new · stage2"]


def test_a_run_says_what_it_starts_with(runs):
    start = catalogue([], runs)[0].start
    assert (start.num_frames, start.height, start.width, start.saved_fps) == (8, 64, 64, 6.0)


def test_a_run_that_does_not_exist_is_said_at_once(runs):
    with pytest.raises(KinoflowError, match="There is no finished run 'missing'"):
        check_named(["old", "missing"], runs)
