"""Where text is written across a picture: a classical detector of lines of strokes.

Letters are strokes: thin, of strong contrast, many side by side at one height. A morphological top-hat keeps what
is thinner than a stroke may be and drops plain shapes; closing joins the strokes of a line; a line counts when it
is a filled band, wider than high, that a horizontal scan crosses as often as it would cross letters.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

GRID = (32, 32)
"""Rows and columns of the coarse mask that a picture's text is reported on."""

STROKE_CONTRASTS = (20, 40, 80)
"""Grey levels between a stroke and the ground it lies on; each is tried, as a busy ground needs the higher ones."""
STROKE_SHARE = 0.06
"""Thickest stroke, as a share of the short side."""
LINE_HEIGHT_SHARE = (0.03, 0.3)
"""Height of a line of text, as a share of the short side."""
MIN_LINE_HEIGHT_PX = 5
MIN_ASPECT = 2.0
MIN_BAND_FILL = 0.7
INK_SHARE = (0.12, 0.75)
MIN_CROSSINGS_PER_HEIGHT = 0.7
MIN_STROKES = 4
MIN_STROKE_PIXELS = 6
"""Less than the least ink in the smallest line."""


def text_mask(grey: NDArray[np.uint8]) -> Mask:
    """Cells of a coarse grid over the picture that lines of text lie in.

    Args:
        grey: (H, W) uint8 luma.

    Returns:
        `GRID` bool; its mean is the share of the picture that text covers.
    """
    rows, columns = GRID
    height, width = grey.shape
    mask = np.zeros(GRID, bool)
    for left, top, right, bottom in text_lines(grey):
        first_row, last_row = round(rows * top / height), max(round(rows * bottom / height), 1)
        first_column, last_column = round(columns * left / width), max(round(columns * right / width), 1)
        mask[min(first_row, last_row - 1) : last_row, min(first_column, last_column - 1) : last_column] = True
    return mask


def text_lines(grey: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of lines of text in pixels, light on dark and dark on light."""
    short_px = min(grey.shape)
    kernel_px = max(3, 2 * round(short_px * STROKE_SHARE / 2) + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (kernel_px, kernel_px))
    boxes: list[tuple[int, int, int, int]] = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        relief = cv2.morphologyEx(grey, operation, kernel)
        for contrast in STROKE_CONTRASTS:
            strokes = np.asarray(cv2.threshold(relief, contrast - 1, 1, cv2.THRESH_BINARY)[1], np.uint8)
            if cv2.countNonZero(strokes) < MIN_STROKE_PIXELS:
                break  # higher contrasts have fewer still
            boxes += _lines_of(strokes, kernel_px, short_px)
    return boxes


def _lines_of(strokes: NDArray[np.uint8], kernel_px: int, short_px: int) -> Iterator[tuple[int, int, int, int]]:
    joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, 2 * kernel_px + 1), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8, ltype=cv2.CV_16U)
    lowest, highest = (share * short_px for share in LINE_HEIGHT_SHARE)
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if not max(lowest, MIN_LINE_HEIGHT_PX) <= height <= highest:
            continue
        if width < MIN_ASPECT * height or area < MIN_BAND_FILL * width * height:
            continue
        inside = labels[top : top + height, left : left + width] == label
        if _looks_written(strokes[top : top + height, left : left + width] * inside):
            yield left, top, left + width, top + height


def _looks_written(ink: NDArray[np.uint8]) -> bool:
    height, width = ink.shape
    share = float(ink.mean())
    if not INK_SHARE[0] <= share <= INK_SHARE[1]:
        return False
    middle = ink[height // 5 : height - height // 5]
    crossings = (np.diff(middle, axis=1, prepend=0) == 1).sum(axis=1)
    strokes = float(np.median(crossings))
    return strokes >= MIN_STROKES and strokes >= MIN_CROSSINGS_PER_HEIGHT * width / height
