"""Ingest: a folder, an `s3://` prefix or a table becomes content-addressed objects and the `videos` table.

Every file is in exactly one row, either ingested or rejected with a reason. Objects are named by their SHA-256 and
uploaded once; running again over the same files uploads nothing and leaves the published table as it is.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, progress, store, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest.sources import SourceFile, captions_of, list_source
from components.media import UnreadableMedia, VideoInfo
from components.video import probe

logger = logging.getLogger(__name__)

KIND = "videos"
TABLE = "videos.parquet"
IO_THREADS = 8
DUPLICATE_REASONS = frozenset({"duplicate_file", "duplicate_path"})

Row = dict[str, object]


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
        config: what is recorded with every file, and how many may fail.
        source: local folder (recursive), `s3://` prefix, or a CSV or Parquet table with columns `path` and `text`.
        objects: URI prefix of the content-addressed objects.
        out: URI prefix of the published table.

    Raises:
        KinoflowError: the source is missing or empty, or more files failed than the config allows.
    """
    _refuse_nesting(source, {"objects": objects, "out": out})
    files = list_source(source)
    rows = _mark_duplicates(_examine_all(files, config, objects))
    table = tables.frame(rows, tables.VIDEOS)
    ledger = _ledger(table, len(files))
    _check_failures(config, source, table)
    inputs = {"source": _inputs_digest(table)}
    found = manifest.reusable(out, KIND, config=config, inputs=inputs)
    if found is None:
        with manifest.publish(out, KIND, config=config, inputs=inputs) as publication:
            tables.write(table, publication.directory / TABLE, tables.VIDEOS)
            publication.facts.update(ledger.model_dump(mode="json"))
            publication.annotations["source"] = source
        found = publication.manifest
        assert found is not None
    logger.info("ingested %d of %d files into %s", ledger.ingested, ledger.total, out)
    return IngestReport(
        total=ledger.total,
        ingested=ledger.ingested,
        rejected=ledger.rejected,
        reasons=ledger.reasons,
        manifest_digest=found.digest,
    )


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


def _examine_all(files: list[SourceFile], config: IngestConfig, objects: str) -> list[Row]:
    uploads = _Uploads(objects)
    with progress.task("ingest", len(files)) as task, ThreadPoolExecutor(IO_THREADS) as pool:
        rows = []
        try:
            for row in pool.map(lambda file: _examine(file, config, uploads), files):
                rows.append(row)
                task.advance(note=repr(row["path"]))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return rows


class _Uploads:
    """Puts objects into the store, each content once however many threads meet it."""

    def __init__(self, objects: str) -> None:
        self._objects = objects
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def put(self, path: Path, key: str) -> None:
        with self._lock:
            if key in self._claimed:
                return
            self._claimed.add(key)
        uri = store.join(self._objects, key)
        if not store.exists(uri):
            store.upload(path, uri)


def _examine(file: SourceFile, config: IngestConfig, uploads: _Uploads) -> Row:
    """Read, hash, probe and store one file; whatever is wrong with it becomes its row's reason."""
    row: Row = {
        "source_id": _source_id(file),
        "path": _printable(file.path),
        "source": config.source_name,
        "licence": config.licence,
        "outcome": "ingested",
    }
    if file.refusal is not None:
        return row | _rejection(*file.refusal)
    try:
        with _local_copy(file) as path:
            row |= _content(path)
            info = _probe(path)
            key = object_key(str(row["content_sha256"]), file.path)
            uploads.put(path, key)
    except _RejectionError as rejected:
        return row | _rejection(*rejected.args)
    captions = captions_of(file)
    return row | _description(info) | {
        "object_key": key,
        "caption": captions.caption,
        "caption_shots": captions.shots,
        "caption_origin": captions.origin,
    }  # fmt: skip


class _RejectionError(Exception):
    """Reason slug and sentence of a file that cannot be taken."""


@contextmanager
def _local_copy(file: SourceFile) -> Iterator[Path]:
    if not store.is_s3(file.uri):
        path = Path(file.uri)
        if not path.exists():
            raise _RejectionError("missing_file", f"There is no file {_printable(file.path)!r}.")
        if not path.is_file():
            raise _RejectionError("not_media", f"{_printable(file.path)!r} is not a regular file.")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        path = Path(scratch) / f"file{_suffix(file.path)}"
        try:
            store.download(file.uri, path)
        except store.ObjectMissing as error:
            raise _RejectionError("missing_file", f"There is no object {file.path!r}.") from error
        yield path


def _content(path: Path) -> Row:
    try:
        size_bytes = path.stat().st_size
        return {"size_bytes": size_bytes, "content_sha256": manifest.sha256_file(path)}
    except OSError as error:
        raise _RejectionError("unreadable", f"The file could not be read: {error.strerror}.") from error


def _probe(path: Path) -> VideoInfo:
    try:
        return probe(path)
    except UnreadableMedia as error:
        raise _RejectionError(error.reason, f"{error.detail[:1].upper()}{error.detail[1:]}.") from error
    except Exception as error:  # a decoder may fail in any way on hostile bytes: still one row, not the end
        logger.warning("probing %s failed: %r", path, error)
        raise _RejectionError("unreadable", f"The decoder failed ({type(error).__name__}).") from error


def _description(info: VideoInfo) -> Row:
    return {
        "media": info.media,
        "container": info.container,
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "width": info.width,
        "height": info.height,
        "rotation_deg": info.rotation_deg,
        "fps": info.fps,
        "num_frames_header": info.num_frames_header,
        "duration_s": info.duration_s,
    }


def _rejection(reason: str, detail: str) -> Row:
    return {"outcome": "rejected", "reason": reason, "detail": _printable(detail)}


def object_key(content_sha256: str, path: str) -> str:
    """Key of an object below the objects prefix: `ab/abcd….mp4`; of the name only a plain suffix is kept."""
    return f"{content_sha256[:2]}/{content_sha256}{_suffix(path)}"


def _suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def _source_id(file: SourceFile) -> str:
    name = file.path.encode("utf-8", "surrogateescape")
    if file.occurrence:
        name += f"\0{file.occurrence}".encode()
    return hashlib.sha256(name).hexdigest()[:16]


def _printable(text: str) -> str:
    """Names that are not UTF-8 reach Python as lone surrogates, which no table can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _mark_duplicates(rows: list[Row]) -> list[Row]:
    first: dict[object, object] = {}
    marked = []
    for row in rows:
        content = row.get("content_sha256")
        if row["outcome"] == "ingested" and content in first:
            detail = f"The same bytes as {first[content]!r}."
            row = row | _rejection("duplicate_file", detail) | {"object_key": None}
        elif row["outcome"] == "ingested":
            first[content] = row["path"]
        marked.append(row)
    return marked


def _ledger(table: pl.DataFrame, total: int) -> Ledger:
    taken = table.filter(pl.col("outcome") == "ingested")
    rejected = table.filter(pl.col("outcome") == "rejected")
    reasons = dict(sorted(Counter(rejected["reason"].to_list()).items()))
    assert len(table) == total == len(taken) + len(rejected), "every source file is in exactly one row"
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
    columns = ("path", "size_bytes", "content_sha256", "caption", "caption_shots", "caption_origin", "reason")
    return manifest.digest_of({"files": [list(row) for row in table.select(columns).iter_rows()]})
