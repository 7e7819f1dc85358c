"""What people look at: a contact sheet of samples and plots of losses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.contact_sheet import Strip, write_sheet

Frames = NDArray[np.uint8]
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
    write_sheet([_strip(sample) for sample in samples], path, frames_shown=FRAMES_SHOWN)


def _strip(sample: Sample) -> Strip:
    lines = [sample.task.upper(), sample.prompt]
    if sample.verdict is not None:
        lines.append("  ".join(("+" if good else "-") + name for name, good in sample.verdict.items() if name != "all"))
    return Strip(lines, sample.frames, sample.reference is not None)


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
        axes.legend(loc="upper right")
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
        axes.legend(loc="upper right", fontsize="small")
    return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    return buffer.getvalue()
