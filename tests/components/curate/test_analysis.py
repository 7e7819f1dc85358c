"""One file: its shots, its captions, and what happens when it is damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from components import tables
from components.config import CaptionConfig, CurateConfig, ShotConfig
from components.curate.analysis import Row, Task, analyse, analyse_safely, caption_of, crashed_row
from components.media import write_image
from components.video import write_video
from tests.components.curate.test_shots import textured_shots


def ingested(path: Path, **changes: object) -> Row:
    """The row of a file that lies in the objects prefix under its own name."""
    row: Row = dict.fromkeys(tables.VIDEOS)
    return row | {
        "source_id": "0123456789abcdef", "path": path.name, "object_key": path.name, "media": "video",
        "content_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "fps": 24.0, "height": 72, "width": 96,
        "caption": "a caption", "caption_origin": "sidecar_txt", "outcome": "ingested",
    } | changes  # fmt: skip


def task(path: Path, config: CurateConfig | None = None, **changes: object) -> Task:
    return Task(ingested(path, **changes), str(path.parent), config or CurateConfig())


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    write_video(path, textured_shots([20, 30, 25]), 24)
    return path


def spans(rows: list[Row]) -> list[tuple[object, object]]:
    return [(row["start_frame"], row["end_frame"]) for row in rows]


def test_shots_become_rows(video: Path) -> None:
    rows = analyse(task(video))
    assert spans(rows) == [(0, 20), (20, 50), (50, 75)]
    assert [row["clip_id"] for row in rows] == [f"0123456789abcdef-000{index}" for index in range(3)]
    assert [row["num_frames"] for row in rows] == [20, 30, 25]
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0, 20 / 24), (20 / 24, 50 / 24), (50 / 24, 75 / 24)]
    assert all("outcome" not in row and row["caption"] == "a caption" for row in rows)
    table = tables.frame(rows, tables.CLIPS)
    assert table["motion"].min() > 0.5  # type: ignore[operator]


def test_a_still_is_one_clip_of_one_frame(tmp_path: Path) -> None:
    write_image(tmp_path / "still.png", textured_shots([1])[0])
    (row,) = analyse(task(tmp_path / "still.png", media="image", fps=None))
    assert (row["num_frames"], row["start_s"], row["end_s"], row["fps"]) == (1, 0, 0, None)
    assert row["motion"] is None


def test_the_decoded_count_is_the_truth(video: Path) -> None:
    rows = analyse(task(video, num_frames_header=9999))
    assert sum(int(str(row["num_frames"])) for row in rows) == 75


@pytest.mark.parametrize("fps", [None, 0.0, float("nan")])
def test_a_missing_frame_rate_is_24(video: Path, fps: float | None) -> None:
    assert {row["fps"] for row in analyse(task(video, fps=fps))} == {24.0}


def test_shots_before_the_damage_are_kept(video: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 85 // 100])
    rows = analyse(task(tmp_path / "cut.mp4"))
    assert spans(rows)[:2] == [(0, 20), (20, 50)]
    assert all("outcome" not in row for row in rows[:-1])
    assert (rows[-1]["outcome"], rows[-1]["reason"]) == ("dropped", "decode_error")
    assert rows[-1]["start_frame"] == 50


def test_a_file_without_a_frame_is_one_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing to see")
    (row,) = analyse(task(tmp_path / "bad.mp4"))
    assert (row["outcome"], row["reason"], row["shot_index"]) == ("rejected", "not_media", -1)
    assert row["clip_id"] == row["source_id"]
    tables.frame([row], tables.CLIPS)


def test_lost_and_altered_objects_are_rows(video: Path) -> None:
    whole = task(video)
    video.write_bytes(video.read_bytes() + b"!")
    assert analyse(whole)[0]["reason"] == "damaged_object"
    video.unlink()
    assert analyse(whole)[0]["reason"] == "missing_object"
    assert crashed_row(whole)[0]["reason"] == "decoder_crashed"


def test_an_object_key_cannot_leave_the_prefix(video: Path) -> None:
    with pytest.raises(Exception, match="refused"):
        analyse_safely(task(video, object_key="../video.mp4"))


def test_long_shots_are_divided(video: Path) -> None:
    rows = analyse(task(video, CurateConfig(shots=ShotConfig(max_shot_s=0.7))))
    assert spans(rows) == [(0, 16), (16, 20), (20, 36), (36, 50), (50, 66), (66, 75)]


SPANS = (
    '[{"start_s": 0, "end_s": 2, "caption": "one"}, {"start_s": 2, "end_s": 3, "caption": "TWO"},'
    ' {"start_s": 9, "end_s": 10, "caption": ""}]'
)


@pytest.mark.parametrize(
    ("start_s", "end_s", "whole", "expected"),
    [
        (0.0, 2.0, None, "one"),
        (0.1, 1.9, None, "one"),
        (1.9, 3.1, None, "two"),
        (0.0, 3.0, None, "one"),
        (2.9, 4.0, None, None),
        (2.9, 4.0, "the whole", "the whole"),
        (5.0, 6.0, "the whole", "the whole"),
        (9.0, 10.0, "the whole", None),
    ],
)
def test_captions_go_to_the_shot_they_overlap_most(
    start_s: float, end_s: float, whole: str | None, expected: str | None
) -> None:
    row: Row = {"caption": whole, "caption_shots": SPANS}
    assert caption_of(row, start_s, end_s, CaptionConfig()) == expected


def test_cleaning_can_be_switched_off() -> None:
    row: Row = {"caption": " A Cat! #123 ", "caption_shots": None}
    assert caption_of(row, 0, 1, CaptionConfig()) == "a cat!"
    assert caption_of(row, 0, 1, CaptionConfig(clean=False)) == "A Cat! #123"


def test_frames_that_break_a_measure_cost_one_file(video: Path) -> None:
    (row,) = analyse_safely(task(video, caption_shots="{"))
    assert (row["outcome"], row["reason"]) == ("rejected", "unreadable")
    assert np.isscalar(row["detail"])
