"""Shot boundaries: those of the library, and long shots in equal parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scenedetect import AdaptiveDetector, ContentDetector, detect
from scenedetect.detector import SceneDetector

from components.config import ShotConfig
from components.curate.shots import Shot, ShotDetector, divide
from components.video import decode_frames, write_video

Pixels = NDArray[np.uint8]


def textured_shots(lengths: list[int], seed: int = 0) -> Pixels:
    """Shots of blurred noise that drift by a pixel a frame, (N, 72, 96, 3)."""
    rng = np.random.default_rng(seed)
    shots = []
    for length in lengths:
        coarse = rng.integers(0, 256, (12, 30, 3), np.uint8)
        wide = np.kron(coarse, np.ones((6, 6, 1), np.uint8))
        shots += [wide[:, offset : offset + 96] for offset in range(length)]
    return np.stack(shots)


def detected(config: ShotConfig, frames: Pixels, fps: float = 24) -> list[Shot]:
    detector = ShotDetector(config, fps)
    for frame in frames:
        detector.add(frame)
    return detector.shots()


def test_hard_cuts_are_found_to_the_frame() -> None:
    frames = textured_shots([20, 15, 30, 7, 25])
    assert detected(ShotConfig(), frames) == [(0, 20), (20, 35), (35, 65), (65, 72), (72, 97)]


@pytest.mark.parametrize("fps", [24.0, 30000 / 1001])
@pytest.mark.parametrize(
    ("config", "detector"),
    [
        (ShotConfig(min_shot_frames=15), AdaptiveDetector),
        (
            ShotConfig(min_shot_frames=3, threshold=2.5, min_content=10),
            partial(AdaptiveDetector, 2.5, 3, min_content_val=10),
        ),
        (ShotConfig(detector="content", threshold=27, min_shot_frames=15), ContentDetector),
    ],
)
def test_the_cuts_are_those_of_the_library(
    tmp_path: Path, fps: float, config: ShotConfig, detector: Callable[[], SceneDetector]
) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, textured_shots([20, 6, 2, 17, 30, 9, 12], seed=3), fps)
    scenes = detect(str(path), detector(), start_in_scene=True)
    library = [(start.frame_num, end.frame_num) for start, end in scenes]
    assert len(library) > 2
    assert detected(config, np.stack(list(decode_frames(path))), fps) == library


def test_no_frames_no_shots_and_one_frame_one_shot() -> None:
    assert detected(ShotConfig(), textured_shots([1])[:0]) == []
    assert detected(ShotConfig(), textured_shots([1])) == [(0, 1)]


def test_a_long_shot_is_divided_into_equal_parts() -> None:
    frames = textured_shots([50, 20])
    assert detected(ShotConfig(max_shot_s=1), frames) == [(0, 16), (16, 33), (33, 50), (50, 70)]


@given(st.integers(0, 1000), st.integers(1, 5000), st.integers(1, 700))
def test_parts_cover_the_shot_and_are_equal(start: int, length: int, longest: int) -> None:
    parts = divide(start, start + length, longest)
    lengths = [end - begin for begin, end in parts]
    assert parts[0][0] == start
    assert parts[-1][1] == start + length
    assert all(end == begin for (_, end), (begin, _) in pairwise(parts))
    assert max(lengths) <= longest
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == -(-length // longest)
