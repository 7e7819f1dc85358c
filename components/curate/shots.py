"""Shot boundaries by PySceneDetect's detectors, fed with frames that were decoded for all measures at once."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.detector import SceneDetector

from components.config import ShotConfig

Shot = tuple[int, int]
"""First frame and frame after the last."""


class ShotDetector:
    """Takes the frames of one video in order and says where its shots lie."""

    def __init__(self, config: ShotConfig, fps: float) -> None:
        self._config = config
        self._fps = Fraction(fps).limit_denominator(1_000_000)
        self._detector = _detector(config)
        self._cuts: set[int] = set()
        self._num_frames = 0

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Take the next frame, (H, W, 3) RGB; all frames of a video have one size."""
        position = FrameTimecode(self._num_frames, fps=self._fps)
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        self._cuts.update(cut.frame_num for cut in self._detector.process_frame(position, bgr))
        self._num_frames += 1

    def shots(self) -> list[Shot]:
        """All frames taken so far, divided into shots without gaps; too long ones into equal parts."""
        if self._num_frames == 0:
            return []
        last = FrameTimecode(self._num_frames - 1, fps=self._fps)
        self._cuts.update(cut.frame_num for cut in self._detector.post_process(last))
        inner = sorted(cut for cut in self._cuts if 0 < cut < self._num_frames)
        borders = [0, *inner, self._num_frames]
        longest = max(1, math.floor(self._config.max_shot_s * float(self._fps)))
        return [part for shot in itertools.pairwise(borders) for part in divide(*shot, longest)]


def divide(start: int, end: int, longest: int) -> list[Shot]:
    """Divide a shot into the fewest parts of at most `longest` frames; their lengths differ by one at most."""
    length = end - start
    count = math.ceil(length / longest)
    borders = [start + length * part // count for part in range(count + 1)]
    return list(itertools.pairwise(borders))


def _detector(config: ShotConfig) -> SceneDetector:
    if config.detector == "adaptive":
        return AdaptiveDetector(
            adaptive_threshold=config.threshold,
            min_scene_len=config.min_shot_frames,
            min_content_val=config.min_content,
        )
    return ContentDetector(threshold=config.threshold, min_scene_len=config.min_shot_frames)
