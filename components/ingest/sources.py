"""What there is to ingest: a folder, an `s3://` prefix or a table of paths, and the captions beside the files."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from components import store
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

SIDECAR_SUFFIXES = (".json", ".txt")
TABLE_SUFFIXES = (".csv", ".parquet")
MAX_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class Captions:
    """What was found beside a file or in the table; `shots` is a JSON list, `origin` names where from."""

    caption: str | None = None
    shots: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """One input: where it is, how it was written, and why it cannot be taken where that is known already."""

    path: str
    uri: str
    occurrence: int = 0
    refusal: tuple[str, str] | None = None
    table_caption: str | None = None


class ShotCaption(BaseModel):
    """The caption of one stretch of a video, in seconds from its start."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    start_s: float = Field(ge=0, allow_inf_nan=False)
    end_s: float = Field(gt=0, allow_inf_nan=False)
    caption: str


class Sidecar(BaseModel):
    """A `.json` beside a video: a caption of the whole, of its shots, or both; other keys are not ours."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    caption: str | None = None
    shots: list[ShotCaption] | None = None


_SHOTS = TypeAdapter(list[ShotCaption])


def list_source(source: str) -> list[SourceFile]:
    """Every input below `source`, in a fixed order; hidden files and sidecars are not inputs.

    Raises:
        KinoflowError: the source does not exist, is neither folder, prefix nor table, or holds no file.
    """
    if PurePosixPath(source).suffix.lower() in TABLE_SUFFIXES and (store.is_s3(source) or Path(source).is_file()):
        return _list_table(source)
    if store.is_s3(source):
        paths = [item.key for item in store.list_objects(source)]
    elif Path(source).is_dir():
        paths = sorted(_walk(Path(source)))
    elif Path(source).exists():
        raise KinoflowError(f"The source {source!r} is one file; give a folder, an s3:// prefix or a table.")
    else:
        raise KinoflowError(f"The source {source!r} does not exist; check the path.")
    files = [SourceFile(path, store.join(source, path)) for path in paths if _is_input(path)]
    if not files:
        raise KinoflowError(f"The source {source!r} holds no files; put videos or images (and captions) there.")
    return files


def captions_of(file: SourceFile) -> Captions:
    """The table's caption, else a `.json` or `.txt` of the same stem beside the file."""
    if file.table_caption is not None:
        return Captions(file.table_caption, None, "table")
    stem = file.uri.removesuffix(PurePosixPath(file.uri).suffix)
    for suffix in SIDECAR_SUFFIXES:
        text = _read_sidecar(stem + suffix)
        found = _parse_json(text, stem + suffix) if text and suffix == ".json" else _plain(text)
        if found is not None:
            return found
    return Captions()


def _walk(root: Path) -> Iterator[str]:
    """Everything but folders, dangling links too: whatever lies there gets a row."""
    for folder, _, names in os.walk(root, onerror=_refuse_folder):
        for name in names:
            yield (Path(folder) / name).relative_to(root).as_posix()


def _refuse_folder(error: OSError) -> None:
    raise KinoflowError(f"Could not read the folder {error.filename!r}: {error.strerror}; check its permissions.")


def _is_input(path: str) -> bool:
    parts = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in parts.parts)
    return not hidden and parts.suffix.lower() not in SIDECAR_SUFFIXES


def _list_table(source: str) -> list[SourceFile]:
    table = _read_table(source)
    if "path" not in table.columns:
        raise KinoflowError(f"The table {source!r} needs a column 'path' (and 'text'); it has {table.columns}.")
    if table.is_empty():
        raise KinoflowError(f"The table {source!r} holds no rows; list the videos there, one a row.")
    base = source.rpartition("/")[0] or "."
    texts = table["text"] if "text" in table.columns else pl.Series([None] * len(table), dtype=pl.String)
    files: list[SourceFile] = []
    seen: dict[str, int] = {}
    for path, text in zip(table["path"], texts, strict=True):
        path = path or ""
        occurrence = seen.get(path, 0)
        seen[path] = occurrence + 1
        refusal = _refuse_path(path, from_store=store.is_s3(source))
        if refusal is None and occurrence:
            refusal = ("duplicate_path", f"The table names {path!r} in an earlier row.")
        uri = path if store.is_s3(path) or path.startswith("/") else store.join(base, path)
        caption = text.strip() if text and text.strip() else None
        files.append(SourceFile(path, uri, occurrence, refusal, caption))
    return files


def _read_table(source: str) -> pl.DataFrame:
    data = store.read_bytes(source)
    try:
        if source.lower().endswith(".parquet"):
            table = pl.read_parquet(io.BytesIO(data))
            wanted = [name for name in ("path", "text") if name in table.columns]
            return table.with_columns(pl.col(wanted).cast(pl.String)) if wanted else table
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        header, body = (rows[0], rows[1:]) if rows else ([], [])
        width = len(header)
        cells = [(row + [""] * width)[:width] for row in body if row]
        return pl.DataFrame(cells, schema=dict.fromkeys(header, pl.String), orient="row")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, csv.Error, ValueError) as error:
        raise KinoflowError(f"The table {source!r} is not readable as CSV or Parquet: {error}.") from error


def _refuse_path(path: str, *, from_store: bool) -> tuple[str, str] | None:
    if not path.strip() or "\0" in path:
        return "no_path", "The row names no file."
    if store.is_s3(path):
        return None
    if path.startswith("/"):
        sentence = f"A table in an object store may not name the local file {path!r}; use s3:// or a relative path."
        return ("unsafe_path", sentence) if from_store else None
    if ".." in PurePosixPath(path).parts:
        return "unsafe_path", f"The path {path!r} leaves the table's folder; write it as an absolute path."
    return None


def _read_sidecar(uri: str) -> str | None:
    try:
        data = store.read_bytes(uri)
    except store.ObjectMissing:
        return None
    except store.StoreError as error:
        if store.is_s3(uri):
            raise
        logger.warning("the caption file %r is not used: %s", uri, error)
        return None
    if len(data) > MAX_SIDECAR_BYTES:
        logger.warning("the caption file %r is not used: it is larger than %d bytes", uri, MAX_SIDECAR_BYTES)
        return None
    return data.decode("utf-8-sig", errors="replace")


def _plain(text: str | None) -> Captions | None:
    return Captions(text.strip(), None, "sidecar_txt") if text and text.strip() else None


def _parse_json(text: str, uri: str) -> Captions | None:
    try:
        sidecar = Sidecar.model_validate_json(text)
    except ValidationError as error:
        logger.warning("the caption file %r is not used: %s", uri, " ".join(str(error).split()))
        return None
    caption = sidecar.caption.strip() if sidecar.caption else ""
    if not caption and not sidecar.shots:
        return None
    shots = _SHOTS.dump_json(sidecar.shots).decode() if sidecar.shots else None
    return Captions(caption or None, shots, "sidecar_json")
