"""What people look at: a contact sheet of samples and plots of losses."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Frames = NDArray[np.uint8]
LABEL_WIDTH_PX = 230
MARGIN_PX = 6
CELL_HEIGHT_PX = 72
FRAMES_SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """One generated video or picture.

    Attributes:
        task: "text-to-image", "text-to-video" or "image-to-video".
        prompt: the text it was generated from.
        frames: (T, H, W, 3) uint8.
        seed: the seed of its noise.
        reference: (H, W, 3) uint8, the given first frame, if any.
        verdict: what a checker found, by name; empty when nothing was measured.
    """

    task: str
    prompt: str
    frames: Frames
    seed: int
    reference: Frames | None = None
    verdict: dict[str, bool] | None = None


def contact_sheet(samples: Sequence[Sample], path: Path) -> None:
    """Write a PNG with one row per sample: task, prompt, verdict, then evenly spaced frames."""
    rows = [_row(sample) for sample in samples]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def _row(sample: Sample) -> Image.Image:
    frames = sample.frames
    picked = np.unique(np.linspace(0, len(frames) - 1, min(FRAMES_SHOWN, len(frames))).round().astype(int))
    scale = CELL_HEIGHT_PX / frames.shape[1]
    cell = (max(1, round(frames.shape[2] * scale)), CELL_HEIGHT_PX)
    width = LABEL_WIDTH_PX + FRAMES_SHOWN * (cell[0] + MARGIN_PX) + MARGIN_PX
    row = Image.new("RGB", (width, CELL_HEIGHT_PX + 2 * MARGIN_PX), "white")
    draw = ImageDraw.Draw(row)
    lines = [sample.task.upper(), *textwrap.wrap(sample.prompt, 36)[:3]]
    if sample.verdict is not None:
        lines.append("  ".join(("+" if good else "-") + name for name, good in sample.verdict.items() if name != "all"))
    draw.multiline_text((MARGIN_PX, MARGIN_PX), "\n".join(lines), fill="black", spacing=2)
    for column, index in enumerate(picked):
        image = Image.fromarray(frames[index]).resize(cell, Image.Resampling.BICUBIC)
        left = LABEL_WIDTH_PX + column * (cell[0] + MARGIN_PX)
        row.paste(image, (left, MARGIN_PX))
        if column == 0 and sample.reference is not None:
            draw.rectangle(
                (left - 2, MARGIN_PX - 2, left + cell[0] + 1, MARGIN_PX + cell[1] + 1), outline="black", width=2
            )
    return row


def plot_losses(histories: dict[str, list[dict[str, float]]]) -> bytes:
    """A PNG of training loss over steps, one line per stage, stages one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    offset = 0.0
    for name, points in histories.items():
        if not points:
            continue
        steps = [offset + point["step"] for point in points]
        axes.plot(steps, [point["loss"] for point in points], label=name, linewidth=1)
        offset = steps[-1]
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    return _png(figure)


def plot_held_out(losses: dict[str, list[float]], timesteps: Sequence[float]) -> bytes:
    """A PNG of held-out loss over the timestep, one line per bucket."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(timesteps, values, marker="o", markersize=3, linewidth=1, label=name)
    axes.set_xlabel("timestep")
    axes.set_ylabel("held-out loss")
    axes.grid(alpha=0.3)
    if losses:
        axes.legend(fontsize="small")
    return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    return buffer.getvalue()
