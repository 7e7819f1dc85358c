"""Stacks of frames: the same pictures as one by one, whatever their size and however they lie."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components import stacks
from components.stacks import PictureStack
from components.video import decode_stacks, write_video

Pixels = NDArray[np.uint8]
Size = tuple[int, int]


def film(path: Path, size: Size, num_frames: int = 40, rotation_deg: int = 0) -> Path:
    """Clouds of colour, others in every frame."""
    spots = np.random.default_rng(0).integers(0, 256, (num_frames, 4, 5, 3), np.uint8)
    frames = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR) for frame in spots])
    write_video(path, frames, 24, rotation_deg=rotation_deg)
    return path


def read(path: Path, size: Size) -> list[PictureStack]:
    found = list(decode_stacks(path, lambda _: size))
    assert [stack.first for stack in found] == [sum(map(len, found[:place])) for place in range(len(found))]
    return found


@pytest.mark.parametrize("rotation_deg", [0, 90, 180])
@pytest.mark.parametrize(
    ("whole", "small", "levels"),
    [((96, 128), (96, 128), 0), ((96, 128), (48, 64), 0), ((90, 122), (45, 61), 8), ((33, 65), (33, 65), 8)],
)
def test_a_stack_holds_what_its_pictures_give(
    tmp_path: Path, whole: Size, small: Size, levels: int, rotation_deg: int
) -> None:
    # FFmpeg fills chroma in by another path where the height is odd.
    small = small[::-1] if rotation_deg == 90 else small
    found = read(film(tmp_path / "film.mp4", whole, rotation_deg=rotation_deg), small)
    assert sum(map(len, found)) == 40
    for stack in found:
        assert stack.bgr.shape == (len(stack), *small, 3)
        assert stack.bgr.flags.c_contiguous
        one_by_one = np.stack([picture.bgr(small) for picture in stack.pictures]).astype(int)
        assert np.abs(one_by_one - stack.bgr).mean() <= levels


def test_large_frames_lie_in_short_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "film.mp4", (96, 128))
    lengths = [len(stack) for stack in read(path, (96, 128))]
    assert lengths[0] > 10
    monkeypatch.setattr(stacks, "MAX_BYTES", 400_000)
    shorter = read(path, (96, 128))
    assert max(map(len, shorter)) == 2
    monkeypatch.setattr(stacks, "MAX_BYTES", 1)
    assert {len(stack) for stack in read(path, (96, 128))} == {1}
