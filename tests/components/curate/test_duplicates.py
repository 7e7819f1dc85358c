"""Near-duplicates: other encodings of one picture, not other pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.config import CurationRules
from components.curate.duplicates import near_duplicates
from components.curate.scores import FrameScorer
from components.shapes.world import Scene, Staging, render
from components.video import decode_frames, write_video

RULES = CurationRules()
Pixels = NDArray[np.uint8]


def phash(frames: Pixels) -> str:
    scorer = FrameScorer(256)
    for frame in frames:
        scorer.add(frame)
    return scorer.shot(0, len(frames)).phash


def scene(colour: str = "red", shape: str = "circle", motion: str = "left", background: str = "grey") -> Pixels:
    return render(Scene(colour, shape, motion, background), Staging(0.3, 0.6, 0, 0.1), 20, 96, 96)


def found(*clips: Pixels) -> list[int | None]:
    phashes = [phash(clip) for clip in clips]
    return near_duplicates(phashes, RULES.near_duplicate_bits, RULES.near_duplicate_levels)


@pytest.mark.parametrize(("crf", "side"), [(27, 72), (35, 96), (20, 128)])
def test_another_encoding_or_size_is_a_duplicate(tmp_path: Path, crf: int, side: int) -> None:
    for number, original in enumerate([scene(), scene("cyan", "triangle", "up", "black")]):
        resized = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in original])
        path = tmp_path / f"{number}.mp4"
        write_video(path, resized.astype(np.uint8), 24, crf=crf)
        assert found(original, np.stack(list(decode_frames(path)))) == [None, 0]


def test_other_colours_shapes_motions_and_backgrounds_are_not() -> None:
    others = [
        scene(),
        scene(colour="green"),
        scene(shape="square"),
        scene(motion="right"),
        scene(motion="up"),
        scene(background="white"),
    ]
    assert found(*others) == [None] * len(others)


def test_each_is_compared_with_kept_clips_only() -> None:
    assert found(scene(), scene("blue"), scene(), scene("blue"), scene()) == [None, None, 0, 1, 0]


def test_limits_are_inclusive_and_can_be_switched_off() -> None:
    black, nearly = ("0" * 48 + "-" + f"{level:02x}" * 144 for level in (0, 2))
    assert near_duplicates([black, nearly], 0, 2) == [None, 0]
    assert near_duplicates([black, nearly], 0, 1.99) == [None, None]
    assert near_duplicates([black, black], 0, 0) == [None, 0]
    assert near_duplicates([black, black], -1, 255) == [None, None]
    other = "f" + "0" * 47 + black[48:]
    assert near_duplicates([black, other], 4, 2) == [None, 0]
    assert near_duplicates([black, other], 3, 2) == [None, None]


def test_cells_miss_nothing() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 246, (40, 144))
    colours = np.concatenate([base, base + rng.integers(0, 10, base.shape)])
    texts = ["0" * 48 + "-" + row.astype(np.uint8).tobytes().hex() for row in colours]
    for levels in (3.0, 5.2, 6.0):
        expected: list[int | None] = []
        for index, row in enumerate(colours):
            distances = [np.sqrt(np.mean((row - colours[other]) ** 2.0)) for other in range(index)]
            expected.append(next((o for o in range(index) if expected[o] is None and distances[o] <= levels), None))
        assert near_duplicates(texts, 64, levels) == expected
        assert any(match is not None for match in expected) == (levels > 5)
