"""What near-duplicates are found by."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from components.curate.fingerprint import fingerprint, thumbnails
from components.curate.scores.base import Columns, EveryFrame, Look, Samples, ScoreInfo
from components.stacks import PictureStack


class Fingerprint(EveryFrame):
    """Every frame, as a thumbnail."""

    columns: ClassVar = (
        ScoreInfo("phash", "4", "What the clip looks like, eight means of 8 x 8 colours in order (uint8, RGB)."),
    )

    def __init__(self) -> None:
        self._thumbnails: Samples[NDArray[np.uint8]] = Samples()

    def add_stack(self, stack: PictureStack) -> None:
        """See `EveryFrame`."""
        for number, small in enumerate(thumbnails(stack.bgr), stack.first):
            self._thumbnails[number] = small

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        bgr = np.stack(list(self._thumbnails.within(start, end).values()))
        return {"phash": fingerprint(bgr[..., ::-1])}

    def forget(self, before: int) -> None:
        """See `Scorer`."""
        self._thumbnails.forget(before)
