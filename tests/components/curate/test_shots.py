"""Shot boundaries: those of the library and of its command line."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, detect
from scenedetect.detector import SceneDetector

from components.config import ShotConfig
from components.curate.shots import ShotDetector, detection_size
from components.video import decode_stacks, write_video

Pixels = NDArray[np.uint8]
Shot = tuple[int, int]


def textured_shots(lengths: list[int], seed: int = 0) -> Pixels:
    """Shots of blurred noise that drift by a pixel a frame, (N, 72, 96, 3)."""
    rng = np.random.default_rng(seed)
    shots = []
    for length in lengths:
        coarse = rng.integers(0, 256, (12, 30, 3), np.uint8)
        wide = np.kron(coarse, np.ones((6, 6, 1), np.uint8))
        shots += [wide[:, offset : offset + 96] for offset in range(length)]
    return np.stack(shots)


def detected(config: ShotConfig, path: Path, fps: float = 24) -> list[Shot]:
    """First frame and frame after the last of every shot."""
    detector = ShotDetector(config, fps)
    cuts: set[int] = set()
    for stack in decode_stacks(path, lambda size: detection_size(*size)):
        size = stack.bgr.shape[1:3]
        for _, found in detector.add(stack.bgr, lambda place: stack.pictures[place].bgr_exactly(size)):  # noqa: B023
            cuts.update(found)
    cuts.update(detector.finish())
    return list(pairwise([0, *sorted(cuts), detector.num_frames]))


def test_hard_cuts_are_found_to_the_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", textured_shots([20, 15, 30, 7, 25]), 24)
    assert detected(ShotConfig(), tmp_path / "video.mp4") == [(0, 20), (20, 35), (35, 65), (65, 72), (72, 97)]


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
    assert detected(config, path, fps) == library


@pytest.mark.parametrize("length", [1, 2, 3, 7, 400])
def test_the_cuts_are_those_of_the_library_however_frames_come(length: int) -> None:
    levels = np.cumsum(np.random.default_rng(5).choice([0, 1, 4, 60, 110], 400, p=[0.3, 0.3, 0.2, 0.1, 0.1])) % 256
    frames = np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (400, 8, 8, 3)).copy()
    library, ours = AdaptiveDetector(min_scene_len=5), ShotDetector(ShotConfig(min_shot_frames=5), 24)
    expected = [
        (number, [cut.frame_num for cut in cuts])
        for number, frame in enumerate(frames)
        if (cuts := library.process_frame(FrameTimecode(number, fps=24.0), frame))
    ]
    assert len(expected) > 5
    parts = [frames[start : start + length] for start in range(0, 400, length)]
    assert [found for part in parts for found in ours.add(part, lambda place: frames[place])] == expected


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard cuts, fades through black, a flash, and a fade out at the end; larger than what detectors look at."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    shots = [
        np.kron(shot, np.ones((4, 4, 1), np.uint8))
        for shot in np.split(textured_shots([30, 40, 9, 45, 40]), [30, 70, 79, 124])
    ]
    for shot in (shots[1], shots[3]):
        brightness = np.clip(np.minimum(np.arange(len(shot)), np.arange(len(shot))[::-1]) / 12 - 0.2, 0, 1)
        shot[:] = (shot * brightness[:, None, None, None]).astype(np.uint8)
    shots[4][20:22] = 255
    shots[4][30:] = (shots[4][30:] * np.linspace(1, 0, 10)[:, None, None, None]).astype(np.uint8)
    write_video(path, np.concatenate(shots), 30000 / 1001)
    return path


@pytest.mark.parametrize(
    ("config", "command"),
    [
        (ShotConfig(min_shot_s=0.6), ["detect-adaptive"]),
        (ShotConfig(min_shot_s=0.6, fades=True), ["detect-adaptive", "detect-threshold"]),
        (
            ShotConfig(min_shot_s=0.6, detector="content", threshold=27, fades=True),
            ["detect-content", "detect-threshold"],
        ),
    ],
)
def test_the_cuts_are_those_of_the_command_line(
    film: Path, tmp_path: Path, config: ShotConfig, command: list[str]
) -> None:
    options = ["-q", "-i", str(film), "-o", str(tmp_path), *command, "list-scenes", "-s", "-f", "scenes.csv"]
    subprocess.run([sys.executable, "-m", "scenedetect", *options], check=True, capture_output=True)
    with (tmp_path / "scenes.csv").open(newline="", encoding="utf-8") as file:
        scenes = [(int(row["Start Frame"]) - 1, int(row["End Frame"])) for row in csv.DictReader(file)]
    assert len(scenes) > 2
    assert detected(config, film, 30000 / 1001) == scenes


def test_a_fade_is_a_cut_where_that_is_asked_for(film: Path) -> None:
    assert len(detected(ShotConfig(fades=True), film)) > len(detected(ShotConfig(), film))


def test_no_frame_is_no_cut() -> None:
    assert ShotDetector(ShotConfig(fades=True), 24).finish() == []


@pytest.mark.parametrize(
    ("source", "size"),
    [((720, 1280), (144, 256)), ((1280, 720), (256, 144)), ((96, 128), (96, 128)), ((1, 900), (1, 256))],
)
def test_pictures_are_looked_at_in_the_size_of_the_library(source: tuple[int, int], size: tuple[int, int]) -> None:
    assert detection_size(*source) == size
