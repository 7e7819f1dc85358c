"""Light, detail and borders: brightness, contrast, sharpness, black and frozen frames, bars."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from components.curate.scores.base import (
    Columns,
    EveryFrame,
    Grey,
    Look,
    SampledScorer,
    Samples,
    ScoreInfo,
    Scorer,
    is_sampled,
)
from components.media import Frames
from components.stacks import PictureStack

BGR_TO_LUMA = (0.114, 0.587, 0.299)
BLACK_LUMA = 32
BLACK_AREA_SHARE = 0.98
BLACK_MAX_STD = 10.0
"""A dark frame with one small bright thing in it is not black."""
BLACK_MAX_MEAN = BLACK_LUMA + (1 - BLACK_AREA_SHARE) * 255
FROZEN_LEVELS = 3
FROZEN_FIRST_ROWS = 8
BAR_LUMA = 24
BAR_AREA_SHARE = 0.99
"""Of a row or column in a bar: a subtitle or a logo may reach into it a little."""


class Light(EveryFrame):
    """Every frame, at the size of shot detection."""

    columns: ClassVar = (
        ScoreInfo("brightness", "3", "Luma, mean over pixels and frames.", "level, 0 to 255"),
        ScoreInfo("black_share", "3", "Share of frames that are black but for a fiftieth of the picture.", "share"),
        ScoreInfo(
            "frozen_share",
            "2",
            f"Share of the steps from frame to frame in which no pixel changes by more than {FROZEN_LEVELS} levels.",
            "share",
        ),
    )

    def __init__(self) -> None:
        self._brightness: Samples[float] = Samples()
        self._black: Samples[bool] = Samples()
        self._frozen: Samples[bool] = Samples()
        self._last: Frames | None = None

    def add_stack(self, stack: PictureStack) -> None:
        """See `EveryFrame`."""
        for number, bgr in enumerate(stack.bgr, stack.first):
            blue, green, red = cv2.mean(bgr)[:3]
            luma = sum(share * level for share, level in zip(BGR_TO_LUMA, (blue, green, red), strict=True))
            self._brightness[number] = luma
            self._black[number] = luma <= BLACK_MAX_MEAN and _is_black(bgr)
        for number, bgr in enumerate(stack.bgr, stack.first):
            if self._last is not None:
                self._frozen[number] = _is_frozen(self._last, bgr)
            self._last = bgr

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`; the step into the first frame belongs to no clip."""
        return {
            "brightness": self._brightness.mean(start, end),
            "black_share": self._black.mean(start, end),
            "frozen_share": self._frozen.mean(start + 1, end),
        }

    def forget(self, before: int) -> None:
        """See `Scorer`."""
        for samples in (self._brightness, self._black, self._frozen):
            samples.forget(before)


class Detail(Scorer):
    """Frames 0 and 10 and every thirtieth, at the analysis size."""

    columns: ClassVar = (
        ScoreInfo("sharpness", "3", "Variance of the Laplacian in the sharpest colour channel, mean over frames."),
        ScoreInfo(
            "contrast",
            "3",
            "Standard deviation in the colour channel of most contrast, mean over frames; luma alone would call a "
            "picture of equally light colours empty.",
            "level, 0 to 128",
        ),
    )

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return is_sampled(place)

    def __init__(self) -> None:
        self._sharpness: Samples[float] = Samples()
        self._contrast: Samples[float] = Samples()

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        # 16 bits hold every value of this Laplacian (-1020 to 1020).
        self._sharpness[look.number] = _largest_std(cv2.Laplacian(look.colours, cv2.CV_16S)) ** 2
        self._contrast[look.number] = _largest_std(look.colours)

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        return {"sharpness": self._sharpness.mean(start, end), "contrast": self._contrast.mean(start, end)}

    def forget(self, before: int) -> None:
        """See `Scorer`."""
        self._sharpness.forget(before)
        self._contrast.forget(before)


class Letterbox(SampledScorer[tuple[int, int, int, int]]):
    """Frames 0 and 10 and every thirtieth, at the analysis size."""

    columns: ClassVar = (
        ScoreInfo(
            "letterbox_share",
            "2",
            "Share of the picture in black bars along its borders that are there in every frame; frames that are "
            "black all over do not count.",
            "share",
        ),
    )

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return is_sampled(place)

    def __init__(self) -> None:
        super().__init__()
        self._size = (1, 1)

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        self._size = look.grey.shape[0], look.grey.shape[1]
        bars = _bars(look.grey)
        if bars is not None:
            self.samples[look.number] = bars

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        bars = list(self.samples.within(start, end).values())
        if not bars:
            return {"letterbox_share": 0.0}
        top, bottom, left, right = np.min(np.array(bars), axis=0).tolist()
        height, width = self._size
        return {"letterbox_share": 1 - (height - top - bottom) * (width - left - right) / (height * width)}


def _is_frozen(before: Frames, after: Frames) -> bool:
    """Every eighth row nearly always says that something moves."""
    return all(
        cv2.norm(before[::step], after[::step], cv2.NORM_INF) <= FROZEN_LEVELS for step in (FROZEN_FIRST_ROWS, 1)
    )


def _is_black(bgr: Frames) -> bool:
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    light = cv2.countNonZero(cv2.threshold(grey, BLACK_LUMA - 1, 1, cv2.THRESH_BINARY)[1])
    return light <= (1 - BLACK_AREA_SHARE) * grey.size and _largest_std(bgr) < BLACK_MAX_STD


def _largest_std(channels: NDArray[Any]) -> float:
    return float(cv2.meanStdDev(channels)[1].max())


def _bars(grey: Grey) -> tuple[int, int, int, int] | None:
    """Pixels of black bars at the top, bottom, left and right; None for a frame that is black all over."""
    light = grey > BAR_LUMA
    borders = (light[0], light[-1], light[:, 0], light[:, -1])
    if all(np.count_nonzero(border) > (1 - BAR_AREA_SHARE) * len(border) for border in borders):
        return 0, 0, 0, 0
    rows = _light_lines(light, 1)
    if rows is None:
        return None
    columns = _light_lines(light[rows[0] : rows[1]], 0)
    if columns is None:
        return None
    return rows[0], grey.shape[0] - rows[1], columns[0], grey.shape[1] - columns[1]


def _light_lines(light: NDArray[np.bool_], axis: int) -> tuple[int, int] | None:
    """First and last + 1 of the lines that hold more light than a bar may."""
    found = np.flatnonzero(light.mean(axis=axis) > 1 - BAR_AREA_SHARE)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else None
