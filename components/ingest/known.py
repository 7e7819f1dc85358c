"""What earlier ingestions of a source have found out, so that no file is read twice that has not changed.

Facts lie beside the objects, in Parquet files of some hundred inputs each: an interrupted ingestion has written most of
what it did. They are keyed by address and version (size, times and inode of a local file; size, time and ETag of an
object; what a web server calls it), and by the code that examines files.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import polars as pl

from components import layout, store, tables
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

FLUSH_ROWS, FLUSH_S = 1000, 5.0
UNVERSIONED = "unversioned"
"""Version of a file whose server gives it none: taken for unchanged only while one ingestion goes on."""

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "input": pl.String,  # digest of its address, which may hold a signature
    "version": pl.String,
    "code": pl.String,
    **tables.VIDEOS,
}

Row = dict[str, object]


class Known:
    """Facts on the inputs of one source; threads may share it. A context manager: its body is one ingestion.

    Args:
        objects: URI prefix of the content-addressed objects.
        source: what is ingested.
    """

    def __init__(self, objects: str, source: str) -> None:
        place = source if "://" in source else str(Path(source).absolute())
        name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._prefix = store.join(layout.beside(objects, layout.KNOWN_FILES), name)
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._table = self._load()
        self._index: dict[str, list[int]] = {}
        for number, key in enumerate(self._table["input"]):
            self._index.setdefault(key, []).append(number)
        self._used: set[str] = set()
        self._new: list[Row] = []
        self._flushed_s = time.monotonic()

    def version(self, uri: str) -> str | None:
        """The version of the input when its facts were found; None when they are not known."""
        numbers = self._index.get(_key(uri))
        return str(self._table["version"][numbers[0]]) if numbers else None

    def rows(self, uri: str) -> list[Row]:
        """Facts on one input: a row of the `videos` table, or several for an archive."""
        with self._lock:
            self._used.add(_key(uri))
        found = [self._table.row(number, named=True) for number in self._index[_key(uri)]]
        return [{name: row[name] for name in tables.VIDEOS} for row in found]

    def add(self, uri: str, version: str, rows: Sequence[Row]) -> None:
        """Remember facts; they are written from time to time."""
        keys: Row = {"input": _key(uri), "version": version, "code": examining_code()}
        with self._lock:
            self._new += [keys | row for row in rows]
            if len(self._new) >= FLUSH_ROWS or time.monotonic() - self._flushed_s >= FLUSH_S:
                self._flush()

    def __enter__(self) -> Known:
        """The facts."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what was found out; after a whole ingestion, one file in the place of all."""
        if kind is None:
            self._close()
            return
        with self._lock, suppress(store.StoreError):  # what has happened matters more
            self._flush()

    def _close(self) -> None:
        """Write one file in the place of all, without what this ingestion has not met."""
        with self._lock:
            self._flush()
            added = self._read([name for name in self._names if name not in self._loaded])
            stay = self._table.filter(
                pl.col("input").is_in(list(self._used)) & ~pl.col("input").is_in(added["input"].implode())
            )
            whole = pl.concat([stay, added]).filter(pl.col("version") != UNVERSIONED)
            if len(self._names) <= 1 and len(whole) == self._loaded_rows + len(added):
                return
            names, self._names = self._names, []
            if len(whole):
                self._write(whole)
            for name in names:
                store.delete(store.join(self._prefix, name))

    def _load(self) -> pl.DataFrame:
        self._names = sorted(item.key for item in store.list_objects(self._prefix) if item.key.endswith(".parquet"))
        self._loaded = set(self._names)
        table = self._read(self._names)
        self._loaded_rows = len(table)
        current = table.filter(pl.col("code") == examining_code())
        # The same input twice, after an interruption: the later file counts.
        last = current.group_by("input", maintain_order=True).agg(pl.col("batch").max())
        return current.join(last, on=["input", "batch"], how="semi", maintain_order="left")

    def _read(self, names: Iterable[str]) -> pl.DataFrame:
        found = [pl.DataFrame(schema=COLUMNS).with_columns(batch=pl.lit(0, pl.Int64))]
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            path = Path(scratch) / "facts.parquet"
            for number, name in enumerate(names):
                try:
                    store.download(store.join(self._prefix, name), path)
                    found.append(tables.read(path, COLUMNS).with_columns(batch=pl.lit(number, pl.Int64)))
                except store.ObjectMissing:
                    continue  # another ingestion has put it together with others
                except store.StoreError:
                    raise
                except KinoflowError as error:
                    logger.warning("what is known of some files is not used: %s", error)
        return pl.concat(found)

    def _flush(self) -> None:
        self._flushed_s = time.monotonic()
        if self._new:
            rows, self._new = self._new, []
            self._write(tables.frame(rows, COLUMNS))

    def _write(self, table: pl.DataFrame) -> None:
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            tables.write(table.select(list(COLUMNS)), Path(scratch) / name, COLUMNS)
            store.upload(Path(scratch) / name, store.join(self._prefix, name))
        self._names.append(name)


def _key(uri: str) -> str:
    return hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@cache
def examining_code() -> str:
    """Digest (16 hex digits) of the sources that decide what is found out about a file."""
    components = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in ("ingest/examine.py", "ingest/archives.py", "ingest/sidecars.py", "media.py", "video.py"):
        digest.update(name.encode() + b"\0" + (components / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
