"""What was measured on files before: kept beside the objects, so that no file is decoded twice for the same measures.

Below a root there is one folder for each way of looking at files, named by what decides a measure (the settings of the
analysis and the code that runs it), and in it segments: Parquet tables of many files' rows, each named by the SHA-256
of its bytes. A segment is written whole, never changes and says itself whether it is damaged; so the parts of a
curation, and runs, add to a folder at the same time without a lock. What a killed process has written is found again
by the next one.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

import components
from components import layout, manifest, store, tables
from components.config import CaptionConfig, CurateConfig
from components.curate.analysis import CARRIED, Row, caption_of
from components.curate.scores import neural_text

logger = logging.getLogger(__name__)

FLUSH_S = 10.0
"""So much work is lost at most when a process is killed."""
FLUSH_FILES = 1000
SEGMENT_BYTES = 64 << 20
"""Segments are put together up to this size when a part is done."""
DECIDED = {"seed", "rules", "captions", "eval_share", "max_failed_share", "workers"}
"""Settings that change no measure."""
ANALYSIS_SOURCES = (
    "components/video.py", "components/media.py", "components/pictures.py", "components/stacks.py",
    "components/optical_flow.py", "components/curate/**/*.py",
)  # fmt: skip
NOT_ANALYSIS = {
    "__main__", "analysed", "caption_endpoint", "caption_model", "captioning", "connected", "duplicates", "ledger",
    "margin", "merge", "parts", "report", "rules", "semantic", "split", "whatif", "workers",
}  # fmt: skip
FOUND_AS = {
    "source_id", "path", "object_key", "source", "licence", "attribution", "extra", "caption", "caption_shots",
    "caption_origin", "caption_note", "outcome", "reason", "detail",
}  # fmt: skip
"""Columns of `tables.VIDEOS` that say how a file was come by, not what is in it."""
FILE_KEY = "file_key"
SEGMENT = {**tables.CLIPS, FILE_KEY: pl.String}


def analysis_digest(config: CurateConfig) -> str:
    """Names everything that decides a measure besides the file: settings and code (32 hex digits)."""
    settings = config.model_dump(mode="json", exclude=DECIDED)
    models = {"text_detector": neural_text.identity()} if config.text_detector == "neural" else {}
    return manifest.digest_of({"settings": settings, "code": _analysis_code(), **models})[:32]


def measures_of(objects: str, config: CurateConfig) -> str:
    """URI prefix of what is measured on files in that way."""
    return store.join(layout.beside(objects, layout.ANALYSED), analysis_digest(config))


@cache
def _analysis_code() -> str:
    root = Path(components.__file__).parent.parent
    paths = (path for pattern in ANALYSIS_SOURCES for path in root.glob(pattern))
    code = {path.relative_to(root).as_posix(): path for path in paths if path.stem not in NOT_ANALYSIS}
    return manifest.digest_of({name: manifest.sha256_file(path) for name, path in code.items()})


class AnalysedFiles:
    """Rows of the files that were looked at before in one way.

    Args:
        objects: URI prefix of the objects; the rows lie beside it.
        config: how files are looked at.
    """

    def __init__(self, objects: str, config: CurateConfig) -> None:
        self.uri = measures_of(objects, config)
        self._captions = config.captions
        self._buffer: list[Row] = []
        self._buffered_files = 0
        self._written: list[tuple[str, int]] = []
        self._flushed_s = time.monotonic()
        self._writable = True

    def find(self, videos: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Rows of those of the given ingested files that were looked at before, as if they were looked at now.

        Args:
            videos: rows of the `videos` schema.

        Yields:
            Tables of the `clips` schema, each file in one of them.
        """
        wanted = videos.with_columns(pl.Series(FILE_KEY, [file_key(row) for row in videos.iter_rows(named=True)]))
        for item in store.list_objects(self.uri):
            if wanted.is_empty():
                return
            segment = _read_segment(store.join(self.uri, item.key))
            if segment is None:
                continue
            known = wanted.join(segment.select(FILE_KEY).unique(), on=FILE_KEY, how="semi")
            if len(known):
                wanted = wanted.join(known.select("source_id"), on="source_id", how="anti")
                yield _as_found_now(segment, known, self._captions)

    def add(self, video: Row, rows: list[Row]) -> None:
        """Keep the rows of one file; they are safe from a kill some seconds later.

        A file that gave nothing is not kept: it may be there, or be whole, the next time.
        """
        if any(row.get("outcome") == "rejected" for row in rows):
            return
        key = file_key(video)
        self._buffer += [{**row, FILE_KEY: key} for row in rows]
        self._buffered_files += 1
        if self._buffered_files >= FLUSH_FILES or time.monotonic() - self._flushed_s >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._buffer:
            self._write(tables.frame(self._buffer, SEGMENT))
        self._buffer, self._buffered_files, self._flushed_s = [], 0, time.monotonic()

    def close(self) -> None:
        """Write the rest, and put this process's many small segments together to few."""
        self.flush()
        written, self._written = self._written, []
        while len(written) > 1:
            group = [written.pop()]
            while written and sum(size for _, size in group) + written[-1][1] <= SEGMENT_BYTES:
                group.append(written.pop())
            found = {name: _read_segment(store.join(self.uri, name)) for name, _ in group}
            whole = {name: segment for name, segment in found.items() if segment is not None}
            if len(whole) > 1:
                together = self._write(pl.concat(whole.values()))
                for name in whole.keys() - {together}:
                    store.delete(store.join(self.uri, name))

    def _write(self, segment: pl.DataFrame) -> str | None:
        """The name of the written segment; a store that takes none is no reason to stop."""
        if not self._writable:
            return None
        buffer = io.BytesIO()
        segment.write_parquet(buffer, compression="zstd")
        data = buffer.getvalue()
        name = f"{hashlib.sha256(data).hexdigest()}.parquet"
        try:
            store.write_bytes(store.join(self.uri, name), data)
        except store.StoreError as error:
            logger.warning("what was measured cannot be kept for an interruption: %s", error)
            self._writable = False
            return None
        self._written.append((name, len(data)))
        return name


def file_key(video: Row) -> str:
    """Names what is in a file: its bytes and what probing them told."""
    told: dict[str, Any] = {name: value for name, value in video.items() if name not in FOUND_AS}
    return manifest.digest_of(told)


def _read_segment(uri: str) -> pl.DataFrame | None:
    """A segment, or None with a warning when it is damaged or was put together with others meanwhile."""
    try:
        data = store.read_bytes(uri)
    except store.ObjectMissing:
        return None
    if not uri.endswith(f"/{hashlib.sha256(data).hexdigest()}.parquet"):
        logger.warning("%s is damaged; its files are looked at again", uri)
        return None
    table = pl.read_parquet(io.BytesIO(data))
    return table if dict(table.schema) == dict(pl.Schema(SEGMENT)) else None


def _as_found_now(segment: pl.DataFrame, videos: pl.DataFrame, captions: CaptionConfig) -> pl.DataFrame:
    """Rows of a segment with the names, origin and captions under which their files are known now."""
    carried = [name for name in CARRIED if name in segment.columns]
    spans = ["caption", "caption_shots", "caption_origin"]
    named = videos.select(FILE_KEY, *carried, *(pl.col(name).alias(f"file_{name}") for name in spans))
    rows = segment.drop([*carried, "clip_id", "caption", "caption_origin"]).join(named, on=FILE_KEY)
    texts = [
        caption_of({name: row[f"file_{name}"] for name in spans}, float(row["start_s"]), float(row["end_s"]), captions)
        for row in rows.select("start_s", "end_s", *(f"file_{name}" for name in spans)).iter_rows(named=True)
    ]
    index = pl.col("shot_index").cast(pl.String).str.zfill(4)
    return (
        rows.with_columns(
            pl.concat_str("source_id", pl.lit("-"), index).alias("clip_id"),
            pl.Series("caption", texts, dtype=pl.String),
        )
        .with_columns(pl.when(pl.col("caption").is_not_null()).then("file_caption_origin").alias("caption_origin"))
        .select(list(tables.CLIPS))
    )
