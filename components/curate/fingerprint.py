"""What near-duplicates are found by: how a clip's colours go on, coarsely in space and time.

A clip is divided into eight windows of equal length, and each is the mean of its frames at 8 x 8 pixels. Means lose
less than single frames: how the picture looked in any span of the clip can be read from them, so a copy that begins
later or ends earlier can be laid beside its original.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE_PX = 8
NUM_WINDOWS = 8
WINDOW_BYTES = SIDE_PX * SIDE_PX * 3

Frame = NDArray[np.uint8]
Float = NDArray[np.float32]


def thumbnails(frames: Frame) -> Frame:
    """Frames (N, H, W, 3), contiguous, at (N, 8, 8, 3): the mean of what lies in each cell.

    They are laid one above the other: where each gives whole rows, none runs into the next.
    """
    count, height, width = frames.shape[:3]
    if min(height, width) < 2 * SIDE_PX:
        return np.stack([_shrunk(frame, SIDE_PX, SIDE_PX) for frame in frames])
    tall = frames.reshape(-1, width, 3)
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 4 * SIDE_PX:  # the one step that is fast
        height, width = height // 2, width // 2
        tall = _shrunk(tall, count * height, width)
    return _shrunk(tall, count * SIDE_PX, SIDE_PX).reshape(count, SIDE_PX, SIDE_PX, 3)


def _shrunk(frame: Frame, height: int, width: int) -> Frame:
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def fingerprint(thumbnails: NDArray[np.uint8]) -> bytes:
    """Eight windows of a clip, or the picture itself when there is only one.

    Args:
        thumbnails: (num_frames, 8, 8, 3) uint8 RGB, evenly spaced in time.

    Returns:
        uint8 of (windows, 8, 8, 3).
    """
    count = len(thumbnails)
    if count == 1:
        return thumbnails.tobytes()
    sums = np.zeros((count + 1, *thumbnails.shape[1:]), np.float64)
    np.cumsum(thumbnails, axis=0, out=sums[1:])
    # Borders between frames: a window holds the part of a frame that lies in it.
    borders = np.arange(NUM_WINDOWS + 1) * (count / NUM_WINDOWS)
    frame = np.minimum(borders.astype(np.int64), count - 1)
    part = (borders - frame)[:, None, None, None]
    at_borders = sums[frame] + part * (sums[frame + 1] - sums[frame])
    windows = np.diff(at_borders, axis=0) * (NUM_WINDOWS / count)
    return bytes(np.rint(windows).astype(np.uint8).tobytes())


def parse(fingerprints: Sequence[bytes]) -> NDArray[np.uint8]:
    """(n, 8, 192) uint8: windows of n clips; a picture looks the same in all of them."""
    windows = np.empty((len(fingerprints), NUM_WINDOWS, WINDOW_BYTES), np.uint8)
    for index, data in enumerate(fingerprints):
        windows[index] = np.frombuffer(data, np.uint8).reshape(-1, WINDOW_BYTES)
    return windows
