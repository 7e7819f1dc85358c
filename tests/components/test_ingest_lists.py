"""Tables and lists: what they say about a file is kept, and no row of theirs is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from components import manifest, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest import ingest
from components.ingest.lists import read_list
from components.ingest.sources import list_source
from components.video import write_video
from tests.components.test_ingest import moving_square

OPEN_SORA = (
    "path,id,text,num_frames,width,height,aspect_ratio,resolution,text_len,aes,flow,match,ocr,fps,cmotion,timestamp\n"
    "a.mp4,7,a square,12,64,48,0.75,3072,4,5.31,nan,28.0,0,24.0,pan left,\"('00:00:00.000', '00:00:00.500')\"\n"
    "b.mp4,8,,n/a,,,,,,,,,,,,\n"
)


def run(source: Path, root: Path, config: IngestConfig | None = None) -> pl.DataFrame:
    config = config or IngestConfig(max_failed_share=1.0)
    ingest(config, str(source), str(root / "objects"), str(root / "ingest"))
    manifest.fetch(str(root / "ingest"), root / "copy")
    return tables.read(root / "copy" / "videos.parquet", tables.VIDEOS)


def test_open_soras_columns_are_understood_and_kept() -> None:
    rows = read_list(OPEN_SORA.encode(), "x.csv").rows(named=True)
    assert (rows[0]["path"], rows[0]["text"]) == ("a.mp4", "a square")
    assert json.loads(rows[0]["extra"]) == {
        "id": "7", "num_frames": 12.0, "width": 64, "height": 48, "aspect_ratio": 0.75, "resolution": 3072,
        "text_len": 4, "aes": 5.31, "match": 28.0, "ocr": 0, "fps": 24.0, "cmotion": "pan left",
        "timestamp": "('00:00:00.000', '00:00:00.500')",
    }  # fmt: skip
    assert json.loads(rows[1]["extra"]) == {"id": "8", "num_frames": "n/a"}


def test_tables_of_every_format_say_the_same() -> None:
    rows = [
        {"path": "a.mp4", "caption": "one", "License": "CC0", "credit": "Ada", "aes": 5.5, "tags": ["x", "y"]},
        {"path": "b.mp4", "caption": None, "License": "", "credit": None, "aes": None, "tags": None},
    ]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    expected = [
        ("a.mp4", "one", None, "CC0", "Ada", {"aes": 5.5, "tags": ["x", "y"]}),
        ("b.mp4", None, None, "", None, None),
    ]
    for data, name in ((lines, "x.jsonl"), (buffer.getvalue(), "x.parquet")):
        found = [(*row[:5], json.loads(row[5]) if row[5] else None) for row in read_list(data, name).rows()]
        assert found == expected


def test_columns_of_any_type_become_json() -> None:
    buffer = io.BytesIO()
    table = pl.DataFrame(
        {"path": ["a"], "b": [b"\xff"], "s": [{"x": b"\xff"}], "f": [float("nan")], "i": [3], "n": [None]}
    )
    table.with_columns(d=pl.date(2024, 1, 2), t=pl.duration(hours=1)).write_parquet(buffer)
    extra = json.loads(str(read_list(buffer.getvalue(), "x.parquet")["extra"][0]))
    assert extra == {"b": "_w==", "s": {"x": "_w=="}, "i": 3, "d": "2024-01-02", "t": "PT1H"}


def test_a_row_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(), 24)
    (tmp_path / "rows.jsonl").write_bytes(
        b'\xef\xbb\xbf{"path": "a.mp4", "text": "x"}\r\n\n{"path": \n[1, 2]\n{"url": "b.mp4"}\n{"text": "no path"}\n'
        b'{"path": "\\ud800"}\n{"path": ["a.mp4"]}\n' + b"[" * 100_000 + b"\n"
    )
    table = run(tmp_path / "rows.jsonl", tmp_path / "run")
    assert table["reason"].to_list() == [
        None, "bad_row", "bad_row", "missing_file", "no_path", "bad_row", "missing_file", "bad_row"
    ]  # fmt: skip
    assert table["detail"][1] == "Line 3 is no JSON."
    (tmp_path / "rows.csv").write_text("path,text\na.mp4,hello, world\na.mp4,fine,,\n\nb.mp4\n", encoding="utf-8")
    table = run(tmp_path / "rows.csv", tmp_path / "run")
    assert table["reason"].to_list() == ["bad_row", "duplicate_path", "missing_file"]
    assert "quote a cell that holds a comma" in table["detail"][0]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.csv", b'path,text\na.mp4,"open\nb.mp4,lost\n', r"not readable as CSV.*line 3"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"file": "a.mp4"}\n', "needs a column 'path'"),
        ("a.txt", b"# nothing\n\n", "names nothing"),
        ("a.txt", b"\xff\xfe", "not readable"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_one_sentence(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(KinoflowError, match=sentence):
        list_source(str(tmp_path / name))


def test_source_licence_and_attribution_come_from_the_nearest_that_says(tmp_path: Path) -> None:
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", moving_square(100 + number), 24)
    (tmp_path / "0.json").write_text('{"licence": "beside", "author": "beside", "source": "beside"}')
    (tmp_path / "1.json").write_text('{"license": "beside", "caption": "beside"}')
    (tmp_path / "list.csv").write_text("path,text,licence,author\n0.mp4,,table,\n1.mp4,table,,\n2.mp4,,,\n")
    table = run(tmp_path / "list.csv", tmp_path / "run", IngestConfig(source_name="mine", attribution="me"))
    assert table.select("caption", "source", "licence", "attribution").rows() == [
        (None, "beside", "table", "beside"), ("table", "mine", "beside", "me"), (None, "mine", "unknown", "me")
    ]  # fmt: skip


def test_an_endless_caption_is_cut_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        write_video(folder / f"{name}.mp4", moving_square(ord(name)), 24)
    (folder / "a.txt").write_text("word " * 20_000, encoding="utf-8")
    (folder / "b.txt").write_text("ü" * 100_000, encoding="utf-8")
    shots = [{"start_s": 0, "end_s": 1, "caption": "x" * 100_000}, {"start_s": 1, "end_s": 2, "caption": "short"}]
    (folder / "c.json").write_text(json.dumps({"shots": shots}), encoding="utf-8")
    (folder / "d.txt").write_text("y" * (2 << 20), encoding="utf-8")
    table = run(folder, tmp_path / "run", IngestConfig(max_caption_chars=1000))
    assert table["outcome"].to_list() == ["ingested"] * 4
    assert table["caption"][0] == ("word " * 200).strip()
    assert table["caption"][1] == "ü" * 1000
    assert [len(shot["caption"]) for shot in json.loads(table["caption_shots"][2])] == [1000, 5]
    assert table["caption_note"].to_list() == [
        "The caption of 99999 characters is cut to 1000.", "The caption of 100000 characters is cut to 1000.",
        "Captions of 1 shots are cut to 1000 characters.",
        "The .txt beside it is not used: it is larger than 1048576 bytes.",
    ]  # fmt: skip
    (tmp_path / "long.csv").write_text(f"path,text\nin/a.mp4,{'z' * 300_000}\n", encoding="utf-8")
    assert run(tmp_path / "long.csv", tmp_path / "run2")["caption"][0] == "z" * 10_000


def test_a_table_of_many_rows_is_listed_at_once(tmp_path: Path) -> None:
    rows = "".join(f'v/{number}.mp4,"a caption, number {number}",51,1280,720,5.1\n' for number in range(50_000))
    (tmp_path / "many.csv").write_text("path,text,num_frames,width,height,aes\n" + rows, encoding="utf-8")
    files = list_source(str(tmp_path / "many.csv"))
    assert len(files) == 50_000
    assert files[-1].said.caption == "a caption, number 49999"


def test_odd_paths_are_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(), 24)
    paths = [
        "a.mp4",
        "./a.mp4",
        "x" * 5000,
        "a.mp4/b",
        ".",
        "s3://",
        "s3://bucket",
        "file:///etc/passwd",
        "a\\..\\b",
        "\t",
    ]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"path": path}) + "\n" for path in [*paths, "nul\0"]))
    table = run(tmp_path / "odd.jsonl", tmp_path / "run")
    assert table["reason"].to_list() == [
        None, "duplicate_file", "unreadable", "missing_file", "not_media", "no_path", "no_path", "bad_address",
        "missing_file", "no_path", "no_path",
    ]  # fmt: skip
