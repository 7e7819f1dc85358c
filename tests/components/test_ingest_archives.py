"""Archives as WebDataset writes them: every member a row, none written by its name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from components import manifest, store, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest import ingest
from components.video import write_video
from tests.components.test_ingest import moving_square
from tests.conftest import S3Server

Members = list[tuple[str | tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    path = tmp_path_factory.mktemp("seed") / "seed.mp4"
    write_video(path, moving_square(), 24)
    data = path.read_bytes()
    return lambda number: data + b"\0\0\0\x0cfree" + number.to_bytes(4, "big")


def write_tar(path: Path, members: Members, mode: str = "w") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def run(source: str, root: Path, config: IngestConfig | None = None) -> pl.DataFrame:
    ingest(config or IngestConfig(max_failed_share=1.0), source, str(root / "objects"), str(root / "ingest"))
    manifest.fetch(str(root / "ingest"), root / "copy")
    return tables.read(root / "copy" / "videos.parquet", tables.VIDEOS)


def test_members_of_one_stem_belong_together(video: Callable[[int], bytes], tmp_path: Path) -> None:
    said = {"caption": "from json", "license": "CC0", "author": "Ada", "fps": 24}
    write_tar(
        tmp_path / "shard.tar",
        [
            ("0/a.mp4", video(0)), ("0/a.txt", b"from text"), ("b.json", json.dumps(said).encode()),
            ("b.mp4", video(1)), ("c.cam.mp4", video(2)), ("c.txt", b"by the first dot"), ("._c.mp4", b"x"),
            (special("d/", tarfile.DIRTYPE), b""), ("d/e.mp4", video(3)), ("d/e.json", b"{"),
            ("d/e.txt", b"text instead"),
        ],
    )  # fmt: skip
    table = run(str(tmp_path / "shard.tar"), tmp_path, IngestConfig(licence="mine"))
    columns = ["path", "caption", "caption_origin", "licence", "attribution", "outcome"]
    assert table.select(columns).rows() == [
        ("shard.tar/0/a.mp4", "from text", "sidecar_txt", "mine", None, "ingested"),
        ("shard.tar/b.mp4", "from json", "sidecar_json", "CC0", "Ada", "ingested"),
        ("shard.tar/c.cam.mp4", "by the first dot", "sidecar_txt", "mine", None, "ingested"),
        ("shard.tar/d/e.mp4", "text instead", "sidecar_txt", "mine", None, "ingested"),
    ]
    assert table["caption_note"][3].startswith("The .json beside it is not used")
    assert store.read_bytes(store.join(str(tmp_path / "objects"), table["object_key"][3])) == video(3)


def test_hostile_members_are_rows_and_nothing_leaves_the_scratch(video: Callable[[int], bytes], tmp_path: Path) -> None:
    write_tar(
        tmp_path / "in" / "evil.tar",
        [
            ("../up.mp4", video(0)), ("/tmp/absolute.mp4", video(1)), ("a/../../b.mp4", video(2)),
            ("ok.mp4", video(3)), (special("link.mp4", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (special("hard.mp4", tarfile.LNKTYPE, "ok.mp4"), b""), (special("pipe.mp4", tarfile.FIFOTYPE), b""),
            (special("disk.mp4", tarfile.BLKTYPE), b""), ("ok.mp4", video(4)),
            ("line\nbreak \"'ümläut.mp4", video(5)), ("empty.mp4", b""), ("copy.mp4", video(3)),
            ("text.mp4", b"x" * 9000), ("x" * 3000 + ".mp4", video(6)),
        ],
    )  # fmt: skip
    before = set(tmp_path.rglob("*"))
    table = run(str(tmp_path / "in" / "evil.tar"), tmp_path / "run", IngestConfig(max_file_bytes=100_000))
    assert table["reason"].to_list() == [
        "unsafe_path", "unsafe_path", "unsafe_path", None, "unsafe_member", "unsafe_member", "unsafe_member",
        "unsafe_member", "duplicate_path", None, "empty_file", "duplicate_file", "not_media", None,
    ]  # fmt: skip
    assert table["source_id"].n_unique() == len(table)
    outside = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "run")} - {tmp_path / "run"}
    assert outside == before


def test_large_members_and_archives_are_refused(video: Callable[[int], bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("small.mp4", video(0))])
    write_tar(tmp_path / "in" / "b.tar", [("large.mp4", b"\0" * 200_000)])
    write_tar(tmp_path / "in" / "bomb.tar.gz", [("zeros.mp4", b"\0" * 10_000_000)], "w:gz")
    table = run(str(tmp_path / "in"), tmp_path / "run", IngestConfig(max_file_bytes=100_000))
    assert table["path"].to_list() == ["a.tar/small.mp4", "b.tar", "bomb.tar.gz"]
    assert table["reason"].to_list() == [None, "too_large", "too_large"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_archive_gives_what_comes_before(video: Callable[[int], bytes], tmp_path: Path, mode: str) -> None:
    name = "a.tar" if mode == "w" else "a.tgz"
    members: Members = [(f"{number}.mp4", video(number)) for number in range(6)]
    data = write_tar(tmp_path / "in" / name, members, mode)
    (tmp_path / "in" / name).write_bytes(data[: len(data) * 2 // 3 if mode == "w" else -60])
    table = run(str(tmp_path / "in"), tmp_path / "run")
    reasons = table["reason"].to_list()
    assert reasons[0] is None
    assert reasons[-1] == "damaged_archive"
    assert set(reasons) == {None, "damaged_archive"}


def test_a_damaged_header_is_noticed(video: Callable[[int], bytes], tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "in" / "a.tar", [(f"{n}.mp4", video(n)) for n in range(4)]))
    data[data.index(b"2.mp4\0")] = 255
    (tmp_path / "in" / "a.tar").write_bytes(data)
    table = run(str(tmp_path / "in"), tmp_path / "run")
    assert table["reason"].to_list() == [None, None, "damaged_archive"]
    assert table["path"][2] == "a.tar"
    assert "after 2 members" in table["detail"][2]


def test_archives_that_are_none_or_empty(video: Callable[[int], bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.mp4").write_bytes(video(0))
    (tmp_path / "in" / "zero.tar").write_bytes(b"")
    (tmp_path / "in" / "text.tar").write_bytes(b"no archive at all" * 100)
    (tmp_path / "in" / "not.tgz").write_bytes(b"\x1f\x8b" + b"no gzip" * 100)
    (tmp_path / "in" / "dangling.tar").symlink_to(tmp_path / "nowhere")
    write_tar(tmp_path / "in" / "nothing.tar", [("only.txt", b"a caption")])
    table = run(str(tmp_path / "in"), tmp_path / "run")
    reasons = {row["path"]: row["reason"] for row in table.iter_rows(named=True)}
    assert reasons == {
        "good.mp4": None, "zero.tar": "damaged_archive", "text.tar": "damaged_archive", "not.tgz": "damaged_archive",
        "dangling.tar": "missing_file", "nothing.tar": "empty_archive",
    }  # fmt: skip


def test_shards_by_pattern_here_and_in_a_store(
    video: Callable[[int], bytes], tmp_path: Path, s3_server: S3Server
) -> None:
    for number in range(8, 12):
        write_tar(tmp_path / "in" / f"s-{number:02d}.tar", [(f"{number}.mp4", video(number)), (f"{number}.txt", b"hi")])
    expected = [f"s-{number:02d}.tar/{number}.mp4" for number in range(8, 12)]
    by_braces = run(f"{tmp_path}/in/s-{{08..11}}.tar", tmp_path / "run")
    assert by_braces["path"].to_list() == expected
    assert run(f"{tmp_path}/in/s-*.tar", tmp_path / "run").equals(by_braces)
    assert run(str(tmp_path / "in"), tmp_path / "run").equals(by_braces)
    bucket = s3_server.bucket()
    for path in (tmp_path / "in").iterdir():
        store.upload(path, f"{bucket}/in/{path.name}")
    assert run(f"{bucket}/in/s-?[0-9].tar", tmp_path / "run").equals(by_braces)
    assert run(f"{bucket}/in", tmp_path / "run").equals(by_braces)
    missing = run(f"{tmp_path}/in/s-{{11..12}}.tar", tmp_path / "run")
    assert missing["reason"].to_list() == [None, "missing_file"]
    with pytest.raises(KinoflowError, match="Nothing matches"):
        run(f"{tmp_path}/in/t-*.tar", tmp_path / "run")


def test_a_table_may_name_archives(video: Callable[[int], bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("1.mp4", video(1)), ("2.mp4", video(2)), ("2.json", b'{"licence": "CC0"}')])
    (tmp_path / "list.csv").write_text("path,text,licence,source,batch\ns.tar,not for members,MIT,lab,7\n")
    table = run(str(tmp_path / "list.csv"), tmp_path / "run")
    columns = ["path", "caption", "licence", "source", "extra"]
    assert table.select(columns).rows() == [
        ("s.tar/1.mp4", None, "MIT", "lab", '{"batch":"7"}'), ("s.tar/2.mp4", None, "CC0", "lab", '{"batch":"7"}')
    ]  # fmt: skip
