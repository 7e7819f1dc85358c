"""Curate: ingested files become clips, each kept or dropped for one reason.

Every frame is decoded once; shot detection and all measures see it in that pass. Decisions are thresholds on the
measured columns. The ledger adds up: sources = with shots + rejected, shots = kept + dropped.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, progress, tables
from components.config import CurateConfig
from components.curate.analysis import Row, Task, analyse_safely, crashed_row, rejected_row
from components.curate.rules import apply_rules
from components.curate.split import assign_split
from components.curate.workers import map_files
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

KIND = "clips"
TABLE = "clips.parquet"
VIDEOS_KIND = "videos"
VIDEOS_TABLE = "videos.parquet"


class CurateReport(BaseModel):
    """The ledger of one curation; also the facts stored with the table.

    `sources == sources_with_shots + sources_rejected`, `shots == kept + dropped`, `kept == train + eval`. Hours are
    those of videos; images count no time.
    """

    model_config = ConfigDict(frozen=True)
    sources: int
    sources_with_shots: int
    sources_rejected: int
    rejected_reasons: dict[str, int]
    shots: int
    kept: int
    dropped: int
    dropped_reasons: dict[str, int]
    train: int
    eval: int
    kept_videos: int
    kept_images: int
    decoded_frames: int
    hours: float
    kept_hours: float
    manifest_digest: str = ""


def curate(config: CurateConfig, videos: str, objects: str, out: str) -> CurateReport:
    """Find, measure, caption and decide the clips of all ingested files, and publish the `clips` table.

    Args:
        config: shot detection, thresholds, captions, split.
        videos: URI prefix that `ingest` published.
        objects: URI prefix of the content-addressed objects.
        out: URI prefix of the published table.

    Raises:
        KinoflowError: nothing is published at `videos`, nothing has a caption, more files failed than the config
            allows, or no clip is left.
    """
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        source = manifest.fetch(videos, Path(scratch), [VIDEOS_TABLE], kind=VIDEOS_KIND)
        table = tables.read(Path(scratch) / VIDEOS_TABLE, tables.VIDEOS)
    # The number of processes changes nothing in the result.
    recorded = config.model_copy(update={"workers": None})
    inputs = {"videos": source.digest}
    found = manifest.reusable(out, KIND, config=recorded, inputs=inputs)
    if found is None:
        _require_captions(config, videos, table)
        clips = _clips(config, table, objects)
        _check_failures(config, table, clips)
        with manifest.publish(out, KIND, config=recorded, inputs=inputs) as publication:
            tables.write(clips, publication.directory / TABLE, tables.CLIPS)
            facts = _ledger(table, clips).model_dump(mode="json", exclude={"manifest_digest"})
            publication.facts.update(facts)
        found = publication.manifest
        assert found is not None
    report = CurateReport.model_validate({**found.facts, "manifest_digest": found.digest})
    logger.info("kept %d of %d shots of %d files in %s", report.kept, report.shots, report.sources, out)
    _require_kept(report, out)
    return report


def _clips(config: CurateConfig, videos: pl.DataFrame, objects: str) -> pl.DataFrame:
    """The whole table, sorted by clip id: measured, decided, split."""
    rows: list[Row] = []
    tasks: list[Task] = []
    for video in videos.sort("source_id").iter_rows(named=True):
        if video["outcome"] == "ingested":
            tasks.append(Task(video, objects, config))
        else:
            rows.append(rejected_row(video, video["reason"], video["detail"]))
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(tasks)))
    with progress.task("curate", len(tasks)) as task:
        for index, clips in map_files(analyse_safely, tasks, workers, crashed_row):
            rows += clips
            task.advance(note=repr(tasks[index].video["path"]))
    table = tables.frame(rows, tables.CLIPS).sort("clip_id")
    decided = apply_rules(table, config.rules, caption_required=config.captions.required)
    return tables.with_caption_digests(assign_split(decided, config.seed, config.eval_share))


def _require_captions(config: CurateConfig, videos: str, table: pl.DataFrame) -> None:
    """Without any caption every clip would be dropped: better said before hours of decoding."""
    ingested = table.filter(pl.col("outcome") == "ingested")
    captioned = ingested.filter(pl.col("caption").is_not_null() | pl.col("caption_shots").is_not_null())
    if config.captions.required and len(ingested) and captioned.is_empty():
        raise KinoflowError(
            f"There are no captions at all in {videos}: none of its {len(ingested)} files has one; put a .txt or .json "
            "of the same name beside each video, list captions in a table's column 'text', or set captions.required "
            "to false."
        )


def _check_failures(config: CurateConfig, videos: pl.DataFrame, clips: pl.DataFrame) -> None:
    ingested = videos.filter(pl.col("outcome") == "ingested")["source_id"]
    failed = clips.filter((pl.col("outcome") == "rejected") & pl.col("source_id").is_in(ingested.to_list()))
    if len(failed) and (len(failed) == len(ingested) or len(failed) / len(ingested) > config.max_failed_share):
        first = failed.row(0, named=True)
        raise KinoflowError(
            f"{len(failed)} of {len(ingested)} ingested files give no clips ({_counts(failed)}; first: "
            f"{first['path']!r}: {first['detail']}) which is more than max_failed_share {config.max_failed_share:g} "
            "allows; check the source and the objects prefix."
        )


def _require_kept(report: CurateReport, out: str) -> None:
    if report.kept == 0:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in report.dropped_reasons.items())
        raise KinoflowError(
            f"No clip is left of {report.shots} shots ({reasons}); loosen the rules, or look at {out}/{TABLE} to see "
            "what was measured."
        )


def _ledger(videos: pl.DataFrame, clips: pl.DataFrame) -> CurateReport:
    shots = clips.filter(pl.col("shot_index") >= 0)
    rejected = clips.filter(pl.col("outcome") == "rejected")
    kept = shots.filter(pl.col("outcome") == "kept")
    dropped = shots.filter(pl.col("outcome") == "dropped")
    with_shots = shots["source_id"].n_unique()
    assert len(videos) == with_shots + len(rejected), "every source has shots or is rejected"
    assert set(videos["source_id"]) == set(clips["source_id"]), "no source is lost or invented"
    assert len(shots) == len(kept) + len(dropped), "every shot is kept or dropped"
    assert clips["clip_id"].n_unique() == len(clips), "clip ids are unique"
    assert clips.filter(pl.col("outcome") != "kept")["reason"].null_count() == 0, "whatever is left out has a reason"
    assert kept["split"].null_count() == 0, "every kept clip is on one side"
    seconds = pl.col("end_s") - pl.col("start_s")
    return CurateReport(
        sources=len(videos),
        sources_with_shots=with_shots,
        sources_rejected=len(rejected),
        rejected_reasons=_reasons(rejected),
        shots=len(shots),
        kept=len(kept),
        dropped=len(dropped),
        dropped_reasons=_reasons(dropped),
        train=len(kept.filter(pl.col("split") == "train")),
        eval=len(kept.filter(pl.col("split") == "eval")),
        kept_videos=len(kept.filter(pl.col("media") == "video")),
        kept_images=len(kept.filter(pl.col("media") == "image")),
        decoded_frames=int(shots["num_frames"].sum()),
        hours=round(float(shots.select(seconds.sum()).item()) / 3600, 6),
        kept_hours=round(float(kept.select(seconds.sum()).item()) / 3600, 6),
    )


def _reasons(table: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(Counter(table["reason"].to_list()).items()))


def _counts(table: pl.DataFrame) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in _reasons(table).items())
