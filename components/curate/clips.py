"""Frames in, measured clips out: where the shots of a file lie and what is in them; nothing is kept for longer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from components.config import CurateConfig
from components.curate.scores import EveryFrame, Look, Scorer, Sizes, make_scorers, sizes_of
from components.curate.scores.base import Columns
from components.curate.shots import ShotDetector
from components.stacks import PictureStack


@dataclass(frozen=True)
class MeasuredClip:
    """A stretch of one shot.

    Attributes:
        start: its first frame in the file.
        end: the frame after its last.
        scores: column by column.
    """

    start: int
    end: int
    scores: Columns


class ClipMeasurer:
    """Takes the pictures of one file in order and gives its clips, as soon as each one is known to be complete.

    A shot of more than `max_shot_s` is divided into clips of that length and a rest. A cut is known only a few frames
    later, so frames wait that long before they are measured as part of a clip. A fade is cut in its middle, which is
    known only when the next shot fades in: the places of the clip that begins there are counted from then on.
    """

    def __init__(self, config: CurateConfig, fps: float) -> None:
        self._long_side_px = config.analysis_long_side_px
        self._detector = ShotDetector(config.shots, fps)
        self._longest = max(1, math.floor(config.shots.max_shot_s * fps))
        self._scorers: list[Scorer] = make_scorers(config.clip, config.text_detector)
        self._every_frame = [scorer for scorer in self._scorers if isinstance(scorer, EveryFrame)]
        self._sampled = [scorer for scorer in self._scorers if not isinstance(scorer, EveryFrame)]
        self._sizes: Sizes | None = None
        self._waiting: deque[Look] = deque()
        self._cuts: deque[int] = deque()
        self._start = self._counted_from = self._measured = 0
        self._last: Look | None = None
        self.num_frames = 0

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) at which every frame is looked at, of a file whose first picture is so large.

        All pictures are brought to the sizes of the first.
        """
        self._sizes = sizes_of(*size, self._long_side_px)
        return self._sizes.detection

    def add(self, stack: PictureStack) -> Iterator[MeasuredClip]:
        """Take the next pictures, as small as `size_of` said."""
        assert self._sizes is not None, "the size comes from the first picture"
        assert stack.first == self.num_frames, "every frame comes once and in order"
        looks = [
            Look(number, picture, self._sizes, bgr)
            for number, (picture, bgr) in enumerate(zip(stack.pictures, stack.bgr, strict=True), stack.first)
        ]
        self._waiting.extend(looks)
        self.num_frames += len(stack)
        for scorer in self._every_frame:
            scorer.add_stack(stack)
        behind = self._detector.look_ahead_frames
        for known_with, cuts in self._detector.add(stack.bgr, lambda place: looks[place].bgr_exactly()):
            yield from self._measure(known_with - behind)
            yield from self._cut_at(cuts)
        yield from self._measure(self.num_frames - behind)

    def finish(self) -> Iterator[MeasuredClip]:
        """After the last picture: the clips that were not complete before."""
        yield from self._cut_at(self._detector.finish())
        yield from self._measure(self.num_frames)
        if self.num_frames > self._start:
            yield self._close(self.num_frames)

    def _cut_at(self, cuts: list[int]) -> Iterator[MeasuredClip]:
        """Cuts ahead of what is measured wait for their frame; those that come too late for it are made at once."""
        for cut in cuts:
            if cut >= self._measured:
                self._cuts = deque(sorted({*self._cuts, cut}))
            elif cut > self._start:
                yield self._close(cut)
                self._counted_from = self._measured

    def _measure(self, end: int) -> Iterator[MeasuredClip]:
        """Measure what waits of the frames before this number."""
        while self._measured < end:
            number = self._measured
            at_cut = bool(self._cuts) and self._cuts[0] == number
            if at_cut:
                self._cuts.popleft()
            if number > self._start and (at_cut or number - self._start >= self._longest):
                yield self._close(number)
            stretch = min(end, self._start + self._longest, self._cuts[0] if self._cuts else end)
            while self._measured < stretch:
                self._measure_next()

    def _measure_next(self) -> None:
        look = self._last = self._waiting.popleft()
        place = look.number - self._counted_from
        for scorer in self._sampled:
            if scorer.wants(place):
                scorer.add(look, place)
        self._measured += 1

    def _close(self, end: int) -> MeasuredClip:
        last = self._last if self._last is not None and self._last.number == end - 1 else None
        scores: Columns = {}
        for scorer in self._scorers:
            scores |= scorer.summary(self._start, end, last)
            scorer.forget(end)
        clip = MeasuredClip(self._start, end, scores)
        self._start = self._counted_from = end
        return clip
