"""What a score is: a small class that says which frames it wants, takes them, and sums them up per clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.media import Frames
from components.pictures import Picture
from components.stacks import PictureStack

Grey = NDArray[np.uint8]
Columns = dict[str, object]
Value = TypeVar("Value")

SAMPLE_FIRST_PLACES = (0, 10)
SAMPLE_STRIDE_FRAMES = 30
"""Scores that need no more look at two frames at the beginning of a clip and one in thirty, all at the same ones: a
picture is made once."""


def is_sampled(place: int) -> bool:
    """Whether the frame at this place of a clip is one of them."""
    return place % SAMPLE_STRIDE_FRAMES == 0 or place in SAMPLE_FIRST_PLACES


@dataclass(frozen=True)
class ScoreInfo:
    """What stands in one column of the clips table.

    Attributes:
        name: the column.
        version: another one whenever the same pixels give another number.
        meaning: a sentence.
        unit: of the number, "" where there is none.
    """

    name: str
    version: str
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Sizes:
    """(height, width) at which the frames of one file are looked at.

    Attributes:
        detection: of `Look.bgr`.
        analysis: of `Look.colours` and `Look.grey`.
        text: of `Look.large_grey`.
    """

    detection: tuple[int, int]
    analysis: tuple[int, int]
    text: tuple[int, int]


class Look:
    """One frame as scores see it. A picture is made when the first score asks for it, and then shared."""

    def __init__(self, number: int, picture: Picture, sizes: Sizes, bgr: Frames) -> None:
        """A frame.

        Args:
            number: in the file.
            picture: the whole of it.
            sizes: at which it is looked at.
            bgr: (H, W, 3), what shots are detected on: made for every frame, bilinear between the nearest pixels.
        """
        self.number = number
        self.picture = picture
        self.bgr = bgr
        self._sizes = sizes

    def bgr_exactly(self) -> Frames:
        """The same as OpenCV makes it."""
        return self.picture.bgr_exactly(self._sizes.detection)

    @cached_property
    def colours(self) -> Frames:
        """(H, W, 3) BGR at the analysis size, averaged over the pixels that are left out."""
        if self._sizes.analysis == self._sizes.detection == self.picture.size:
            return self.bgr
        return self.picture.bgr(self._sizes.analysis, smooth=True)

    @cached_property
    def grey(self) -> Grey:
        """(H, W) luma at the analysis size, averaged in the same way."""
        return self.picture.luma(self._sizes.analysis)

    @cached_property
    def large_grey(self) -> Grey:
        """(H, W) luma at the size that text is looked for."""
        return self.picture.luma(self._sizes.text)


class Scorer(ABC):
    """Measures one thing on all clips of one file, in the order of its frames.

    To add a score: subclass, list the columns in `columns`, add the class to `scores.SCORERS` and the columns to
    `tables.CLIPS`.
    """

    columns: ClassVar[tuple[ScoreInfo, ...]]
    stride: ClassVar[int] = 1
    offset: ClassVar[int] = 0

    def wants(self, place: int) -> bool:
        """Whether `add` is to be called with the frame at this place of a clip, 0 being the clip's first."""
        return place % self.stride == self.offset

    @abstractmethod
    def add(self, look: Look, place: int) -> None:
        """Measure one frame; what is kept of it must be small."""

    @abstractmethod
    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """Columns of the clip from frame `start` to `end` (exclusive, numbers in the file).

        Args:
            start, end: the clip. Where it begins within a fade, frames from `start` on may have been added as the
                clip's before it.
            last: its last frame, None in that case.
        """

    @abstractmethod
    def forget(self, before: int) -> None:
        """Drop what was kept of frames before this number: their clips are done."""


class EveryFrame(Scorer):
    """Measures every frame, wherever clips turn out to begin, and many in one call."""

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        return False

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`; never called."""
        raise AssertionError("every frame comes by add_stack")

    @abstractmethod
    def add_stack(self, stack: PictureStack) -> None:
        """Measure the next frames of the file."""


class Samples(Generic[Value]):
    """Values by number of frame, ascending."""

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}

    def __setitem__(self, number: int, value: Value) -> None:
        """Keep the value of one frame."""
        self._values[number] = value

    def within(self, start: int, end: int) -> Mapping[int, Value]:
        """Those of frames `start` to `end` (exclusive)."""
        return {number: value for number, value in self._values.items() if start <= number < end}

    def mean(self, start: int, end: int) -> float | None:
        """Mean over frames `start` to `end` (exclusive) of numbers; None where there are none."""
        values = [value for number, value in self._values.items() if start <= number < end]
        return float(np.mean(np.array(values, np.float64))) if values else None

    def keep(self, condition: Callable[[int], bool]) -> None:
        """Drop the values of frames whose number does not fulfil a condition."""
        self._values = {number: value for number, value in self._values.items() if condition(number)}

    def forget(self, before: int) -> None:
        """Drop the values of frames before this number."""
        self._values = {number: value for number, value in self._values.items() if number >= before}


class SampledScorer(Scorer, Generic[Value]):
    """A score whose samples are kept one a frame."""

    def __init__(self) -> None:
        self.samples: Samples[Value] = Samples()

    def forget(self, before: int) -> None:
        """See `Scorer`."""
        self.samples.forget(before)
