"""Ingest: folders, prefixes, archives and lists of files become content-addressed objects and the `videos` table.

Every file is in exactly one row, either ingested or rejected with a reason. Objects are named by their SHA-256 and
uploaded once; running again over the same files reads none of them, uploads nothing and leaves the published table as
it is. A source that has changed is a new version; the one it replaces stays readable.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, progress, store, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest.downloads import is_url, public_url
from components.ingest.examine import Examiner, Row, Uploads
from components.ingest.known import Known
from components.ingest.sources import SourceFile, list_source
from components.ingest.versions import changes, keep_earlier

logger = logging.getLogger(__name__)

KIND = "videos"
TABLE = "videos.parquet"
DUPLICATE_REASONS = frozenset({"duplicate_file", "duplicate_path"})
PACE = ("parallel_files", "download_attempts", "download_timeout_s")
"""Settings that change how fast the table is made, not what is in it."""
CHUNK_ROWS = 10_000
WAITING_PER_THREAD = 16


class IngestReport(BaseModel):
    """The ledger of one ingestion: `total == ingested + rejected`, `reasons` counts the rejected."""

    model_config = ConfigDict(frozen=True)
    total: int
    ingested: int
    rejected: int
    reasons: dict[str, int]
    manifest_digest: str


class Ledger(BaseModel):
    """Facts stored with the table."""

    model_config = ConfigDict(frozen=True)
    total: int
    ingested: int
    rejected: int
    reasons: dict[str, int]
    videos: int
    images: int
    captioned: int
    size_bytes: int
    hours: float


def ingest(config: IngestConfig, source: str, objects: str, out: str) -> IngestReport:
    """Bring every file of a source into the object store and publish the `videos` table.

    Args:
        config: what is recorded with every file, what one may take, and how many may fail.
        source: what `components.ingest.sources.list_source` understands: a folder, an `s3://` prefix, a table, a list
            of addresses, tar archives, here or on the web.
        objects: URI prefix of the content-addressed objects.
        out: URI prefix of the published table.

    Raises:
        KinoflowError: the source is missing or empty, or more files failed than the config allows.
    """
    _refuse_nesting(source, {"objects": objects, "out": out})
    files = list_source(source)
    with Known(objects, source) as known:
        table = _mark_duplicates(_examine_all(files, config, known, objects))
        ledger = _ledger(table)
        _check_failures(config, source, table)
        found = _publish(config, source, table, ledger, out)
    logger.info("ingested %d of %d files into %s", ledger.ingested, ledger.total, out)
    return IngestReport(
        total=ledger.total,
        ingested=ledger.ingested,
        rejected=ledger.rejected,
        reasons=ledger.reasons,
        manifest_digest=found.digest,
    )


def _publish(config: IngestConfig, source: str, table: pl.DataFrame, ledger: Ledger, out: str) -> manifest.Manifest:
    """Publish the table unless it is there already; another one in its place is kept first."""
    recorded = config.model_copy(update={name: IngestConfig.model_fields[name].default for name in PACE})
    inputs = {"source": _inputs_digest(table)}
    found = manifest.reusable(out, KIND, config=recorded, inputs=inputs)
    if found is not None:
        logger.info("nothing has changed at the source; %s stays as it is", out)
        return found
    earlier = keep_earlier(out, KIND)
    with manifest.publish(out, KIND, config=recorded, inputs=inputs) as publication:
        tables.write(table, publication.directory / TABLE, tables.VIDEOS)
        publication.facts.update(ledger.model_dump(mode="json"))
        publication.annotations["source"] = public_url(source) if is_url(source) else source
        if earlier is not None:
            what = changes(earlier, TABLE, table)
            logger.info("a new version: %s; the one before is at %s", what, earlier.uri)
            publication.annotations |= {"replaces": earlier.digest, "replaced": earlier.uri, "changes": what}
    assert publication.manifest is not None
    return publication.manifest


def _refuse_nesting(source: str, outputs: Mapping[str, str]) -> None:
    """Outputs below the source would be taken for inputs the next time."""
    for name, uri in outputs.items():
        if store.is_s3(source) != store.is_s3(uri):
            continue
        inside = (
            f"{uri.rstrip('/')}/".startswith(f"{source.rstrip('/')}/")
            if store.is_s3(uri)
            else Path(uri).resolve().is_relative_to(Path(source).resolve())
        )
        if inside:
            raise KinoflowError(f"The {name} prefix {uri!r} lies inside the source {source!r}; choose another place.")


def _examine_all(files: list[SourceFile], config: IngestConfig, known: Known, objects: str) -> pl.DataFrame:
    """The rows of all inputs in the order of the source; some thousand are held as Python objects at a time."""
    uploads, threads = Uploads(objects), config.parallel_files
    chunks, rows = [tables.frame([], tables.VIDEOS)], []
    with (
        progress.task("ingest", len(files)) as task,
        ThreadPoolExecutor(threads) as members,
        ThreadPoolExecutor(threads) as pool,
    ):
        examiner = Examiner(config, uploads, known, members)
        for file, found in _in_order(pool, examiner.rows, files, threads * WAITING_PER_THREAD):
            rows += found
            if len(rows) >= CHUNK_ROWS:
                chunks.append(tables.frame(rows, tables.VIDEOS))
                rows = []
            task.advance(note=repr(file.path))
    return pl.concat([*chunks, tables.frame(rows, tables.VIDEOS)])


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[SourceFile], list[Row]], files: list[SourceFile], ahead: int
) -> Iterator[tuple[SourceFile, list[Row]]]:
    """Every file with its rows, in order; so many are under way or done and waiting at a time."""
    waiting: deque[tuple[SourceFile, Future[list[Row]]]] = deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(work, file)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _mark_duplicates(table: pl.DataFrame) -> pl.DataFrame:
    """Of several files with the same bytes the first is taken, the others are rejected."""
    ingested = table.with_row_index("row").filter(pl.col("outcome") == "ingested")
    first = ingested.unique("content_sha256", keep="first").select("content_sha256", original="path", first="row")
    later = ingested.join(first, on="content_sha256").filter(pl.col("row") != pl.col("first"))
    if later.is_empty():
        return table
    details = [f"The same bytes as {path!r}." for path in later["original"]]
    marks = later.select("row", detail_=pl.Series(details, dtype=pl.String))
    is_copy = pl.col("detail_").is_not_null()
    marked = table.with_row_index("row").join(marks, on="row", how="left", maintain_order="left")
    return marked.with_columns(
        outcome=pl.when(is_copy).then(pl.lit("rejected")).otherwise("outcome"),
        reason=pl.when(is_copy).then(pl.lit("duplicate_file")).otherwise("reason"),
        detail=pl.coalesce("detail_", "detail"),
        object_key=pl.when(~is_copy).then("object_key"),
    ).select(list(tables.VIDEOS))


def _ledger(table: pl.DataFrame) -> Ledger:
    taken = table.filter(pl.col("outcome") == "ingested")
    rejected = table.filter(pl.col("outcome") == "rejected")
    reasons = dict(sorted(Counter(rejected["reason"].to_list()).items()))
    total = len(table)
    assert total == len(taken) + len(rejected), "every source file is in exactly one row"
    assert sum(reasons.values()) == len(rejected), "every rejected file has a reason"
    assert table["source_id"].n_unique() == total, "source ids are unique"
    return Ledger(
        total=total,
        ingested=len(taken),
        rejected=len(rejected),
        reasons=reasons,
        videos=len(taken.filter(pl.col("media") == "video")),
        images=len(taken.filter(pl.col("media") == "image")),
        captioned=len(taken.filter(pl.col("caption").is_not_null() | pl.col("caption_shots").is_not_null())),
        size_bytes=int(taken["size_bytes"].sum()),
        hours=round(float(taken["duration_s"].sum()) / 3600, 6),
    )


def _check_failures(config: IngestConfig, source: str, table: pl.DataFrame) -> None:
    failed = table.filter((pl.col("outcome") == "rejected") & ~pl.col("reason").is_in(list(DUPLICATE_REASONS)))
    share = len(failed) / len(table)
    if not len(failed) or (share <= config.max_failed_share and len(failed) < len(table)):
        return
    counts = ", ".join(f"{count} × {reason}" for reason, count in sorted(Counter(failed["reason"]).items()))
    path, detail = failed.row(0, named=True)["path"], failed.row(0, named=True)["detail"]
    raise KinoflowError(
        f"{len(failed)} of {len(table)} files of {source!r} cannot be used ({counts}; first: {path!r}: {detail}) "
        f"which is more than max_failed_share {config.max_failed_share:g} allows; check the source."
    )


def _inputs_digest(table: pl.DataFrame) -> str:
    """Of what was found at the source, row by row."""
    columns = (
        "path", "size_bytes", "content_sha256", "source", "licence", "attribution", "caption", "caption_shots",
        "caption_origin", "caption_note", "extra", "reason",
    )  # fmt: skip
    return manifest.digest_of({"files": [list(row) for row in table.select(columns).iter_rows()]})
