"""The made world: its caption grammar, its truth and its renderer.

One coloured shape on a plain background, standing still in an image or moving straight in a video:
"a red circle moves left on a white background", "a red circle on a white background".
"""

import itertools
import random
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "yellow": (235, 215, 20),
    "green": (30, 175, 50),
    "cyan": (20, 205, 225),
    "blue": (40, 60, 230),
    "magenta": (220, 40, 205),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Direction of each motion as (x, y), y pointing down."""
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "grey": (132, 132, 132),
    "black": (26, 26, 26),
}

_CAPTION = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: moves ({'|'.join(MOTIONS)}))?"
    rf" on a ({'|'.join(BACKGROUNDS)}) background"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What one shot shows; `motion` is None for a still."""

    colour: str
    shape: str
    motion: str | None
    background: str

    @property
    def caption(self) -> str:
        """The scene in the world's grammar."""
        moves = f" moves {self.motion}" if self.motion else ""
        return f"a {self.colour} {self.shape}{moves} on a {self.background} background"


@dataclass(frozen=True, slots=True)
class Staging:
    """Where and how large the shape is, in fractions of the picture's short side.

    Attributes:
        size: side of the shape's bounding box.
        travel: way of the shape's centre from the first to the last frame.
        along: offset of the middle of that way from the picture's centre, in the direction of motion
            (to the right for a still).
        across: offset at right angles to it (downwards for horizontal motion and stills, else to the right).
    """

    size: float
    travel: float
    along: float
    across: float


def parse_caption(text: str) -> Scene | None:
    """Reads a caption of the grammar, forgiving case, spaces and a final stop; None for any other text."""
    match = _CAPTION.fullmatch(" ".join(text.lower().split()).rstrip(". "))
    if match is None:
        return None
    colour, shape, motion, background = match.groups()
    return Scene(colour, shape, motion, background)


def all_scenes(*, moving: bool) -> list[Scene]:
    """Every scene of the grammar: 216 moving ones or 54 still ones."""
    motions: list[str | None] = list(MOTIONS) if moving else [None]
    return [Scene(*parts) for parts in itertools.product(COLOURS, SHAPES, motions, BACKGROUNDS)]


def draw_staging(rng: random.Random, *, moving: bool) -> Staging:
    """Draws a staging that keeps the shape inside the picture's central square, whatever its aspect."""
    size = rng.uniform(0.33, 0.41)
    room = 1 - size - 0.04
    travel = room * rng.uniform(0.9, 1.0) if moving else 0.0
    slack = (room - travel) / 2
    return Staging(size, travel, rng.uniform(-slack, slack), rng.uniform(-room / 2, room / 2))


def render(scene: Scene, staging: Staging, num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draws a shot, anti-aliased by exact distances to the shape's outline.

    Returns:
        (num_frames, height, width, 3) uint8 RGB.
    """
    short = min(height, width)
    direction_x, direction_y = MOTIONS[scene.motion] if scene.motion else (1, 0)
    progress = np.linspace(-0.5, 0.5, num_frames) if num_frames > 1 else np.zeros(1)
    along = staging.along + staging.travel * progress
    across_x, across_y = abs(direction_y), abs(direction_x)
    centre_x = width / 2 + short * (direction_x * along + across_x * staging.across)
    centre_y = height / 2 + short * (direction_y * along + across_y * staging.across)
    x = np.arange(width)[None, None, :] + 0.5 - centre_x[:, None, None]
    y = np.arange(height)[None, :, None] + 0.5 - centre_y[:, None, None]
    coverage = shape_coverage(scene.shape, x, y, short * staging.size)[..., None]
    background = np.array(BACKGROUNDS[scene.background], np.float64)
    colour = np.array(COLOURS[scene.colour], np.float64)
    return np.rint(background + coverage * (colour - background)).astype(np.uint8)


def shape_coverage(shape: str, x: NDArray[np.float64], y: NDArray[np.float64], size_px: float) -> NDArray[np.float64]:
    """How much of each pixel a shape covers, 0 to 1.

    Args:
        shape: one of SHAPES; the triangle stands on its base and fills its bounding box.
        x, y: pixel centres relative to the centre of the shape's bounding box, broadcastable, in pixels.
        size_px: side of the bounding box.
    """
    half = size_px / 2
    if shape == "circle":
        outside = np.hypot(x, y) - half
    elif shape == "square":
        outside = np.maximum(np.abs(x), np.abs(y)) - half
    elif shape == "triangle":
        side = (2 * np.abs(x) - y - half) / np.sqrt(5)
        outside = np.maximum(side, y - half)
    else:
        raise ValueError(f"unknown shape {shape!r}, know {', '.join(SHAPES)}")
    return np.clip(0.5 - outside, 0.0, 1.0)
