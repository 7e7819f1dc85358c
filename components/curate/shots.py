"""Shot boundaries by PySceneDetect's detectors, fed with frames that were decoded for all measures at once.

The detectors decide; what they decide on is computed here, the same numbers several times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

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

    def add(self, bgr: Frames, exactly: Callable[[], Frames]) -> list[int]:
        """Take the next frame; gives the first frames of shots that are known from now on.

        They are in order within one answer, and lie at or before this frame.

        Args:
            bgr: (H, W, 3) at `detection_size`.
            exactly: gives the same as OpenCV makes it, asked for where a fade hangs on a rounding.
        """
        position = FrameTimecode(self.num_frames, fps=self._fps)
        self.num_frames += 1
        found = self._changes.process_frame(position, self._score(bgr))
        if self._fades is not None:
            level = _mean(bgr)
            if abs(level - self._fade_threshold) < ROUNDING_LEVELS:
                level = _mean(exactly())
            found = found + self._fades.process_frame(position, np.float64(level))
        return self._numbers(found)

    def finish(self) -> list[int]:
        """After the last frame: the first frames of shots that only the end decides."""
        if self.num_frames == 0:
            return []
        end = FrameTimecode(self.num_frames - 1, fps=self._fps)
        found = self._changes.post_process(end)
        if self._fades is not None:
            found = found + self._fades.post_process(end)
        return self._numbers(found)

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

    def __call__(self, bgr: Frames) -> float:
        hsv = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV), np.uint8)
        last, self._last = self._last, hsv
        if last is None:
            return 0.0
        pixels = float(hsv.shape[0] * hsv.shape[1])
        hue, saturation, value = (total / pixels for total in cv2.sumElems(cv2.absdiff(hsv, last))[:3])
        return (hue + saturation + value) / 3.0


def _mean(bgr: Frames) -> float:
    return float(sum(cv2.sumElems(bgr)[:3]) / bgr.size)


class _AdaptiveOnScores(AdaptiveDetector):  # type: ignore[misc, unused-ignore]
    """The detector, given the score in place of a frame."""

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: float) -> float:
        return frame_img


class _ContentOnScores(ContentDetector):  # type: ignore[misc, unused-ignore]
    """The detector, given the score in place of a frame."""

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: float) -> float:
        return frame_img


def _changes(config: ShotConfig, shortest_frames: int) -> SceneDetector:
    if config.detector == "adaptive":
        return _AdaptiveOnScores(
            adaptive_threshold=config.threshold, min_scene_len=shortest_frames, min_content_val=config.min_content
        )
    return _ContentOnScores(threshold=config.threshold, min_scene_len=shortest_frames)
