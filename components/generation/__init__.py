"""From a checkpoint and prompts to pixels: the one way samples are drawn, by everything that shows or judges them.

Parts load when they are asked for, so that `components.generation.settings` needs pydantic only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.generation.bundle import Bundle as Bundle
    from components.generation.bundle import choose_device as choose_device
    from components.generation.bundle import load_bundle as load_bundle
    from components.generation.bundle import to_frames as to_frames
    from components.generation.bundle import to_pixels as to_pixels
    from components.generation.clips import IMAGE_TO_VIDEO as IMAGE_TO_VIDEO
    from components.generation.clips import Request as Request
    from components.generation.clips import generate as generate
    from components.generation.drawing import Drawn as Drawn
    from components.generation.drawing import draw as draw
    from components.media import Frames as Frames

_HOMES = {
    "Bundle": "components.generation.bundle", "choose_device": "components.generation.bundle",
    "load_bundle": "components.generation.bundle", "to_frames": "components.generation.bundle",
    "to_pixels": "components.generation.bundle", "IMAGE_TO_VIDEO": "components.generation.clips",
    "Request": "components.generation.clips", "generate": "components.generation.clips",
    "Drawn": "components.generation.drawing", "draw": "components.generation.drawing",
    "Frames": "components.media",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
