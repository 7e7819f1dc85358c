"""How much of the picture is covered by text that stays."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from components.curate.scores.base import Columns, Grey, Look, SampledScorer, ScoreInfo
from components.curate.text import GRID, text_mask

FIRST_PLACES = (0, 10, 20)
STRIDE_FRAMES = 60
"""Text stays for many frames: a few at the beginning are looked at, then one in sixty."""
MIN_PRESENCE = 0.4
"""Share of the looked-at frames of a clip in which a spot must hold text; moving textures do not."""


class TextOverlay(SampledScorer[Grey]):
    """A few frames, at up to twice the analysis size."""

    columns: ClassVar = (
        ScoreInfo(
            "text_share",
            "3",
            "Share of the picture that holds text in most of the frames looked at: frames 0, 10, 20 and every 60th.",
            "share",
        ),
    )

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return place in FIRST_PLACES or place % STRIDE_FRAMES == 0

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        self.samples[look.number] = look.large_grey

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        pictures = list(self.samples.within(start, end).values())
        return {"text_share": lasting_share(pictures) if pictures else 0.0}


def lasting_share(pictures: list[Grey]) -> float:
    """Share of the picture that holds text in at least `MIN_PRESENCE` of the pictures.

    As soon as so many are empty that no spot can reach that, the others are not looked at.
    """
    counts = np.zeros(GRID, np.int64)
    for index, picture in enumerate(pictures):
        counts += text_mask(picture)
        still_to_come = len(pictures) - index - 1
        if counts.max() + still_to_come < MIN_PRESENCE * len(pictures):
            return 0.0
    return float((counts >= MIN_PRESENCE * len(pictures)).mean())
