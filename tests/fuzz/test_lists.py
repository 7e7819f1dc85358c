"""Tables, names and captions that nobody would write: every row is accounted for, every fault is one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components import manifest, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest import ingest
from components.ingest.lists import read_list
from components.ingest.sidecars import Said, cut, merge
from components.ingest.sources import list_source
from components.media import write_image
from tests.fuzz.damage import picture

EXAMPLES = int(os.environ.get("KINOFLOW_FUZZ_EXAMPLES", "20"))
SETTINGS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PATHS = st.one_of(
    TEXT,
    st.sampled_from(["a.png", "./a.png", "../a.png", "/etc/hostname", "a.png\n", "s3://", "ftp://x", ".", "a.tar", ""]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["path", "url", "text", "caption", "aes", "num_frames", "licence", "author", "x", "", "PATH"])


def listed(data: bytes, name: str) -> pl.DataFrame | None:
    """The rows of a list, or None when it is refused with a sentence."""
    try:
        return read_list(data, name)
    except KinoflowError as error:
        assert str(error).endswith(".")
        return None


@SETTINGS
@given(data=st.binary(max_size=400), suffix=st.sampled_from([".csv", ".jsonl", ".parquet", ".txt"]))
def test_any_bytes_are_a_list_or_a_sentence(data: bytes, suffix: str) -> None:
    listed(data, f"x{suffix}")


@SETTINGS
@given(
    header=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    rows=st.lists(st.lists(TEXT | PATHS, min_size=1, max_size=7), max_size=8),
)
def test_a_written_table_gives_as_many_rows(header: list[str], rows: list[list[str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(header)
    writer.writerows(rows)
    table = listed(buffer.getvalue().encode(), "x.csv")
    if table is None:
        assert not {"path", "url"} & {name.lower() for name in header} or not rows or header == [""]
        return
    assert len(table) == len(rows)
    lower = [name.lower() for name in header]
    first = lower.index("path" if "path" in lower else "url")
    for row, path, fault in zip(rows, table["path"], table["fault"], strict=True):
        assert path == (row[first] if first < len(row) else "")
        assert (fault is not None) == any(cell.strip() for cell in row[len(header) :])
    for extra in table["extra"].drop_nulls():
        assert isinstance(json.loads(extra), dict)


@SETTINGS
@given(rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=5) | VALUES, max_size=8))
def test_json_lines_give_as_many_rows(rows: list[object]) -> None:
    table = listed("\n".join(json.dumps(row) for row in rows).encode(), "x.jsonl")
    if table is None:
        return
    assert len(table) == len(rows)
    for extra in table["extra"].drop_nulls():
        json.loads(extra)


@SETTINGS
@given(cells=st.lists(st.tuples(PATHS, VALUES), min_size=1, max_size=6))
def test_parquet_of_any_columns(cells: list[tuple[str, object]]) -> None:
    buffer = io.BytesIO()
    try:
        pl.DataFrame({"path": [path for path, _ in cells], "x": [value for _, value in cells]}).write_parquet(buffer)
    except (TypeError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return  # not every list of values is a column
    table = listed(buffer.getvalue(), "x.parquet")
    assert table is not None
    assert table["path"].to_list() == [path for path, _ in cells]


@SETTINGS
@given(
    json_bytes=st.none() | st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()),
    text=st.none() | st.binary(max_size=200),
)
def test_any_sidecar_is_used_or_noted(json_bytes: bytes | None, text: bytes | None) -> None:
    said = merge({".json": lambda: json_bytes, ".txt": lambda: text})
    assert (said.caption is None and said.shots is None) == (said.origin is None)
    if text and text.decode("utf-8-sig", errors="replace").strip():
        assert said.caption or said.shots


@SETTINGS
@given(caption=TEXT, max_chars=st.integers(1, 50))
def test_a_cut_caption_is_a_beginning_of_it(caption: str, max_chars: int) -> None:
    said = cut(Said(caption=caption), max_chars)
    assert said.caption is not None
    assert len(said.caption) <= max_chars
    assert caption.startswith(said.caption)
    assert (said.note is not None) == (len(caption) > max_chars)


FILE_NAMES = st.binary(min_size=1, max_size=60).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@settings(SETTINGS, max_examples=max(5, EXAMPLES // 4))
@given(names=st.sets(FILE_NAMES, min_size=1, max_size=6), paths=st.lists(PATHS | TEXT, min_size=1, max_size=8))
def test_any_names_through_the_whole_stage(names: set[bytes], paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = root / "in"
        folder.mkdir()
        write_image(folder / "a.png", picture(1, 1)[0])
        data = (folder / "a.png").read_bytes()
        for number, name in enumerate(sorted(names)):
            (folder / os.fsdecode(name)).write_bytes(data + bytes([number]))
        (root / "list.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in ["in/a.png", *paths]))
        for source in (str(folder), str(root / "list.jsonl")):
            files = list_source(source)
            table = through(source, root / "run")
            assert len(table) >= len(files)
            assert table["source_id"].n_unique() == len(table)
            assert table.filter(pl.col("outcome") == "rejected")["reason"].null_count() == 0
        there = [name for name in names if not name.startswith(b".") and not name.lower().endswith((b".txt", b".json"))]
        assert len(list_source(str(folder))) == len({*there, b"a.png"})


def through(source: str, root: Path) -> pl.DataFrame:
    config = IngestConfig(max_failed_share=1.0, download_attempts=1)
    ingest(config, source, str(root / "objects"), str(root / "ingest"))
    manifest.fetch(str(root / "ingest"), root / "copy")
    return tables.read(root / "copy" / "videos.parquet", tables.VIDEOS)
