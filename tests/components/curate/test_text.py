"""Text across a picture is seen; plain shapes are not taken for it."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.curate.text import GRID, text_lines, text_mask
from components.shapes.world import all_scenes, draw_staging, render

Grey = NDArray[np.uint8]


def written(text: str, height: int, width: int, *, ink: int, ground: int, scale: float, thickness: int = 1) -> Grey:
    picture = np.full((height, width), ground, np.uint8)
    cv2.putText(picture, text, (width // 20, height // 2), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
    return picture


@pytest.mark.parametrize("text", ["SUBSCRIBE", "BREAKING", "watch more", "www.site.com"])
@pytest.mark.parametrize(("ink", "ground"), [(255, 0), (0, 255), (255, 128), (30, 130)])
def test_words_on_small_pictures(text: str, ink: int, ground: int) -> None:
    for height, width, scale in [(96, 96, 0.45), (96, 168, 0.6), (120, 120, 0.5)]:
        assert text_mask(written(text, height, width, ink=ink, ground=ground, scale=scale)).mean() > 0.02


@pytest.mark.parametrize(("scale", "thickness"), [(0.5, 1), (1.0, 2), (1.6, 3)])
def test_words_on_large_pictures(scale: float, thickness: int) -> None:
    picture = written("SUBSCRIBE NOW", 288, 512, ink=250, ground=60, scale=scale, thickness=thickness)
    (left, top, right, bottom), *_ = text_lines(picture)
    assert right - left > 80
    assert top < 144 < bottom + 12


def test_words_over_a_busy_ground() -> None:
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 160, (288, 512)).astype(np.uint8), (0, 0), 6)
    assert not text_lines(np.asarray(ground, np.uint8))
    cv2.putText(ground, "BREAKING NEWS", (40, 200), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 2, cv2.LINE_AA)
    assert text_mask(np.asarray(ground, np.uint8)).mean() > 0.02


def test_plain_shapes_are_no_text() -> None:
    rng = random.Random(0)
    for scene in all_scenes(moving=False):
        for height, width in [(96, 96), (96, 168), (288, 512)]:
            picture = render(scene, draw_staging(rng, moving=False), 1, height, width)[0]
            assert not text_mask(np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)).any(), scene


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (7, 7), (40, 2000)])
def test_odd_pictures(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert text_mask(noise).shape == GRID
    assert not text_mask(np.zeros(shape, np.uint8)).any()
