"""Dense optical flow between two pictures, for curation and evaluation alike."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

REFERENCE_LONG_SIDE_PX = 256
"""Motion is told in pixels of a picture of this length, whatever the size it was measured at."""
MOTION_LONG_SIDE_PX = 128
"""The longest side that motion is measured at."""
MIN_FLOW_SIDE_PX = 32
"""The flow algorithm wants room for its patches."""


class DenseFlow:
    """DIS optical flow (Kroeger et al. 2016, arXiv:1603.03590) between two pictures."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def __call__(self, before: Grey, after: Grey) -> NDArray[np.float32]:
        """(H, W, 2) pixels to the right and down; small pictures are padded by their edges."""
        before, after = _padded(before), _padded(after)
        return np.asarray(self._flow.calc(before, after, np.zeros((*after.shape, 2), np.float32)), np.float32)


def motion_magnitude(flow: NDArray[np.float32], long_side_px: int) -> float:
    """Mean length of the flow (H, W, 2) of a picture so long, in pixels of one `REFERENCE_LONG_SIDE_PX` long."""
    # cv2.magnitude rounds differently with the alignment of its input; the same frames must give the same bytes.
    magnitude = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2)
    return float(np.mean(magnitude, dtype=np.float64) * (REFERENCE_LONG_SIDE_PX / long_side_px))


def bounded(grey: Grey, long_side_px: int, short_side_px: int = 1) -> Grey:
    """A picture (H, W) at most so long, made smaller by averaging where it is longer."""
    height, width = grey.shape
    scale = min(1.0, long_side_px / max(height, width))
    size = max(short_side_px, round(width * scale)), max(short_side_px, round(height * scale))
    return (
        grey if size == (width, height) else np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    )


def _padded(grey: Grey) -> Grey:
    missing_rows, missing_columns = (max(0, MIN_FLOW_SIDE_PX - side) for side in grey.shape)
    if not missing_rows and not missing_columns:
        return grey
    return np.asarray(cv2.copyMakeBorder(grey, 0, missing_rows, 0, missing_columns, cv2.BORDER_REPLICATE), np.uint8)
