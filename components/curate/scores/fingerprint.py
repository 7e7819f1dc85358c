"""What near-duplicates are found by."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from components.curate.fingerprint import fingerprint, thumbnail
from components.curate.scores.base import Columns, Look, SampledScorer, ScoreInfo


class Fingerprint(SampledScorer[NDArray[np.uint8]]):
    """Every frame, as a thumbnail."""

    columns: ClassVar = (
        ScoreInfo("phash", "3", "What the clip looks like, eight means of 8 x 8 colours in order (uint8, RGB)."),
    )

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        self.samples[look.number] = thumbnail(look.bgr)[..., ::-1]

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        return {"phash": fingerprint(np.stack(list(self.samples.within(start, end).values())))}
