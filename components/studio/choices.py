"""What a person can choose on the page: checkpoints, and sizes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.generation.settings import parse_size
from model.aspect import RESOLUTIONS

ASPECTS = {"1:1": (1, 1), "16:9": (16, 9), "9:16": (9, 16), "4:3": (4, 3), "3:4": (3, 4), "21:9": (21, 9)}
"""(width, height) of each aspect ratio, as people write them."""
SIZE_MULTIPLE_PX = 16
"""Stride of the autoencoder times the network's patch: what a size without a table is rounded to."""
NAMED_SIZES = tuple(name for name in ("144p", "240p", "360p", "480p", "720p") if name in RESOLUTIONS)
OWN_SIZE = "own"


@dataclass(frozen=True)
class Start:
    """What the page offers before a person changes anything; a checkpoint knows best what it was trained for."""

    num_frames: int = 16
    height: int = 240
    width: int = 426
    num_inference_steps: int = 30
    guidance_scale: float = 7.0
    fps: float = 24.0
    saved_fps: float = 8.0


@dataclass(frozen=True)
class Choice:
    """A checkpoint that can be drawn from.

    Attributes:
        label: what people call it, such as "kinoflow 3 (champion)"; unique on the page.
        checkpoint: URI of its prefix.
        start: the settings it was evaluated with.
    """

    label: str
    checkpoint: str
    start: Start = Start()


def size_names(start: Start) -> list[str]:
    """Sizes to choose from: the checkpoint's own first, then the named ones."""
    own = _square_name(start)
    return [own, *(name for name in NAMED_SIZES if name != own), OWN_SIZE]


def size_of(name: str, aspect: str) -> tuple[int, int]:
    """(height, width) in pixels of a size such as "240p" or "64 px" at an aspect ratio such as "16:9".

    Sizes with a table follow it; others keep the number of pixels and divide by `SIZE_MULTIPLE_PX`.
    """
    if name in RESOLUTIONS:
        return parse_size(f"{name} {aspect}")
    wide, high = ASPECTS[aspect]
    side = int(name.removesuffix(" px"))
    scale = math.sqrt(high / wide)
    return _rounded(side * scale), _rounded(side / scale)


def name_of(start: Start) -> tuple[str, str]:
    """The size and the aspect ratio that come closest to what a checkpoint starts with."""
    wanted = math.log(start.width / start.height)
    aspect = min(ASPECTS, key=lambda key: abs(math.log(ASPECTS[key][0] / ASPECTS[key][1]) - wanted))
    return _square_name(start), aspect


def _square_name(start: Start) -> str:
    area = start.height * start.width
    for name in NAMED_SIZES:
        if abs(RESOLUTIONS[name].num_pixels / area - 1) < 0.05:
            return name
    return f"{_rounded(math.sqrt(area))} px"


def _rounded(pixels: float) -> int:
    return max(1, round(pixels / SIZE_MULTIPLE_PX)) * SIZE_MULTIPLE_PX
