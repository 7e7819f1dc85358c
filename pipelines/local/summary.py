"""What came of a run: counts, losses, measures and addresses, as `summary.json` and as a table."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue
from rich.console import Console
from rich.table import Table

from components import layout, manifest, store, tables
from components.errors import KinoflowError
from pipelines.config import RunConfig
from pipelines.local.display import duration
from pipelines.waiting import get_json


class Part(BaseModel):
    """Frozen and closed, like everything that is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceCounts(Part):
    """Every source file is ingested or rejected."""

    total: int
    ingested: int
    rejected: int


class ClipCounts(Part):
    """Every clip is kept, or dropped for the reason counted."""

    total: int
    kept: int
    dropped: int
    reasons: dict[str, int]


class StageSummary(Part):
    """One training stage; the seconds are those of its training, not of this run when it had been done before."""

    name: str
    steps: int
    loss_first: float | None
    loss_last: float | None
    seconds: float
    samples_per_s: float | None
    checkpoint: str
    parent_checkpoint: str | None
    mlflow_run_id: str | None


class TrackingSummary(Part):
    """Where the run is found in MLflow."""

    tracking_uri: str
    experiment: str
    parent_run_id: str | None


class Summary(Part):
    """`summary.json`."""

    name: str
    preset: str
    seconds: float
    sources: SourceCounts
    clips: ClipCounts
    stages: tuple[StageSummary, ...]
    evaluation: dict[str, JsonValue]
    promotion: str = ""  # what was decided about the champion of the model registry
    mlflow: TrackingSummary


def make_summary(
    config: RunConfig, name: str, root: str, seconds: float, tracking_uri: str, experiment: str
) -> Summary:
    """Read what the stages published below `root`."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        folder = Path(scratch)
        manifest.fetch(store.join(root, "ingest"), folder, ["videos.parquet"])
        manifest.fetch(store.join(root, "curate"), folder, ["clips.parquet"])
        sources = count_sources(tables.read(folder / "videos.parquet", tables.VIDEOS))
        clips = count_clips(tables.read(folder / "clips.parquet", tables.CLIPS))
    reports = [_read_json(store.join(root, stage.name, layout.REPORT)) for stage in config.stages]
    stages = tuple(_stage_summary(report) for report in reports)
    run_ids = [stage.mlflow_run_id for stage in stages if stage.mlflow_run_id]
    return Summary(
        name=name,
        preset=config.preset,
        seconds=round(seconds, 3),
        sources=sources,
        clips=clips,
        stages=stages,
        evaluation=_read_json(store.join(root, "evaluate", "metrics.json")),
        promotion=manifest.load(store.join(root, "evaluate")).annotations.get(layout.PROMOTION, ""),
        mlflow=TrackingSummary(
            tracking_uri=tracking_uri,
            experiment=experiment,
            parent_run_id=_parent_run_id(tracking_uri, run_ids[-1]) if run_ids else None,
        ),
    )


def count_sources(videos: pl.DataFrame) -> SourceCounts:
    """Outcomes of the videos table."""
    ingested = int((videos["outcome"] == "ingested").sum())
    return SourceCounts(total=videos.height, ingested=ingested, rejected=videos.height - ingested)


def count_clips(clips: pl.DataFrame) -> ClipCounts:
    """Outcomes of the clips table; rows that stand for rejected source files are not clips."""
    cut = clips.filter(pl.col("outcome") != "rejected")
    dropped = cut.filter(pl.col("outcome") == "dropped")
    counted = dropped.group_by("reason").len().sort("reason")
    return ClipCounts(
        total=cut.height,
        kept=cut.height - dropped.height,
        dropped=dropped.height,
        reasons={str(reason): int(count) for reason, count in counted.iter_rows()},
    )


def _stage_summary(report: dict[str, Any]) -> StageSummary:
    return StageSummary(**{name: report[name] or None for name in StageSummary.model_fields})


def _parent_run_id(tracking_uri: str, run_id: str) -> str | None:
    """The pipeline's run above a stage's run, asked of the server; None where there is no server."""
    if not tracking_uri.startswith(("http://", "https://")):
        return None
    answer = get_json(f"{tracking_uri.rstrip('/')}/api/2.0/mlflow/runs/get?run_id={run_id}")
    tags = answer["run"]["data"].get("tags", []) if answer else []
    return next((str(tag["value"]) for tag in tags if tag["key"] == "mlflow.parentRunId"), None)


def _read_json(uri: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(store.read_bytes(uri))
    except ValueError as error:
        raise KinoflowError(f"{uri} is damaged: it is not JSON; run again under another name.") from error
    return data


def collect_outputs(root: str, folder: Path) -> None:
    """Copy what people look at into the run's folder, each file checked: the evaluation, the page about the clips."""
    evaluation = store.join(root, "evaluate")
    manifest.fetch(evaluation, folder, sorted(manifest.load(evaluation).files))
    manifest.fetch(store.join(root, "curate"), folder / "curation", [layout.PAGE])


def print_summary(summary: Summary, folder: Path, console: Console) -> None:
    """A table of the stages, the counts above it and the next places to look below."""
    sources, clips = summary.sources, summary.clips
    reasons = ", ".join(f"{count} {reason}" for reason, count in clips.reasons.items())
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(f"sources: {sources.total} = {sources.ingested} ingested + {sources.rejected} rejected")
    say(f"clips: {clips.total} = {clips.kept} kept + {clips.dropped} dropped ({reasons or 'none'})")
    table = Table("stage", "steps", "loss first", "loss last", "time", "samples/s", box=None)
    table.add_column("checkpoint", overflow="fold")
    for stage in summary.stages:
        table.add_row(
            stage.name, str(stage.steps), _number(stage.loss_first), _number(stage.loss_last),
            duration(stage.seconds), _number(stage.samples_per_s, 1), stage.checkpoint,
        )  # fmt: skip
    console.print(table)
    if summary.promotion:
        say(summary.promotion)
    say(f"done in {duration(summary.seconds)}; look at {folder}/report.html, then at {folder}/")
    say("`kinoflow ui` shows the runs in MLflow, `kinoflow generate` makes videos.")


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
