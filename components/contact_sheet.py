"""One picture of many clips, for people to look at: a row each, words on the left and frames on the right."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from components.media import Frames

LABEL_WIDTH_PX = 230
MARGIN_PX = 6
CELL_HEIGHT_PX = 72
LINE_CHARS = 36


@dataclass(frozen=True)
class Strip:
    """One row of a contact sheet.

    Attributes:
        lines: words, one line each; a longer one is broken, of a very long one the first three lines are shown.
        frames: (T, H, W, 3) uint8; T may be 0.
        is_first_framed: whether a frame is drawn around the first picture.
    """

    lines: Sequence[str]
    frames: Frames
    is_first_framed: bool = False


def write_sheet(strips: Sequence[Strip], path: Path, *, frames_shown: int) -> None:
    """Write a PNG with a row for each strip (at least one) and at most so many evenly spaced frames in it."""
    rows = [_row(strip, frames_shown) for strip in strips]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path, format="PNG")


def _row(strip: Strip, frames_shown: int) -> Image.Image:
    count, height, width = strip.frames.shape[:3]
    picked = np.unique(np.linspace(0, max(0, count - 1), min(frames_shown, count)).round().astype(int))
    cell = (max(1, round(width * CELL_HEIGHT_PX / max(1, height))), CELL_HEIGHT_PX)
    row_width = LABEL_WIDTH_PX + frames_shown * (cell[0] + MARGIN_PX) + MARGIN_PX
    row = Image.new("RGB", (row_width, CELL_HEIGHT_PX + 2 * MARGIN_PX), "white")
    draw = ImageDraw.Draw(row)
    lines = [part for line in strip.lines for part in textwrap.wrap(line, LINE_CHARS)[:3]]
    draw.multiline_text((MARGIN_PX, MARGIN_PX), "\n".join(lines), fill="black", spacing=2)
    for column, index in enumerate(picked):
        image = Image.fromarray(strip.frames[index]).resize(cell, Image.Resampling.BICUBIC)
        left = LABEL_WIDTH_PX + column * (cell[0] + MARGIN_PX)
        row.paste(image, (left, MARGIN_PX))
        if column == 0 and strip.is_first_framed:
            box = (left - 2, MARGIN_PX - 2, left + cell[0] + 1, MARGIN_PX + cell[1] + 1)
            draw.rectangle(box, outline="black", width=2)
    return row


def jpeg(frame: Frames, quality: int = 80) -> bytes:
    """A picture (H, W, 3) uint8 as a small JPEG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
