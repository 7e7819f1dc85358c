"""The files people look at: videos, a contact sheet, and a page with the scores."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components import layout, video
from components.evaluate.metrics import METRICS, headline
from components.evaluate.pictures import contact_sheet, plot_held_out, plot_losses
from components.evaluate.samples import Sample
from components.held_out import HeldOutLoss
from components.intervals import Score

SAMPLES, SHEET = "samples", "contact_sheet.png"
ROWS_PER_TASK = 4
"""Of the contact sheet, so that it fits a page."""


@dataclass(frozen=True)
class Shown:
    """One sample as the page has it: bytes in base64, and words."""

    sample: Sample
    data: str

    @property
    def is_video(self) -> bool:
        """Whether it moves."""
        return len(self.sample.frames) > 1

    @property
    def told(self) -> str:
        """The value that speaks for its task."""
        name = headline(self.sample.task, dict(self.sample.values))
        return "" if name is None else f"{name} {float(self.sample.values[name]):.2f}"


def write(
    folder: Path,
    samples: Sequence[Sample],
    *,
    stage: str,
    checkpoint_digest: str,
    scores: Mapping[str, Mapping[str, Score]],
    held_out: Sequence[HeldOutLoss],
    histories: dict[str, list[dict[str, float]]],
    num_saved: int,
    saved_fps: float,
    taken_down_clips: int = 0,
    tombstones: Sequence[str] = (),
) -> None:
    """Write `report.html`, the contact sheet and `samples/`.

    Args:
        folder: to write into.
        samples: of all tasks.
        stage: that the checkpoint ends.
        checkpoint_digest: of its manifest.
        scores: by task and name.
        held_out: one row per bucket.
        histories: logged training losses by stage.
        num_saved: samples of each task that become files.
        saved_fps: of the videos.
        taken_down_clips: that the checkpoint was trained on.
        tombstones: that took them down.
    """
    shown: dict[str, list[Shown]] = defaultdict(list)
    for sample in samples:
        if len(shown[sample.task]) < num_saved:
            path = _save(sample, folder / SAMPLES, len(shown[sample.task]) + 1, saved_fps)
            shown[sample.task].append(Shown(sample, base64.b64encode(path.read_bytes()).decode()))
    if samples:
        contact_sheet(list(_first_rows(shown)), folder / SHEET)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["interval"] = _interval
    page = environment.get_template("report.html.j2").render(
        title="Kinoflow evaluation",
        checkpoint=stage,
        checkpoint_digest=checkpoint_digest,
        taken_down_clips=taken_down_clips,
        tombstones=tombstones,
        scores=scores,
        metrics=METRICS,
        headlines={task: headline(task, dict(row)) for task, row in scores.items()},
        names=[name for name in METRICS if any(name in row for row in scores.values())],
        held_out=held_out,
        held_out_plot=base64.b64encode(plot_held_out(held_out)).decode() if held_out else None,
        loss_plot=base64.b64encode(plot_losses(histories)).decode(),
        samples_by_task=shown,
    )
    (folder / layout.PAGE).write_text(page, encoding="utf-8")


def _interval(score: Score, digits: int = 3) -> str:
    return f"{score.mean:.{digits}f} ({score.low:.{digits}f} to {score.high:.{digits}f})"


def _first_rows(shown: Mapping[str, Sequence[Shown]]) -> Iterator[Sample]:
    for rows in shown.values():
        yield from (row.sample for row in rows[:ROWS_PER_TASK])


def _save(sample: Sample, folder: Path, index: int, fps: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{sample.task}-{index:02d}"
    if len(sample.frames) == 1:
        path = folder / f"{name}.png"
        video.write_image(path, sample.frames[0])
    else:
        path = folder / f"{name}.mp4"
        video.write_video(path, sample.frames, fps)
    return path
