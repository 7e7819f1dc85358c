"""One part of the files of a curation: each decoded once, its shots measured; `merge` decides about all of them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue

from components import manifest, progress, store, tables
from components.config import CurateConfig
from components.curate import ledger
from components.curate.analysed import AnalysedFiles
from components.curate.analysis import Row, Task, analyse_safely, crashed_row, rejected_row
from components.curate.scores import neural_text
from components.curate.workers import map_files
from components.errors import KinoflowError
from components.manifest import Manifest

logger = logging.getLogger(__name__)

KIND = "shots"
TABLE = "shots.parquet"
VIDEOS_KIND = "videos"
VIDEOS_TABLE = "videos.parquet"
ROWS_AT_ONCE = 4096
"""Rows turn into columns, which take a tenth of the memory, when there are this many."""


class PartReport(BaseModel):
    """What one part holds; also the facts stored with its table."""

    model_config = ConfigDict(frozen=True)
    part: int
    parts: int
    sources: int
    shots: int
    manifest_digest: str = ""


def curate_part(config: CurateConfig, videos: str, objects: str, out: str, part: int, parts: int) -> PartReport:
    """Find and measure the shots of one part of the ingested files, and publish them, not yet decided.

    Args:
        config: shot detection and scores; thresholds, captions' rule and split are not asked.
        videos: URI prefix that `ingest` published.
        objects: URI prefix of the content-addressed objects.
        out: URI prefix of the published table.
        part: which one, from 0.
        parts: how many there are; `merge` wants them all.

    Raises:
        KinoflowError: there is no such part, nothing is published at `videos`, or nothing has a caption.
    """
    if not 0 <= part < parts:
        raise KinoflowError(f"There is no part {part} of {parts}; parts count from 0.")
    source, table = read_videos(videos)
    settings, inputs = recorded(config, part, parts), inputs_of(config, source)
    found = manifest.reusable(out, KIND, config=settings, inputs=inputs)
    if found is None:
        ledger.check_captions(config, videos, table)
        mine = deal(table, parts)[part]
        with manifest.publish(out, KIND, config=settings, inputs=inputs) as publication:
            shots = analyse_files(config, mine, objects)
            tables.write(shots, publication.directory / TABLE, tables.CLIPS)
            count = len(shots.filter(pl.col("shot_index") >= 0))
            report = PartReport(part=part, parts=parts, sources=len(mine), shots=count)
            publication.facts.update(report.model_dump(mode="json", exclude={"manifest_digest"}))
        found = publication.manifest
        assert found is not None
    report = PartReport.model_validate({**found.facts, "manifest_digest": found.digest})
    logger.info("%d shots of %d files in %s", report.shots, report.sources, out)
    return report


def read_videos(videos: str) -> tuple[Manifest, pl.DataFrame]:
    """The table that `ingest` published, and its manifest."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        source = manifest.fetch(videos, Path(scratch), [VIDEOS_TABLE], kind=VIDEOS_KIND)
        return source, tables.read(Path(scratch) / VIDEOS_TABLE, tables.VIDEOS)


def recorded(config: CurateConfig, part: int, parts: int) -> dict[str, JsonValue]:
    """What decides the rows of a part, for its manifest; a changed threshold makes no part anew."""
    settings = config.model_dump(mode="json", exclude={"seed", "rules", "eval_share", "max_failed_share", "workers"})
    return {"settings": settings, "part": part, "parts": parts}


def inputs_of(config: CurateConfig, videos: Manifest) -> dict[str, str]:
    """What else decides the rows of a part: the files, and weights that are looked at them with.

    Raises:
        ModelUnusable: weights that the configuration asks for are not there.
    """
    weights = {"text_detector": neural_text.digest()} if config.text_detector == "neural" else {}
    return {"videos": videos.digest, **weights}


def deal(videos: pl.DataFrame, parts: int) -> list[pl.DataFrame]:
    """Every source in exactly one part, the parts of about equal length; the table's order changes nothing.

    Longest first, there and back again: what the first part gets more in one round it gets less in the next.
    """
    ordered = videos.sort(pl.col("duration_s").fill_null(0.0), pl.col("source_id"), descending=[True, False])
    places = pl.int_range(pl.len(), dtype=pl.Int64)
    place, rounds = places % parts, places // parts
    numbered = ordered.with_columns(pl.when(rounds % 2 == 0).then(place).otherwise(parts - 1 - place).alias("_part"))
    return [
        numbered.filter(pl.col("_part") == part).drop("_part").sort("source_id") for part in range(parts)
    ]  # fmt: skip


def analyse_files(config: CurateConfig, videos: pl.DataFrame, objects: str) -> pl.DataFrame:
    """Rows of all shots of the given files, sorted by clip id, of the `clips` schema; files known before are not read.

    Args:
        config: how files are looked at, and by how many processes.
        videos: rows of the `videos` schema.
        objects: URI prefix of the content-addressed objects.
    """
    analysed = AnalysedFiles(objects, config)
    ingested = videos.filter(pl.col("outcome") == "ingested")
    rejected = videos.filter(pl.col("outcome") != "ingested")
    found = list(analysed.find(_present(ingested, objects) if store.list_objects(analysed.uri) else ingested.clear()))
    known = {source_id for shots in found for source_id in shots["source_id"].unique()}
    columns = _Columns(found)
    columns.add([row for v in rejected.iter_rows(named=True) for row in [rejected_row(v, v["reason"], v["detail"])]])
    todo = ingested.filter(~pl.col("source_id").is_in(list(known)))
    tasks = _Tasks(todo, objects, config)
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(tasks)))
    if known:
        logger.info("%d of %d files were looked at before", len(known), len(ingested))
    with progress.task("curate", len(ingested)) as task:
        task.update(len(known))
        for index, rows in map_files(analyse_safely, tasks, workers, crashed_row):
            video = tasks[index].video
            analysed.add(video, rows)
            columns.add(rows)
            task.advance(note=repr(video["path"]))
    analysed.close()
    return columns.table().sort("clip_id")


def _present(videos: pl.DataFrame, objects: str) -> pl.DataFrame:
    """Those whose object is still there: what is lost must become a row that says so."""
    sizes = {item.key: item.size_bytes for item in store.list_objects(objects)}
    there = [sizes.get(key) == size for key, size in videos.select("object_key", "size_bytes").iter_rows()]
    return videos.filter(pl.Series(there, dtype=pl.Boolean))


class _Tasks(Sequence[Task]):
    """Tasks made when they are asked for: a table of a million files is small, a million dictionaries are not."""

    def __init__(self, videos: pl.DataFrame, objects: str, config: CurateConfig) -> None:
        self._videos, self._objects, self._config = videos, objects, config

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Task:  # type: ignore[override]
        return Task(self._videos.row(index, named=True), self._objects, self._config)


class _Columns:
    """Collects rows as columns."""

    def __init__(self, tables_: list[pl.DataFrame]) -> None:
        self._tables, self._rows = tables_, list[Row]()

    def add(self, rows: list[Row]) -> None:
        self._rows += rows
        if len(self._rows) >= ROWS_AT_ONCE:
            self._turn()

    def table(self) -> pl.DataFrame:
        self._turn()
        return pl.concat(self._tables)

    def _turn(self) -> None:
        self._tables.append(tables.frame(self._rows, tables.CLIPS))
        self._rows = []
