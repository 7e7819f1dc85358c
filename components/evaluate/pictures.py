"""What people look at: a contact sheet of samples and plots of losses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from components.contact_sheet import Strip, write_sheet
from components.evaluate.metrics import headline
from components.evaluate.samples import Sample
from components.held_out import HeldOutLoss

FRAMES_SHOWN = 8


def contact_sheet(samples: Sequence[Sample], path: Path) -> None:
    """Write a PNG with one row per sample: task, prompt, verdict, then evenly spaced frames."""
    write_sheet([_strip(sample) for sample in samples], path, frames_shown=FRAMES_SHOWN)


def _strip(sample: Sample) -> Strip:
    lines = [sample.task.replace("_", " ").upper(), sample.prompt]
    told = headline(sample.task, dict(sample.values))
    if sample.verdict:
        lines.append("  ".join(("+" if good else "-") + name for name, good in sample.verdict.items() if name != "all"))
    elif told is not None:
        lines.append(f"{told} {float(sample.values[told]):.2f}")
    return Strip(lines, sample.frames, 0 in sample.given)


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


def plot_held_out(rows: Sequence[HeldOutLoss]) -> bytes:
    """A PNG of held-out loss over the timestep with its interval, one line per bucket."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        timesteps = [point.timestep for point in row.by_timestep]
        axes.plot(
            timesteps, [p.mean for p in row.by_timestep], marker="o", markersize=3, linewidth=1, label=row.bucket
        )  # fmt: skip
        axes.fill_between(
            timesteps, [p.low for p in row.by_timestep], [p.high for p in row.by_timestep], alpha=0.15, linewidth=0
        )  # fmt: skip
    axes.set_xlabel("timestep")
    axes.set_ylabel("held-out loss")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(loc="upper right", fontsize="small")
    return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    return buffer.getvalue()
