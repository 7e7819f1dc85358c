"""Shot boundaries by PySceneDetect's detectors, fed with frames that were decoded for all measures at once.

The detectors decide; what they decide on is computed here, the same numbers several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, ThresholdDetector
from scenedetect.detector import SceneDetector

from components.config import ShotConfig
from components.media import Frames

DETECTION_LONG_SIDE_PX = 256
"""PySceneDetect's own: larger pictures are brought down to it before they are looked at."""
MAX_LOOK_AHEAD_FRAMES = 4
ROUNDING_LEVELS = 2.0
"""By less the mean of a picture differs from OpenCV's."""


def detection_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which PySceneDetect's command line looks at a picture."""
    factor = max(1.0, max(height, width) / DETECTION_LONG_SIDE_PX)
    return max(1, round(height / factor)), max(1, round(width / factor))


class ShotDetector:
    """Takes the frames of one video in order and says where its shots begin.

    With `ShotConfig(min_shot_s=0.6)` the cuts are those of `scenedetect detect-adaptive`, with `fades` as well those of
    `scenedetect detect-adaptive detect-threshold`.
    """

    def __init__(self, config: ShotConfig, fps: float) -> None:
        self._fps = Fraction(fps).limit_denominator(1_000_000)
        shortest_frames = config.min_shot_frames
        if config.min_shot_s is not None:
            shortest_frames = self._timecode(config.min_shot_s).frame_num
        self._changes = _changes(config, shortest_frames)
        self._fades: SceneDetector | None = None
        if config.fades:
            # The command line adds what comes after a last fade out, the library does not unless it is asked.
            self._fades = ThresholdDetector(
                threshold=config.fade_threshold,
                min_scene_len=shortest_frames,
                add_final_scene=True,
                min_out_length=self._timecode(config.min_fade_s),
            )
        self._fade_threshold = config.fade_threshold
        self._score = _ContentScore()
        self.num_frames = 0

    @property
    def look_ahead_frames(self) -> int:
        """So many frames after a cut it is known, but for fades and for cuts that the content detector merges."""
        return min(int(self._changes.event_buffer_length), MAX_LOOK_AHEAD_FRAMES)

    def add(self, bgr: Frames, exactly: Callable[[int], Frames]) -> list[tuple[int, list[int]]]:
        """Take the next frames; gives the first frames of shots that are known from one of these on.

        Args:
            bgr: (N, H, W, 3) at `detection_size`, contiguous.
            exactly: gives the frame at a place of `bgr` as OpenCV makes it, asked for where a fade hangs on a rounding.

        Returns:
            (the frame with which they are known, the cuts that lie at or before it), both in order.
        """
        start, self.num_frames = self.num_frames, self.num_frames + len(bgr)
        found = self._changes.add(start, self._score(bgr), self._timecode_of)
        if self._fades is not None:
            for place, frame in enumerate(bgr):
                level = _mean(frame)
                if abs(level - self._fade_threshold) < ROUNDING_LEVELS:
                    level = _mean(exactly(place))
                number = start + place
                cuts = self._fades.process_frame(self._timecode_of(number), np.float64(level))
                found.setdefault(number, []).extend(cuts)
        return [(number, self._numbers(found[number])) for number in sorted(found) if found[number]]

    def finish(self) -> list[int]:
        """After the last frame: the first frames of shots that only the end decides."""
        if self.num_frames == 0:
            return []
        end = self._timecode_of(self.num_frames - 1)
        found = self._changes.finish(end)
        if self._fades is not None:
            found = found + self._fades.post_process(end)
        return self._numbers(found)

    def _timecode_of(self, number: int) -> FrameTimecode:
        return FrameTimecode(number, fps=self._fps)

    def _timecode(self, seconds: float) -> FrameTimecode:
        return FrameTimecode(f"{seconds}s", fps=self._fps)

    def _numbers(self, found: list[FrameTimecode]) -> list[int]:
        return sorted({cut.frame_num for cut in found if 0 < cut.frame_num < self.num_frames})


class _ContentScore:
    """PySceneDetect's measure of how much a frame differs from the one before, to the last bit.

    The mean over hue, saturation and value of the mean absolute difference (`ContentDetector`, default weights).
    """

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, bgr: Frames) -> list[float]:
        """Scores of consecutive frames (N, H, W, 3)."""
        count, height, width = bgr.shape[:3]
        # One tall picture: neither step looks at more than one pixel.
        hsv = np.empty(((count + 1) * height, width, 3), np.uint8)
        cv2.cvtColor(bgr.reshape(-1, width, 3), cv2.COLOR_BGR2HSV, dst=hsv[height:])
        hsv[:height] = hsv[height : 2 * height] if self._last is None else self._last
        self._last = hsv[-height:].copy()
        steps = cv2.absdiff(hsv[height:], hsv[:-height])
        pixels = float(height * width)
        scores = []
        for top in range(0, count * height, height):
            hue, saturation, value = (total / pixels for total in cv2.sumElems(steps[top : top + height])[:3])
            scores.append((hue + saturation + value) / 3.0)
        return scores


def _mean(bgr: Frames) -> float:
    return float(sum(cv2.sumElems(bgr)[:3]) / bgr.size)


Found = dict[int, list[FrameTimecode]]
"""Cuts by the number of the frame with which they are known."""


class _Changes(Protocol):
    @property
    def event_buffer_length(self) -> int: ...

    def add(self, start: int, scores: list[float], timecode_of: Callable[[int], FrameTimecode]) -> Found: ...

    def finish(self, end: FrameTimecode) -> list[FrameTimecode]: ...


class _AdaptiveOnScores(AdaptiveDetector):  # type: ignore[misc, unused-ignore]
    """The detector, given scores in place of frames.

    A frame that changes too little to be a cut is none whatever its neighbours do. So the detector is asked only about
    the others, each with its neighbours.
    """

    _recent: list[float]

    def add(self, start: int, scores: list[float], timecode_of: Callable[[int], FrameTimecode]) -> Found:
        width = self.window_width
        self._recent = [*self._recent, *scores] if start else scores
        first = start + len(scores) - len(self._recent)
        if self._last_cut is None:
            self.process_frame(timecode_of(0), scores[0])
        found: Found = {}
        for place in range(width, len(self._recent) - width):
            if self._recent[place] >= self.min_content_val:
                window = self._recent[place - width : place + width + 1]
                asked = timecode_of(first + place)  # of the others the detector reads only the scores
                self._buffer = [(asked, score) for score in window[:-1]]
                if cuts := self.process_frame(asked, window[-1]):
                    found[first + place + width] = cuts
        self._recent = self._recent[-2 * width :]
        return found

    def finish(self, end: FrameTimecode) -> list[FrameTimecode]:
        return list(self.post_process(end))

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: float) -> float:
        return frame_img


class _ContentOnScores(ContentDetector):  # type: ignore[misc, unused-ignore]
    """The detector, given scores in place of frames."""

    def add(self, start: int, scores: list[float], timecode_of: Callable[[int], FrameTimecode]) -> Found:
        numbers = range(start, start + len(scores))
        found = zip(numbers, scores, strict=True)
        return {number: self.process_frame(timecode_of(number), score) for number, score in found}

    def finish(self, end: FrameTimecode) -> list[FrameTimecode]:
        return list(self.post_process(end))

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: float) -> float:
        return frame_img


def _changes(config: ShotConfig, shortest_frames: int) -> _Changes:
    if config.detector == "adaptive":
        return _AdaptiveOnScores(
            adaptive_threshold=config.threshold, min_scene_len=shortest_frames, min_content_val=config.min_content
        )
    return _ContentOnScores(threshold=config.threshold, min_scene_len=shortest_frames)
