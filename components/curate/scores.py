"""What is measured on the pixels of a clip, once; thresholds are applied to the numbers afterwards.

All measures but text are taken on pictures of at most `long_side_px` pixels, text on up to twice that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from components.curate.fingerprint import fingerprint, thumbnail
from components.curate.text import Mask, text_mask

Frame = NDArray[np.uint8]

TEXT_SCALE = 2
TEXT_STRIDE_FRAMES = 4
"""Text stays for many frames: every fourth is looked at."""
TEXT_MIN_PRESENCE = 0.4
"""Share of the looked-at frames of a shot in which a spot must hold text; moving textures do not."""

BLACK_LUMA = 32
BLACK_AREA_SHARE = 0.98
BLACK_MAX_STD = 10.0
"""A dark frame with one small bright thing in it is not black."""

REFERENCE_LONG_SIDE_PX = 256
MIN_FLOW_SIDE_PX = 32
"""The flow algorithm wants room for its patches."""


@dataclass(frozen=True)
class ShotScores:
    """Measures of one shot; see the columns of the same names.

    Attributes:
        motion: mean optical-flow magnitude (DIS) over pixels and frame intervals, in pixels per frame of a
            picture 256 px on its long side; None for a single frame.
        sharpness: variance of the Laplacian in the sharpest colour channel, mean over frames.
        brightness: luma (0 to 255), mean over pixels and frames.
        contrast: standard deviation in the colour channel of most contrast (0 to 128), mean over frames; luma alone
            would call a picture of equally light colours empty.
        black_share: share of black frames.
        text_share: share of the picture that holds text most of the time.
        phash: what near-duplicates are found by, see `fingerprint`.
    """

    motion: float | None
    sharpness: float
    brightness: float
    contrast: float
    black_share: float
    text_share: float
    phash: bytes


class FrameScorer:
    """Takes the frames of one video in order, keeps about 0.3 KB for each, and sums them up per shot."""

    def __init__(self, long_side_px: int) -> None:
        self.long_side_px = long_side_px
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._motion: list[float] = []
        self._sharpness: list[float] = []
        self._brightness: list[float] = []
        self._contrast: list[float] = []
        self._black: list[bool] = []
        self._text: dict[int, Mask] = {}
        self._thumbnails: list[Frame] = []
        self._last_grey: Frame | None = None

    @property
    def num_frames(self) -> int:
        """Frames taken so far."""
        return len(self._brightness)

    def add(self, frame: Frame) -> Frame:
        """Measure the next frame, (H, W, 3) RGB; returns it at the size most measures are taken at."""
        if self.num_frames % TEXT_STRIDE_FRAMES == 0:
            self._text[self.num_frames] = text_mask(_grey(frame))
        small = _shrink(frame, self.long_side_px)
        grey = _grey(small)
        contrast = _largest_std(small)
        dark_share = float((grey < BLACK_LUMA).mean())
        self._brightness.append(float(cv2.mean(grey)[0]))
        self._contrast.append(contrast)
        self._black.append(dark_share >= BLACK_AREA_SHARE and contrast < BLACK_MAX_STD)
        self._sharpness.append(_largest_std(cv2.Laplacian(small, cv2.CV_32F)) ** 2)
        self._motion.append(0.0 if self._last_grey is None else self._flow_magnitude(self._last_grey, grey))
        self._thumbnails.append(thumbnail(small))
        self._last_grey = grey
        return small

    def shot(self, start: int, end: int) -> ShotScores:
        """Sum up the frames `start` to `end` (exclusive); motion into the first frame belongs to no shot."""
        span = slice(start, end)
        motions = self._motion[start + 1 : end]
        looked_at = [mask for index, mask in self._text.items() if start <= index < end]
        return ShotScores(
            motion=float(np.mean(motions)) if motions else None,
            sharpness=float(np.mean(self._sharpness[span])),
            brightness=float(np.mean(self._brightness[span])),
            contrast=float(np.mean(self._contrast[span])),
            black_share=float(np.mean(self._black[span])),
            text_share=_lasting_share(looked_at),
            phash=fingerprint(np.stack(self._thumbnails[span])),
        )

    def _flow_magnitude(self, before: Frame, after: Frame) -> float:
        scale = REFERENCE_LONG_SIDE_PX / max(after.shape)
        before, after = _padded(before), _padded(after)
        flow = np.asarray(self._flow.calc(before, after, np.zeros((*after.shape, 2), np.float32)))
        # cv2.magnitude rounds differently with the alignment of its input; the same frames must give the same bytes.
        magnitude = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2)
        return float(np.mean(magnitude, dtype=np.float64) * scale)


def analysis_size(height: int, width: int, long_side_px: int) -> tuple[int, int]:
    """(height, width) to decode at: large enough for text, never larger than the source."""
    scale = min(1.0, TEXT_SCALE * long_side_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrink(frame: Frame, long_side_px: int) -> Frame:
    height, width = frame.shape[:2]
    scale = long_side_px / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _grey(frame: Frame) -> Frame:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def _padded(grey: Frame) -> Frame:
    missing_rows, missing_columns = (max(0, MIN_FLOW_SIDE_PX - side) for side in grey.shape)
    if not missing_rows and not missing_columns:
        return grey
    return np.asarray(cv2.copyMakeBorder(grey, 0, missing_rows, 0, missing_columns, cv2.BORDER_REPLICATE), np.uint8)


def _largest_std(channels: NDArray[Any]) -> float:
    return float(cv2.meanStdDev(channels)[1].max())


def _lasting_share(masks: list[Mask]) -> float:
    """Share of the picture that holds text in most of the looked-at frames."""
    if not masks:
        return 0.0
    return float((np.mean(masks, axis=0) >= TEXT_MIN_PRESENCE).mean())
