"""Lists of files: CSV, Parquet and JSONL tables with Open-Sora 1.1's columns, and text files of one address a line.

`path` (or `url`) names the file, `text` (or `caption`) describes it; where it comes from, its licence and whom to name
are understood. Every other column is kept as JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import polars as pl
from pydantic_core import from_json, to_json

from components.errors import KinoflowError

TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl", ".ndjson")
LINKS_SUFFIX = ".txt"
MAX_CELL_CHARS = 64 << 20
CHUNK_ROWS = 50_000

MEANINGS: dict[str, tuple[str, ...]] = {
    "path": ("path", "url"),
    "text": ("text", "caption"),
    "source": ("source",),
    "licence": ("licence", "license"),
    "attribution": ("attribution", "author", "credit"),
}
WHOLE_NUMBERS = ("num_frames", "width", "height", "resolution", "text_len")
NUMBERS = (*WHOLE_NUMBERS, "aspect_ratio", "aes", "flow", "match", "ocr", "fps")
"""Of Open-Sora 1.1's columns, those that hold numbers; a CSV says so nowhere."""

COLUMNS: dict[str, type[pl.DataType]] = dict.fromkeys((*MEANINGS, "extra", "fault"), pl.String)
"""Of every list as it is returned here; `fault` says why a row cannot be used."""

_PLAIN_TYPES = (pl.String, pl.Boolean, pl.Date, pl.Datetime, pl.Float32, pl.Float64)


@dataclass(frozen=True)
class _Rows:
    """A table as written, all rows in order, and what is wrong with some."""

    table: pl.DataFrame
    faults: dict[int, str]


def is_table(name: str) -> bool:
    """Whether a file of this name is a table."""
    return name.lower().endswith(TABLE_SUFFIXES)


def read_list(data: bytes, name: str) -> pl.DataFrame:
    """The rows of a list, with the columns `COLUMNS`.

    Args:
        data: the file.
        name: where it is from; its suffix says what it is.

    Raises:
        KinoflowError: it cannot be read, names no files, or holds no rows.
    """
    lower = name.lower()
    try:
        if lower.endswith(LINKS_SUFFIX):
            return _links(data, name)
        if lower.endswith((".jsonl", ".ndjson")):
            table = _json_lines(data)
        else:
            table = _understood(_parquet(data) if lower.endswith(".parquet") else _csv(data), name)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, csv.Error, ValueError) as error:
        kind = "JSON lines" if lower.endswith(("jsonl", "ndjson")) else "CSV or Parquet"
        raise KinoflowError(f"The table {name!r} is not readable as {kind}: {str(error).rstrip('.')}.") from error
    if table.is_empty():
        raise KinoflowError(f"The table {name!r} holds no rows; list the videos there, one a row.")
    if table["path"].null_count() == len(table) and table["fault"].null_count() == len(table):
        raise KinoflowError(f"The table {name!r} needs a column 'path' (and 'text') that names files; it has none.")
    return table


def _links(data: bytes, name: str) -> pl.DataFrame:
    lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    paths = [line for line in lines if line and not line.startswith("#")]
    if not paths:
        raise KinoflowError(f"The list {name!r} names nothing; write one address or path a line.")
    return pl.DataFrame({"path": paths, **dict.fromkeys(list(COLUMNS)[1:])}, schema=COLUMNS)


def _csv(data: bytes) -> _Rows:
    before = csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"two columns have one name ({', '.join(header)})")
        schema = dict.fromkeys(header, pl.String)
        chunks = [pl.DataFrame(schema=schema)]
        faults: dict[int, str] = {}
        num_rows = 0
        while chunk := list(islice(reader, CHUNK_ROWS)):
            rows = [row for row in chunk if row]
            faults |= _fit(rows, len(header), num_rows)
            num_rows += len(rows)
            if rows:
                chunks.append(pl.DataFrame(dict(zip(header, zip(*rows, strict=True), strict=True)), schema=schema))
    except csv.Error as error:
        raise ValueError(f"{error} (at line {reader.line_num})") from error
    finally:
        csv.field_size_limit(before)
    return _Rows(pl.concat(chunks), faults)


def _fit(rows: list[list[str]], width: int, first: int) -> dict[int, str]:
    """Make all rows as wide as the header; returns what is wrong with those that hold more."""
    faults = {}
    for index, row in enumerate(rows):
        if len(row) != width:
            if any(cell.strip() for cell in row[width:]):
                sentence = f"The row has {len(row)} cells, the header {width}; quote a cell that holds a comma."
                faults[first + index] = sentence
            rows[index] = (row + [""] * width)[:width]
    return faults


def _parquet(data: bytes) -> _Rows:
    return _Rows(pl.read_parquet(io.BytesIO(data)), {})


def _understood(rows: _Rows, name: str) -> pl.DataFrame:
    """The meanings' columns, all others as one JSON object a row."""
    table = rows.table
    names = _meant_by(table.columns)
    if "path" not in names:
        raise KinoflowError(f"The table {name!r} needs a column 'path' (and 'text'); it has {table.columns}.")
    rest = [column for column in table.columns if column not in names.values()]
    meant = {
        meaning: table[names[meaning]].cast(pl.String)
        if meaning in names
        else pl.Series([None] * len(table), dtype=pl.String)
        for meaning in MEANINGS
    }
    faults = pl.Series([None] * len(table), dtype=pl.String)
    if rows.faults:
        faults = pl.Series([rows.faults.get(index) for index in range(len(table))], dtype=pl.String)
    return pl.DataFrame(meant | {"extra": _extra(table, rest), "fault": faults}, schema=COLUMNS)


def _meant_by(columns: list[str]) -> dict[str, str]:
    """The column of each meaning, whatever the case of its name."""
    lower = {column.strip().lower(): column for column in reversed(columns)}
    found = {}
    for meaning, synonyms in MEANINGS.items():
        named = [lower[synonym] for synonym in synonyms if synonym in lower]
        if named:
            found[meaning] = named[0]
    return found


def _extra(table: pl.DataFrame, columns: list[str]) -> pl.Series:
    """One JSON object a row, without what is empty; null where nothing is left."""
    if not columns:
        return pl.Series([None] * len(table), dtype=pl.String)
    pieces = pl.DataFrame({str(index): _pieces(table[name]) for index, name in enumerate(columns)})
    body = pl.concat_str(pl.all(), separator=",", ignore_nulls=True)
    return pieces.select(pl.when(body != "").then(pl.concat_str(pl.lit("{"), body, pl.lit("}")))).to_series()


def _pieces(column: pl.Series) -> pl.Series:
    """`"name":value` for each cell; null for an empty one."""
    name, kind = column.name, column.dtype
    if kind == pl.Null:
        return column.cast(pl.String)
    if not (kind.is_integer() or kind in _PLAIN_TYPES):
        return _pieces_one_by_one(column)
    value = pl.col(name)
    if kind == pl.String:
        stripped = value.str.strip_chars()
        value = pl.when(stripped != "").then(value)
        if name in NUMBERS:
            return _numbers(column)
    elif kind in (pl.Float32, pl.Float64):
        value = pl.when(value.is_finite()).then(value)
    return column.to_frame().select(_encoded(value, name)).to_series()


def _numbers(column: pl.Series) -> pl.Series:
    """`"name":5.1` for cells that hold a number, `"name":"text"` for others, null for empty ones and NaN."""
    name = column.name
    text = column.str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    cells = pl.DataFrame({"text": text.set(text == "", None), "number": number})
    finite: pl.Expr = pl.when(pl.col("number").is_finite()).then("number")
    is_whole = (number.drop_nulls() == number.drop_nulls().round()) & (number.drop_nulls().abs() < 2**53)
    if name in WHOLE_NUMBERS and is_whole.all():
        finite = finite.cast(pl.Int64)
    pieces = _encoded(finite, name)
    if (number.is_null() & cells["text"].is_not_null()).any():
        pieces = pl.coalesce(pieces, _encoded(pl.when(pl.col("number").is_null()).then("text"), name))
    return cells.select(pieces).to_series()


def _encoded(value: pl.Expr, name: str) -> pl.Expr:
    json_object = pl.struct(value.alias(name)).struct.json_encode()
    return pl.when(value.is_not_null()).then(json_object.str.slice(1).str.head(-1))


def _pieces_one_by_one(column: pl.Series) -> pl.Series:
    """As `_pieces`, for kinds of columns that only Python writes as JSON."""
    label = json.dumps(column.name, ensure_ascii=False)
    cells = [None if cell is None else f"{label}:{_to_json(cell)}" for cell in column.to_list()]
    return pl.Series(cells, dtype=pl.String)


def _to_json(value: object) -> str:
    return to_json(value, inf_nan_mode="null", fallback=str, bytes_mode="base64").decode()


def _json_lines(data: bytes) -> pl.DataFrame:
    columns: dict[str, list[str | None]] = {name: [] for name in COLUMNS}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
            fault = None if isinstance(row, dict) else f"Line {number} is no JSON object."
        except ValueError:
            row, fault = {}, f"Line {number} is no JSON."
        cells = _cells(row) if isinstance(row, dict) else {}
        for name, column in columns.items():
            column.append(fault if name == "fault" else cells.get(name))
    return pl.DataFrame(columns, schema=COLUMNS)


def _cells(row: Mapping[str, object]) -> dict[str, str | None]:
    names = _meant_by(list(row))
    cells = {meaning: _text(row[name]) for meaning, name in names.items()}
    taken = set(names.values())
    rest = {name: value for name, value in row.items() if name not in taken and value not in (None, "")}
    return cells | {"extra": _to_json(rest) if rest else None}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else _to_json(value)
