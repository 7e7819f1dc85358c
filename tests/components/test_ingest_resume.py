"""What was read is not read again; what has changed is; and no version is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from components import manifest, store, tables
from components.config import IngestConfig
from components.ingest import ingest
from components.video import write_video
from tests.components.test_ingest import moving_square
from tests.conftest import S3Server
from tests.web_server import serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        write_video(folder / f"{number}.mp4", moving_square(100 + 30 * number), 24)
    (folder / "note.mp4").write_text("no video", encoding="utf-8")
    return folder


def run(source: Path | str, root: str, copy: Path, config: IngestConfig | None = None) -> pl.DataFrame:
    ingest(config or IngestConfig(), str(source), f"{root}/objects", f"{root}/ingest")
    manifest.fetch(f"{root}/ingest", copy)
    return tables.read(copy / "videos.parquet", tables.VIDEOS)


class _Opened:
    """Files that this process opens, as the interpreter tells; hooks cannot be removed again, so one serves all."""

    names: list[str] | None = None


def _note_opening(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _Opened.names is not None and isinstance(arguments[0], str):
        _Opened.names.append(arguments[0])


sys.addaudithook(_note_opening)


@contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """Afterwards holds the names of the files of a folder that were opened."""
    _Opened.names, found = [], set()
    try:
        yield found
        found.update(Path(name).name for name in _Opened.names if name.startswith(f"{folder}/"))
    finally:
        _Opened.names = None


def test_files_that_have_not_changed_are_not_opened(folder: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    with opened_below(folder) as opened:
        first = run(folder, root, tmp_path / "a")
    assert opened == {"0.mp4", "1.mp4", "2.mp4", "3.mp4", "note.mp4"}
    shutil.rmtree(f"{root}/ingest")
    (folder / "4.mp4").write_text("another that is no video", encoding="utf-8")
    with opened_below(folder) as opened:
        second = run(folder, root, tmp_path / "b", IngestConfig(licence="CC0"))
    assert opened == {"4.mp4"}
    assert second["licence"].to_list() == ["CC0"] * 6
    facts = ["path", "content_sha256", "codec", "object_key", "reason", "detail"]
    assert second.filter(pl.col("path") != "4.mp4").select(facts).equals(first.select(facts))
    assert len(store.list_objects(f"{root}/known-files")) == 1


def test_a_file_changed_in_place_is_read_again(folder: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    first = run(folder, root, tmp_path / "a")
    path = folder / "2.mp4"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    second = run(folder, root, tmp_path / "b")
    different = [a != b for a, b in zip(first["content_sha256"], second["content_sha256"], strict=True)]
    assert different == [False, False, True, False, False]


def test_an_object_changed_in_the_store_is_read_again(folder: Path, tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    for path in folder.iterdir():
        store.upload(path, f"{bucket}/in/{path.name}")
    (tmp_path / "list.csv").write_text(
        "".join(f"{bucket}/in/{n}.mp4\n" for n in ["path", 0, 1]).replace(f"{bucket}/in/path.mp4", "path")
    )
    first, listed = (
        run(f"{bucket}/in", bucket, tmp_path / "a"),
        run(tmp_path / "list.csv", f"{bucket}/b", tmp_path / "b"),
    )
    assert run(f"{bucket}/in", bucket, tmp_path / "a").equals(first)
    write_video(tmp_path / "other.mp4", moving_square(7), 24)
    store.upload(tmp_path / "other.mp4", f"{bucket}/in/1.mp4")
    for source, root, before in [(f"{bucket}/in", bucket, first), (str(tmp_path / "list.csv"), f"{bucket}/b", listed)]:
        after = run(source, root, tmp_path / "c")
        assert (after["content_sha256"] != before["content_sha256"]).to_list()[:2] == [False, True]
    store.delete(f"{bucket}/in/1.mp4")
    assert run(f"{bucket}/in", bucket, tmp_path / "c")["path"].to_list() == ["0.mp4", "2.mp4", "3.mp4", "note.mp4"]
    assert run(tmp_path / "list.csv", f"{bucket}/b", tmp_path / "c")["reason"].to_list() == [None, "missing_file"]


def test_facts_that_are_damaged_are_found_out_again(folder: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    first = run(folder, root, tmp_path / "a")
    known = store.list_objects(f"{root}/known-files")[0]
    store.write_bytes(f"{root}/known-files/{known.key}", b"PAR1 not any more")
    shutil.rmtree(f"{root}/ingest")
    assert run(folder, root, tmp_path / "b").equals(first)


@pytest.mark.slow
def test_a_killed_ingestion_goes_on(folder: Path, tmp_path: Path) -> None:
    """SIGKILL while a server keeps one download waiting; what came before is not asked for again."""
    root = tmp_path / "run"
    with serving({path.name: path.read_bytes() for path in sorted(folder.iterdir())}) as web:
        links = tmp_path / "links.txt"
        links.write_text("".join(f"{web.url}/{name}\n" for name in [*web.files, "slow.mp4", "endless.mp4"]))
        web.files |= {"slow.mp4": web.files["0.mp4"] + b"\0\0\0\x0cfree0000", "endless.mp4": b""}
        command = [sys.executable, "-m", "components.ingest", "--source", str(links)]
        process = subprocess.Popen([*command, "--objects", f"{root}/objects", "--out", f"{root}/ingest"])
        deadline_s = time.monotonic() + 60
        while not store.list_objects(f"{root}/known-files") and time.monotonic() < deadline_s:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (root / "ingest").exists()
        before = web.sent_bytes.copy()
        web.files["endless.mp4"] = web.files["0.mp4"] + b"\0\0\0\x0cfree1111"
        web.is_patient.set()
        table = run(links, str(root), tmp_path / "copy")
    assert table["outcome"].to_list() == ["ingested"] * 4 + ["rejected"] + ["ingested"] * 2
    assert {name for name, size in (web.sent_bytes - before).items() if size} == {"endless.mp4"}


def test_a_changed_source_is_a_version_and_the_one_before_stays(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(tmp_path / "run")
    first = run(folder, root, tmp_path / "a")
    was = manifest.load(f"{root}/ingest")
    write_video(folder / "new.mp4", moving_square(9), 24)
    write_video(folder / "1.mp4", moving_square(8), 24)
    (folder / "2.mp4").unlink()
    (folder / "3.txt").write_text("a caption", encoding="utf-8")
    caplog.set_level("INFO")
    run(folder, root, tmp_path / "b")
    now = manifest.load(f"{root}/ingest")
    assert now.annotations["replaces"] == was.digest
    assert now.annotations["changes"] == "1 new, 1 changed, 1 gone, 1 described otherwise"
    assert "1 new, 1 changed, 1 gone" in caplog.text
    earlier = now.annotations["replaced"]
    assert earlier == f"{root}/versions/ingest/{was.digest[:16]}"
    assert manifest.load(earlier) == was
    manifest.fetch(earlier, tmp_path / "c", kind="videos")
    assert tables.read(tmp_path / "c" / "videos.parquet", tables.VIDEOS).equals(first)
    written = {item.key: item.modified_s for item in store.list_objects(root)}
    run(folder, root, tmp_path / "b")
    assert {item.key: item.modified_s for item in store.list_objects(root)} == written
