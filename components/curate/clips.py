"""Frames in, measured clips out: where the shots of a file lie and what is in them; nothing is kept for longer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from components.config import CurateConfig
from components.curate.scores import Look, make_scorers, sizes_of
from components.curate.scores.base import Columns, Scorer
from components.curate.shots import ShotDetector
from components.pictures import Picture


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
        self._waiting: deque[Look] = deque()
        self._cuts: deque[int] = deque()
        self._start = self._counted_from = 0
        self._last: Look | None = None
        self.num_frames = 0

    def add(self, picture: Picture) -> Iterator[MeasuredClip]:
        """Take the next picture; all are brought to the sizes of the first."""
        if self.num_frames == 0:
            self._sizes = sizes_of(*picture.size, self._long_side_px)
        look = Look(self.num_frames, picture, self._sizes)
        self.num_frames += 1
        self._waiting.append(look)
        yield from self._cut_at(self._detector.add(look.bgr, look.bgr_exactly))
        while len(self._waiting) > self._detector.look_ahead_frames:
            yield from self._measure(self._waiting.popleft())

    def finish(self) -> Iterator[MeasuredClip]:
        """After the last picture: the clips that were not complete before."""
        yield from self._cut_at(self._detector.finish())
        while self._waiting:
            yield from self._measure(self._waiting.popleft())
        if self.num_frames > self._start:
            yield self._close(self.num_frames)

    def _cut_at(self, cuts: list[int]) -> Iterator[MeasuredClip]:
        """Cuts ahead of what is measured wait for their frame; those that come too late for it are made at once."""
        measured = self._last.number + 1 if self._last is not None else 0
        for cut in cuts:
            if cut >= measured:
                self._cuts = deque(sorted({*self._cuts, cut}))
            elif cut > self._start:
                yield self._close(cut)
                self._counted_from = measured

    def _measure(self, look: Look) -> Iterator[MeasuredClip]:
        at_cut = bool(self._cuts) and self._cuts[0] == look.number
        if at_cut:
            self._cuts.popleft()
        if look.number > self._start and (at_cut or look.number - self._start >= self._longest):
            yield self._close(look.number)
        place = look.number - self._counted_from
        for scorer in self._scorers:
            if scorer.wants(place):
                scorer.add(look, place)
        self._last = look

    def _close(self, end: int) -> MeasuredClip:
        last = self._last if self._last is not None and self._last.number == end - 1 else None
        scores: Columns = {}
        for scorer in self._scorers:
            scores |= scorer.summary(self._start, end, last)
            scorer.forget(end)
        clip = MeasuredClip(self._start, end, scores)
        self._start = self._counted_from = end
        return clip
