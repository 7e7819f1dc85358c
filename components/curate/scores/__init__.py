"""What is measured on the pixels of a clip, once; thresholds are applied to the numbers afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from components.config import ClipModelConfig
from components.curate.scores.base import EveryFrame, Look, ScoreInfo, Scorer, Sizes
from components.curate.scores.clip import TEXT_MATCH, ClipFeatures
from components.curate.scores.fingerprint import Fingerprint
from components.curate.scores.light import Detail, Letterbox, Light
from components.curate.scores.movement import CameraMotion, Flow, Motion
from components.curate.scores.neural_text import NeuralTextOverlay
from components.curate.scores.text_overlay import TextOverlay
from components.curate.shots import detection_size
from components.curate_config import TextDetector

__all__ = ["SCORERS", "SCORES", "EveryFrame", "Look", "ScoreInfo", "Scorer", "Sizes", "make_scorers", "sizes_of"]

TEXT_SCALE = 1.5

SCORERS: tuple[type[Scorer], ...] = (Light, Detail, Letterbox, Motion, Flow, CameraMotion, TextOverlay, Fingerprint)

_ALL: tuple[type[Scorer], ...] = (*SCORERS, NeuralTextOverlay, ClipFeatures)
_INFOS = (*(info for scorer in _ALL for info in scorer.columns), TEXT_MATCH)

SCORES: Mapping[str, ScoreInfo] = MappingProxyType({info.name: info for info in _INFOS})
"""Every score by the name of its column; null where its model is not configured."""


def make_scorers(clip: ClipModelConfig | None = None, text_detector: TextDetector = "classical") -> list[Scorer]:
    """One of each, for one file."""
    chosen = [NeuralTextOverlay if text_detector == "neural" and each is TextOverlay else each for each in SCORERS]
    scorers = [scorer() for scorer in chosen]
    return scorers if clip is None else [*scorers, ClipFeatures(clip)]


def sizes_of(height: int, width: int, long_side_px: int) -> Sizes:
    """At which sizes the pictures of a file are looked at; never larger than they are."""
    return Sizes(
        detection=detection_size(height, width),
        analysis=_bounded(height, width, long_side_px),
        text=_bounded(height, width, round(TEXT_SCALE * long_side_px)),
    )


def _bounded(height: int, width: int, long_side_px: int) -> tuple[int, int]:
    scale = min(1.0, long_side_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
