"""The page people look at, with everything on it and with next to nothing."""

from pathlib import Path

import numpy as np
import pytest

from components.evaluate import page
from components.evaluate.samples import Sample, scores_of
from components.held_out import HeldOutLoss, TimestepLoss


def sample(task: str, number: int, num_frames: int = 4) -> Sample:
    frames = np.full((num_frames, 16, 16, 3), 40 * number, np.uint8)
    values = {"over_blending_db": float(number)} if task == "interpolate" else {"seam": 1.0, "continuous": number > 1}
    return Sample(task, f"prompt <{number}>", frames, number, frozenset({0}), values, {"colour": number != 2})


def write(folder: Path, samples: list[Sample], held_out: list[HeldOutLoss]) -> str:
    page.write(
        folder, samples, stage="stage3", checkpoint_digest="0" * 64, scores=scores_of(samples), held_out=held_out,
        histories={}, num_saved=2, saved_fps=8.0,
    )  # fmt: skip
    return (folder / "report.html").read_text(encoding="utf-8")


def test_scores_stand_with_their_intervals_and_videos_play(tmp_path):
    samples = [sample("loop", number) for number in (1, 2, 3)] + [sample("interpolate", number) for number in (1, 2)]
    points = (TimestepLoss(timestep=500, mean=0.5, low=0.25, high=0.75),)
    row = HeldOutLoss(bucket="64px 8 frames", clips=4, loss=0.5, low=0.25, high=0.75, by_timestep=points)
    shown = write(tmp_path, samples, [row])
    assert '<td>over_blending_db</td><td class="number">1.500 (1.000 to 2.000)</td>' in shown.replace("\n", "")
    assert "0.667 (0.208 to 0.939)" in shown, "two of three loops are continuous"
    assert "0.5000 (0.2500 to 0.7500)" in shown
    assert "t 500" in shown
    assert shown.count("data:video/mp4;base64,") == 4, "two of each task are kept"
    assert "prompt &lt;1&gt;" in shown and "prompt <1>" not in shown
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "interpolate-01.mp4", "interpolate-02.mp4", "loop-01.mp4", "loop-02.mp4",
    ]  # fmt: skip
    assert (tmp_path / "contact_sheet.png").exists()


@pytest.mark.parametrize("samples", [[], [sample("text_to_image", 1, num_frames=1)]], ids=["none", "a still"])
def test_a_page_of_little_is_a_page(samples, tmp_path):
    shown = write(tmp_path, samples, [])
    assert "Held-out loss" in shown
    assert (tmp_path / "contact_sheet.png").exists() == bool(samples)
