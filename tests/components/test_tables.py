"""Tables keep exactly their declared columns, in and out."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from components import tables
from components.errors import KinoflowError

ROW: dict[str, object] = {
    "source_id": "0123456789abcdef",
    "path": "a\n'\"日本.mp4",
    "width": 96,
    "fps": 24,
    "num_frames_header": 2**40,
    "outcome": "ingested",
}


@pytest.mark.parametrize("schema", [tables.VIDEOS, tables.CLIPS, tables.PLAN])
def test_an_empty_table_keeps_its_columns(schema: dict[str, pl.DataType], tmp_path: Path) -> None:
    tables.write(tables.frame([], schema), tmp_path / "empty.parquet", schema)
    table = tables.read(tmp_path / "empty.parquet", schema)
    assert table.is_empty()
    assert dict(table.schema) == dict(pl.Schema(schema))


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    table = tables.frame([ROW, {"source_id": "x"}], tables.VIDEOS)
    tables.write(table, tmp_path / "deep" / "videos.parquet", tables.VIDEOS)
    back = tables.read(tmp_path / "deep" / "videos.parquet", tables.VIDEOS)
    assert back.equals(table)
    assert back.row(0, named=True) == dict.fromkeys(tables.VIDEOS) | ROW | {"fps": 24.0}
    assert back["codec"].null_count() == 2


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [ROW | {"source_id": f"{number:016x}", "duration_s": number / 3} for number in range(1000)]
    for name in ("a", "b"):
        tables.write(tables.frame(rows, tables.VIDEOS), tmp_path / name, tables.VIDEOS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unknown_columns_and_wrong_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in the schema: colour"):
        tables.frame([ROW | {"colour": "red"}], tables.VIDEOS)
    with pytest.raises((TypeError, pl.exceptions.PolarsError)):
        tables.frame([ROW | {"width": "wide"}], tables.VIDEOS)
    with pytest.raises(ValueError, match="the schema says"):
        tables.write(tables.frame([ROW], tables.VIDEOS), tmp_path / "x", tables.CLIPS)
    assert not (tmp_path / "x").exists()


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    tables.write(tables.frame([ROW], tables.VIDEOS), tmp_path / "videos.parquet", tables.VIDEOS)
    with pytest.raises(KinoflowError, match=r"videos\.parquet does not have the expected columns.*clip_id"):
        tables.read(tmp_path / "videos.parquet", tables.CLIPS)
    tables.frame([ROW], tables.VIDEOS).with_columns(extra=pl.lit(1)).write_parquet(tmp_path / "more.parquet")
    with pytest.raises(KinoflowError, match="expected columns"):
        tables.read(tmp_path / "more.parquet", tables.VIDEOS)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match="not a readable Parquet"):
        tables.read(tmp_path / "missing.parquet", tables.VIDEOS)
    for data in (b"", b"PAR1", b"not a table at all", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "bad.parquet").write_bytes(data)
        with pytest.raises(KinoflowError, match="not a readable Parquet"):
            tables.read(tmp_path / "bad.parquet", tables.VIDEOS)


def test_a_table_of_an_earlier_version_reads_with_the_added_columns_empty(tmp_path: Path) -> None:
    table = tables.frame([{"clip_id": "a", "outcome": "kept"}], tables.CLIPS)
    table.drop(tables.ADDED).write_parquet(tmp_path / "clips.parquet")
    assert tables.read(tmp_path / "clips.parquet", tables.CLIPS).equals(table)
    assert tables.scan(tmp_path / "clips.parquet", tables.CLIPS).select("text_detector").collect().item() is None
    table.drop("motion").write_parquet(tmp_path / "other.parquet")
    with pytest.raises(KinoflowError, match=r"differs in motion"):
        tables.read(tmp_path / "other.parquet", tables.CLIPS)
