"""Pack: kept clips become tar shards that any trainer can read, with an index to read any clip at random.

Sources are cut side by side and go into the shards in the order of their clips, so that the same clips give the same
shards whatever the number of workers. Every finished shard is recorded; a killed packing goes on after the last one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from io import BytesIO
from itertools import groupby
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, packed, progress, store, tables
from components.errors import KinoflowError
from components.pack.clips import SourceTask, crashed_source, cut_source
from components.pack.export import open_sora_table
from components.pack.shards import ShardSequence
from components.pack.workers import map_in_order
from components.pack_config import PackConfig
from components.takedown import ANNOTATION as TOMBSTONES
from components.takedown import beside, identity, in_force, meets

logger = logging.getLogger(__name__)

CLIPS_KIND, CLIPS_TABLE = "clips", "clips.parquet"
CSV_FILE, PARQUET_FILE = "dataset.csv", "dataset.parquet"
"""The packed clips in Open-Sora 1.1's table form."""
UNREAD = ("embedding", "phash")
"""Columns of the clips table that are large and not told."""


class PackReport(BaseModel):
    """The ledger of one packing; also the facts stored with the shards.

    `clips == packed + failed + skipped` (the kept clips of the table), `packed == copied + encoded + pictures`. Hours
    are those of videos.
    """

    model_config = ConfigDict(frozen=True)
    clips: int
    packed: int
    failed: int
    skipped: int
    reasons: dict[str, int]
    copied: int
    encoded: int
    pictures: int
    shards: int
    size_bytes: int
    hours: float
    dataset_digest: str
    manifest_digest: str = ""


def pack(config: PackConfig, clips: str, objects: str, out: str, skip: Collection[str] = ()) -> PackReport:
    """Cut the kept clips of a clips table into tar shards and publish them.

    Args:
        config: Size of the shards, encoding.
        clips: URI prefix that curation published.
        objects: URI prefix of the content-addressed sources.
        out: URI prefix of the shards; left as it is when it was made from the same things already.
        skip: Ids of kept clips that are not to be packed, beside those that tombstones name.

    Raises:
        KinoflowError: Nothing is published at `clips`, no clip is kept, or more clips failed than the config allows.
    """
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        source = manifest.fetch(clips, Path(scratch), [CLIPS_TABLE], kind=CLIPS_KIND)
        table = tables.scan(Path(scratch) / CLIPS_TABLE, tables.CLIPS)
        kept = table.filter(pl.col("outcome") == "kept").select(pl.exclude(UNREAD)).sort("clip_id").collect()
    if kept.is_empty():
        raise KinoflowError(f"{clips} keeps no clip; loosen the curation rules or add videos.")
    recorded = config.model_copy(update={"workers": None, "max_failed_share": 1.0})  # they change nothing in the result
    inputs = {"clips": source.digest}
    taken = kept.filter(meets(kept, [each.tombstone.rules for each in in_force(beside(objects))]))
    left_out = sorted({*skip, *taken["clip_id"]} & set(kept["clip_id"]))
    inputs |= identity(left_out)
    found = manifest.reusable(out, packed.KIND, config=recorded, inputs=inputs)
    if found is None:
        sequence = ShardSequence(out, recorded, inputs)
        index = _index(config, kept, objects, left_out, sequence)
        _check_failures(config, clips, index)
        told = open_sora_table(index, kept)
        files = {
            packed.INDEX_FILE: _parquet(index),
            PARQUET_FILE: _parquet(told),
            CSV_FILE: told.write_csv().encode(),
        }
        found = manifest.publish_files(
            out,
            packed.KIND,
            {name: store.BytesContent(data) for name, data in files.items()},
            config=recorded,
            inputs=inputs,
            facts=_ledger(index, sequence, source.digest).model_dump(mode="json", exclude={"manifest_digest"}),
            annotations={"clips": clips, "objects": objects, TOMBSTONES: beside(objects)},
            others=sequence.entries,
        )
        sequence.tidy()
    report = PackReport.model_validate({**found.facts, "manifest_digest": found.digest})
    logger.info("packed %d of %d clips in %d shards into %s", report.packed, report.clips, report.shards, out)
    return report


def _index(
    config: PackConfig, kept: pl.DataFrame, objects: str, left_out: list[str], sequence: ShardSequence
) -> pl.DataFrame:
    """Fill the shards; the index of all kept clips."""
    for clip_id in kept["clip_id"]:
        packed.member_name(clip_id, "json")
    last = sequence.resume()
    wanted = kept.filter((pl.col("clip_id") > last) & ~pl.col("clip_id").is_in(left_out))
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch, progress.task("pack", len(kept)) as task:
        task.update(len(kept) - len(wanted), f"{len(sequence)} shards")
        tasks = _tasks(wanted, objects, config, Path(scratch))
        workers = min(config.workers or os.cpu_count() or 1, max(1, wanted["source_id"].n_unique()))
        with sequence.writing(Path(scratch)):
            for source, pieces in map_in_order(cut_source, tasks, workers, crashed_source):
                for clip, piece in zip(source.clips, pieces, strict=True):
                    sequence.add(clip, piece)
                    task.advance(note=f"{len(sequence)} shards")
                shutil.rmtree(source.folder, ignore_errors=True)
    taken_down = {"outcome": "skipped", "reason": "taken_down", "detail": "It was to be left out."}
    skipped = tables.frame([{"clip_id": clip_id, **taken_down} for clip_id in left_out], packed.INDEX)
    index = pl.concat([sequence.table(), skipped]).sort("clip_id")
    assert index["clip_id"].equals(kept["clip_id"]), "every kept clip is in exactly one row"
    return index


def _tasks(clips: pl.DataFrame, objects: str, config: PackConfig, scratch: Path) -> Iterator[SourceTask]:
    rows = clips.iter_rows(named=True)
    for number, (_, group) in enumerate(groupby(rows, key=lambda row: row["source_id"])):
        yield SourceTask(list(group), objects, config, scratch / str(number))


def _check_failures(config: PackConfig, clips: str, index: pl.DataFrame) -> None:
    failed = index.filter(pl.col("outcome") == "failed")
    tried = len(index) - len(index.filter(pl.col("outcome") == "skipped"))
    if len(failed) and (len(failed) == tried or len(failed) / tried > config.max_failed_share):
        first = failed.row(0, named=True)
        counts = ", ".join(f"{count} × {reason}" for reason, count in _reasons(failed).items())
        raise KinoflowError(
            f"{len(failed)} of {tried} clips of {clips} could not be cut ({counts}; first: {first['clip_id']}: "
            f"{first['detail']}) which is more than max_failed_share {config.max_failed_share:g} allows; check the "
            "objects prefix, or curate the videos again."
        )


def _ledger(index: pl.DataFrame, sequence: ShardSequence, dataset_digest: str) -> PackReport:
    outcomes = Counter(index["outcome"])
    methods = Counter(index["method"].drop_nulls())
    assert sum(methods.values()) == outcomes["packed"], "every packed clip was made in one way"
    left_out = index.filter(pl.col("outcome") != "packed")
    assert left_out["reason"].null_count() == 0, "whatever is left out has a reason"
    hours = index.select((pl.col("num_frames") / pl.col("fps")).sum()).item() / 3600
    return PackReport(
        clips=len(index),
        packed=outcomes["packed"],
        failed=outcomes["failed"],
        skipped=outcomes["skipped"],
        reasons=_reasons(left_out),
        copied=methods["copy"],
        encoded=methods["encode"],
        pictures=methods["as_is"],
        shards=len(sequence),
        size_bytes=sequence.size_bytes,
        hours=round(float(hours), 6),
        dataset_digest=dataset_digest,
    )


def _reasons(rows: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(Counter(rows["reason"]).items()))


def _parquet(table: pl.DataFrame) -> bytes:
    data = BytesIO()
    table.write_parquet(data, compression="zstd", statistics=True)
    return data.getvalue()
