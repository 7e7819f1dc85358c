"""Frames of the made world for the tests of generation."""

import random

import numpy as np

from components.shapes.world import Scene, draw_staging, render

SCENE = Scene("red", "circle", "left", "white")


def clip(num_frames: int, seed: int = 3) -> np.ndarray:
    """(num_frames, 32, 32, 3) uint8 of the scene, each frame another."""
    return render(SCENE, draw_staging(random.Random(seed), moving=True), num_frames, 32, 32)


def picture(seed: int = 3) -> np.ndarray:
    """(1, 32, 32, 3) uint8."""
    return clip(4, seed)[:1]
