"""Files of every kind come in: each gets one row, each content one object."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from components import manifest, store, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest import IngestReport, ingest
from components.media import write_image
from components.video import write_video
from tests.conftest import S3Server

Pixels = NDArray[np.uint8]


def moving_square(level: int = 200, num_frames: int = 12, height: int = 48, width: int = 64) -> Pixels:
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index in range(num_frames):
        frames[index, 10:26, index : index + 16] = level
    return frames


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "deep" / "er").mkdir(parents=True)
    write_video(folder / "b.mp4", moving_square(200), 24)
    write_video(folder / "deep" / "er" / "a.mkv", moving_square(120), 12)
    write_image(folder / "still.png", moving_square()[0])
    return folder


class Places:
    """Where one ingestion puts things."""

    def __init__(self, base: str) -> None:
        self.objects, self.out = f"{base}/objects", f"{base}/ingest"

    def ingest(self, source: Path | str, config: IngestConfig | None = None) -> IngestReport:
        return ingest(config or IngestConfig(), str(source), self.objects, self.out)

    def table(self, folder: Path) -> pl.DataFrame:
        manifest.fetch(self.out, folder, kind="videos")
        return tables.read(folder / "videos.parquet", tables.VIDEOS)


@pytest.fixture(params=["local", "s3"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    if request.param == "local":
        return Places(str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3_server")
    return Places(server.bucket())


@pytest.fixture
def local(tmp_path: Path) -> Places:
    return Places(str(tmp_path / "store"))


def by_path(table: pl.DataFrame) -> dict[str, dict[str, object]]:
    return {row["path"]: row for row in table.iter_rows(named=True)}


def test_a_folder_becomes_objects_and_a_table(videos: Path, places: Places, tmp_path: Path) -> None:
    (videos / "b.txt").write_text("a square moves right\n", encoding="utf-8")
    config = IngestConfig(source_name="made", licence="CC0")
    report = places.ingest(videos, config)
    table = places.table(tmp_path / "copy")
    assert (report.total, report.ingested, report.rejected, report.reasons) == (3, 3, 0, {})
    assert report.manifest_digest == manifest.load(places.out).digest
    assert table["path"].to_list() == ["b.mp4", "deep/er/a.mkv", "still.png"]
    row = by_path(table)["b.mp4"]
    expected = {
        "media": "video", "codec": "h264", "width": 64, "height": 48, "fps": 24.0, "rotation_deg": 0,
        "source": "made", "licence": "CC0", "caption": "a square moves right", "caption_origin": "sidecar_txt",
        "outcome": "ingested", "reason": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert by_path(table)["still.png"]["media"] == "image"
    for row in table.iter_rows(named=True):
        data = store.read_bytes(store.join(places.objects, row["object_key"]))
        assert data == (videos / row["path"]).read_bytes()
        assert row["object_key"].startswith(row["content_sha256"][:2] + "/" + row["content_sha256"])
    assert len(store.list_objects(places.objects)) == 3


def test_an_s3_prefix_gives_the_same_table_as_the_folder(
    videos: Path, local: Places, s3_server: S3Server, tmp_path: Path
) -> None:
    source = s3_server.bucket() + "/incoming"
    (videos / "b.txt").write_text("a caption", encoding="utf-8")
    for path in sorted(videos.rglob("*")):
        if path.is_file():
            store.upload(path, store.join(source, path.relative_to(videos).as_posix()))
    remote = Places(s3_server.bucket())
    local.ingest(videos)
    remote.ingest(source)
    assert remote.table(tmp_path / "a").equals(local.table(tmp_path / "b"))


def test_running_again_changes_and_uploads_nothing(videos: Path, local: Places) -> None:
    first = local.ingest(videos)
    written = {path: path.stat().st_mtime_ns for path in Path(local.out).parent.rglob("*") if path.is_file()}
    assert local.ingest(videos) == first
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_new_caption_or_file_changes_the_table_but_uploads_only_what_is_new(videos: Path, local: Places) -> None:
    first = local.ingest(videos)
    objects = {path: path.stat().st_mtime_ns for path in Path(local.objects).rglob("*") if path.is_file()}
    (videos / "b.txt").write_text("now with a caption", encoding="utf-8")
    second = local.ingest(videos)
    write_video(videos / "new.mp4", moving_square(90), 24)
    third = local.ingest(videos)
    assert len({first.manifest_digest, second.manifest_digest, third.manifest_digest}) == 3
    after = {path: path.stat().st_mtime_ns for path in Path(local.objects).rglob("*") if path.is_file()}
    assert len(after) == 4
    assert objects.items() <= after.items()


def test_a_lost_object_is_uploaded_again(videos: Path, local: Places) -> None:
    first = local.ingest(videos)
    lost = store.list_objects(local.objects)[0]
    store.delete(store.join(local.objects, lost.key))
    assert local.ingest(videos) == first
    assert lost in store.list_objects(local.objects)


def test_every_broken_file_is_a_row_with_a_reason(videos: Path, local: Places, tmp_path: Path) -> None:
    whole = (videos / "b.mp4").read_bytes()
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "note.mp4").write_text("not a video", encoding="utf-8")
    (videos / "README.md").write_text("# read me", encoding="utf-8")
    (videos / "head.mp4").write_bytes(whole[:40])
    (videos / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (videos / "copy.mp4").write_bytes(whole)
    (videos / "dangling.mp4").symlink_to(videos / "nowhere.mp4")
    os.mkfifo(videos / "pipe.mp4")
    report = local.ingest(videos)
    rows = by_path(local.table(tmp_path / "copy"))
    reasons = {path: row["reason"] for path, row in rows.items() if row["outcome"] == "rejected"}
    assert reasons.pop("noise.png") in ("not_media", "decode_error")
    assert reasons.pop("head.mp4") in ("not_media", "no_video_stream", "decode_error")
    assert reasons == {
        "empty.mp4": "empty_file",
        "note.mp4": "not_media",
        "README.md": "not_media",
        "copy.mp4": "duplicate_file",
        "dangling.mp4": "missing_file",
        "pipe.mp4": "not_media",
    }
    assert (report.total, report.ingested, report.rejected) == (11, 3, 8)
    assert sum(report.reasons.values()) == 8
    assert rows["copy.mp4"]["detail"] == "The same bytes as 'b.mp4'."
    assert rows["copy.mp4"]["object_key"] is None
    assert all(str(row["detail"]).endswith(".") for row in rows.values() if row["outcome"] == "rejected")
    assert len(store.list_objects(local.objects)) == 3


def test_an_unreadable_file_is_a_row(videos: Path, local: Places, tmp_path: Path) -> None:
    (videos / "secret.mp4").write_bytes(b"x")
    (videos / "secret.mp4").chmod(0)
    if os.access(videos / "secret.mp4", os.R_OK):
        pytest.skip("a superuser reads everything")
    local.ingest(videos)
    assert by_path(local.table(tmp_path / "copy"))["secret.mp4"]["reason"] == "unreadable"


def test_names_nobody_expects_are_safe(tmp_path: Path, local: Places) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(tmp_path / "seed.mp4", moving_square(), 24)
    data = (tmp_path / "seed.mp4").read_bytes()
    names = [
        b"line\nbreak.mp4", b"it's \"quoted\".mp4", "ümläut 日本.MP4".encode(), b"[bold]{x}.mp4", b"a..mp4..mp4",
        b"%2e%2e%2fup.mp4", b"back\\slash.mp4", b"latin-\xe9.mp4", b"semi;colon&amp.m;p4", b"no suffix", b"-rf.mp4",
    ]  # fmt: skip
    for number, name in enumerate(names):
        # trailing bytes after an MP4's last box are ignored, and make each file another one
        (folder / os.fsdecode(name)).write_bytes(data + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
    report = local.ingest(folder)
    table = local.table(tmp_path / "copy")
    assert (report.ingested, report.rejected) == (len(names), 0)
    assert table["path"].n_unique() == len(names)
    assert "latin-\\xe9.mp4" in table["path"]
    keys = [path.relative_to(local.objects).as_posix() for path in Path(local.objects).rglob("*") if path.is_file()]
    assert sorted(keys) == sorted(table["object_key"])
    assert {Path(key).suffix for key in keys} == {".mp4", ""}


def test_hidden_files_and_sidecars_are_no_inputs(videos: Path, local: Places) -> None:
    (videos / ".hidden").mkdir()
    shutil.copy(videos / "b.mp4", videos / ".hidden" / "x.mp4")
    shutil.copy(videos / "b.mp4", videos / ".x.mp4")
    (videos / "orphan.txt").write_text("nothing beside me", encoding="utf-8")
    (videos / "metadata.json").write_text("{}", encoding="utf-8")
    assert local.ingest(videos).total == 3


CAPTION_FILES = [
    ({"b.txt": "  from text \n"}, ("from text", None, "sidecar_txt")),
    ({"b.txt": "\ufeffwith a mark"}, ("with a mark", None, "sidecar_txt")),
    ({"b.txt": " \n"}, (None, None, None)),
    ({"b.json": '{"caption": "from json", "more": 1}'}, ("from json", None, "sidecar_json")),
    ({"b.json": '{"caption": "wins"}', "b.txt": "loses"}, ("wins", None, "sidecar_json")),
    ({"b.json": '{"other": 1}', "b.txt": "fallback"}, ("fallback", None, "sidecar_txt")),
    ({"b.json": "{broken", "b.txt": "fallback"}, ("fallback", None, "sidecar_txt")),
    ({"b.json": "[" * 100_000}, (None, None, None)),
    ({"b.json": '"just a string"'}, (None, None, None)),
    ({"b.json": '{"caption": "\\ud800"}'}, (None, None, None)),
    ({"b.json": '{"shots": [{"start_s": -1, "end_s": 2, "caption": "x"}]}'}, (None, None, None)),
    ({"b.json": '{"shots": [{"start_s": NaN, "end_s": 2, "caption": "x"}]}'}, (None, None, None)),
    ({"b.txt": "x" * (2 << 20)}, (None, None, None)),
    (
        {"b.json": '{"shots": [{"start_s": 0, "end_s": 0.5, "caption": "one"}], "caption": "all"}'},
        ("all", [{"start_s": 0.0, "end_s": 0.5, "caption": "one"}], "sidecar_json"),
    ),
]


@pytest.mark.parametrize(("files", "expected"), CAPTION_FILES)
def test_captions_beside_the_file(
    videos: Path, local: Places, tmp_path: Path, files: dict[str, str], expected: tuple[object, ...]
) -> None:
    for name, text in files.items():
        (videos / name).write_text(text, encoding="utf-8")
    report = local.ingest(videos)
    row = by_path(local.table(tmp_path / "copy"))["b.mp4"]
    shots = json.loads(str(row["caption_shots"])) if row["caption_shots"] else None
    assert report.ingested == 3
    assert (row["caption"], shots, row["caption_origin"]) == expected


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_names_files_and_captions(videos: Path, local: Places, tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "outside.mp4", moving_square(77), 24)
    (videos / "still.txt").write_text("from beside", encoding="utf-8")
    rows = [
        ("b.mp4", 'a caption, with "quotes"\nand lines'),
        (str(tmp_path / "outside.mp4"), "somewhere else"),
        ("still.png", ""),
        ("b.mp4", "again"),
        ("../outside.mp4", "leaves"),
        ("missing.mp4", "not there"),
        ("", "names nothing"),
    ]
    source = videos / f"list{suffix}"
    if suffix == ".csv":
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "text"), *rows])
    else:
        pl.DataFrame(rows, schema=["path", "text"], orient="row").write_parquet(source)
    report = local.ingest(source)
    table = local.table(tmp_path / "copy")
    assert table["path"].to_list() == [path for path, _ in rows]
    assert table["caption"].to_list()[:3] == [rows[0][1], "somewhere else", "from beside"]
    assert table["caption_origin"].to_list()[:3] == ["table", "table", "sidecar_txt"]
    assert table["reason"].to_list()[3:] == ["duplicate_path", "unsafe_path", "missing_file", "no_path"]
    assert (report.total, report.ingested) == (7, 3)


def test_a_table_in_a_store_may_not_read_local_files(s3_server: S3Server, tmp_path: Path) -> None:
    write_video(tmp_path / "private.mp4", moving_square(), 24)
    write_video(tmp_path / "public.mp4", moving_square(9), 24)
    bucket = s3_server.bucket()
    store.upload(tmp_path / "public.mp4", f"{bucket}/in/public.mp4")
    rows = f"path,text\n{tmp_path / 'private.mp4'},x\npublic.mp4,y\n{bucket}/in/public.mp4,z\n"
    store.write_bytes(f"{bucket}/in/list.csv", rows.encode())
    places = Places(s3_server.bucket())
    places.ingest(f"{bucket}/in/list.csv")
    table = places.table(tmp_path / "copy")
    assert table["reason"].to_list() == ["unsafe_path", None, "duplicate_file"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.csv", b"file,text\nx,y\n", "needs a column 'path'"),
        ("a.csv", b"", "needs a column 'path'"),
        ("a.csv", b"path,text\n", "holds no rows"),
        ("a.csv", b"path\n\xff\xfe\n", "not readable"),
        ("a.csv", b"path,path\nx,y\n", "not readable"),
        ("a.parquet", b"PAR1 no", "not readable"),
        ("a.mp4", b"", "is one file"),
    ],
)
def test_a_source_of_the_wrong_kind_is_one_sentence(
    tmp_path: Path, local: Places, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(KinoflowError, match=sentence):
        local.ingest(tmp_path / name)


def test_a_missing_or_empty_source_is_one_sentence(tmp_path: Path, places: Places, s3_server: S3Server) -> None:
    (tmp_path / "empty").mkdir()
    for source, sentence in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "nowhere.csv", "does not exist"),
        (tmp_path / "empty", "holds no files"),
        ("s3://no-such-bucket/x", "bucket does not exist"),
        (s3_server.bucket() + "/nothing", "holds no files"),
    ]:
        with pytest.raises(KinoflowError, match=sentence):
            places.ingest(source)
    with pytest.raises(manifest.ManifestError):
        manifest.load(places.out)


def test_too_many_broken_files_fail_the_stage(videos: Path, local: Places) -> None:
    for number in range(3):
        (videos / f"bad{number}.mp4").write_text(f"bad {number}", encoding="utf-8")
    local.ingest(videos, IngestConfig(max_failed_share=0.5))
    with pytest.raises(KinoflowError, match=r"3 of 6 files .*3 × not_media; first: 'bad0.mp4'.*max_failed_share 0.4"):
        local.ingest(videos, IngestConfig(max_failed_share=0.4))


def test_only_broken_files_fail_whatever_the_config_allows(tmp_path: Path, local: Places) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"bad")
    with pytest.raises(KinoflowError, match="1 of 1 files"):
        local.ingest(tmp_path / "videos", IngestConfig(max_failed_share=1))


def test_outputs_inside_the_source_are_refused(videos: Path, local: Places) -> None:
    with pytest.raises(KinoflowError, match="lies inside the source"):
        ingest(IngestConfig(), str(videos), str(videos / "objects"), local.out)
    with pytest.raises(KinoflowError, match="lies inside the source"):
        ingest(IngestConfig(), "s3://b/x/", "s3://b/objects", "s3://b/x/out")


def test_rotation_is_honoured(tmp_path: Path, local: Places) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "phone.mp4", moving_square(), 24, rotation_deg=90)
    local.ingest(tmp_path / "videos")
    row = local.table(tmp_path / "copy").row(0, named=True)
    assert (row["height"], row["width"], row["rotation_deg"]) == (64, 48, 90)


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.ingest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_command_line(videos: Path, local: Places, tmp_path: Path) -> None:
    config = tmp_path / "ingest.yaml"
    config.write_text("licence: CC-BY\n", encoding="utf-8")
    places = ("--objects", local.objects, "--out", local.out)
    done = _command("--config", str(config), "--source", str(videos), *places)
    assert done.returncode == 0, done.stderr
    assert IngestReport.model_validate_json(done.stdout).ingested == 3
    events = tmp_path / "events"
    failed = _command("--source", str(tmp_path / "no\nwhere"), *places, KINOFLOW_PROGRESS_FILE=str(events))
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: The source ")
    assert "Traceback" not in failed.stderr
    assert json.loads(events.read_text().splitlines()[-1]) == {"error": last.removeprefix("error: ")}
