"""Files on the web: bounded, tried again, gone on with, and not downloaded twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from components import manifest, store, tables
from components.config import IngestConfig
from components.errors import KinoflowError
from components.ingest import ingest
from components.ingest.downloads import DownloadError, Limits, fetch, public_url
from components.video import write_video
from tests.components.test_ingest import moving_square
from tests.web_server import Web, serving

LIMITS = Limits(max_bytes=1 << 20, attempts=3, pause_s=0.01)


@pytest.fixture
def web() -> Iterator[Web]:
    with serving({}) as served:
        yield served


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    write_video(tmp_path / "seed.mp4", moving_square(), 24)
    return (tmp_path / "seed.mp4").read_bytes()


def another(video: bytes, number: int) -> bytes:
    """Bytes after an MP4's last box are ignored, and make it another file."""
    return video + b"\0\0\0\x0cfree" + number.to_bytes(4, "big")


def run(source: str, root: Path, config: IngestConfig | None = None) -> pl.DataFrame:
    ingest(config or IngestConfig(), source, str(root / "objects"), str(root / "ingest"))
    manifest.fetch(str(root / "ingest"), root / "copy")
    return tables.read(root / "copy" / "videos.parquet", tables.VIDEOS)


def test_a_download_arrives_whole(web: Web, tmp_path: Path) -> None:
    web.files = {"a": b"x" * 3000, "busy": b"y", "cut": bytes(range(256)) * 4000, "plain-cut": b"z"}
    assert fetch(f"{web.url}/a", tmp_path / "a", LIMITS) == f'etag "{hash(web.files["a"])}"'
    assert fetch(f"{web.url}/plain-cut", tmp_path / "plain", LIMITS) == ""
    for name in ("busy", "cut"):
        fetch(f"{web.url}/{name}", tmp_path / name, LIMITS)
        assert (tmp_path / name).read_bytes() == web.files[name]
    assert web.asked["busy"] == 3
    assert web.sent_bytes["cut"] < 1.5 * len(web.files["cut"]), "the second request went on near where the first ended"


def test_an_unchanged_file_is_not_sent_again(web: Web, tmp_path: Path) -> None:
    web.files = {"a": b"x" * 3000}
    version = fetch(f"{web.url}/a", tmp_path / "a", LIMITS)
    assert fetch(f"{web.url}/a", tmp_path / "a", LIMITS, version) is None
    web.files = {"a": b"y" * 3000}
    assert fetch(f"{web.url}/a", tmp_path / "a", LIMITS, version) not in (None, version)
    assert (tmp_path / "a").read_bytes() == web.files["a"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "missing_file"), ("page", "web_page"), ("loop", "download_failed"), ("large", "too_large"),
        ("forbidden", "download_failed"), ("busy-always", "download_failed"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_has_a_reason(web: Web, tmp_path: Path, name: str, reason: str) -> None:
    web.files = {"large": b"x" * ((1 << 20) + 1), "forbidden": b"x", "busy-always": b"x"}
    with pytest.raises(DownloadError) as refused:
        fetch(f"{web.url}/{name}", tmp_path / "file", Limits(1 << 20, attempts=2, pause_s=0.01))
    assert refused.value.args[0] == reason
    assert refused.value.args[1].endswith(".")


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "https://exa mple.org/x", "http://\udcff/", "http://127.0.0.1:1/x"]
)
def test_addresses_that_lead_nowhere_have_a_reason(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError):
        fetch(url, tmp_path / "file", Limits(10, attempts=1))


def test_credentials_are_no_part_of_a_name() -> None:
    assert (
        public_url("https://me:secret@host/a%20b.mp4?id=3&X-Amz-Signature=s&sig=t#x") == "https://host/a%20b.mp4?id=3"
    )
    assert public_url("https://host/watch?v=1&list=2") == "https://host/watch?v=1&list=2"


def test_a_list_of_addresses(web: Web, video: bytes, tmp_path: Path) -> None:
    web.files = {"a.mp4": video, "b.mp4": another(video, 1), "broken.mp4": video[:60]}
    lines = [
        "# mine",
        f"{web.url}/a.mp4?X-Amz-Signature=s",
        f"{web.url}/b.mp4",
        f"{web.url}/page.mp4",
        f"{web.url}/gone.mp4",
    ]
    lines += [f"{web.url}/broken.mp4", f"{web.url}/b.mp4", "ftp://host/c.mp4", "../up.mp4", "http://[bad/x.mp4"]
    (tmp_path / "links.txt").write_text("\n".join(lines), encoding="utf-8")
    table = run(str(tmp_path / "links.txt"), tmp_path)
    assert table["path"][0] == f"{web.url}/a.mp4"
    assert table["path"][1:].to_list() == lines[2:]
    reasons = table["reason"].to_list()
    assert reasons[:4] == [None, None, "web_page", "missing_file"]
    assert reasons[4] in ("not_media", "decode_error", "no_video_stream")
    assert reasons[5:] == ["duplicate_path", "bad_address", "unsafe_path", "bad_address"]
    assert table["object_key"][0].endswith(".mp4")


def test_running_again_downloads_nothing(web: Web, video: bytes, tmp_path: Path) -> None:
    web.files = {"a.mp4": video, "plain.mp4": another(video, 1)}
    (tmp_path / "links.txt").write_text("".join(f"{web.url}/{name}\n" for name in web.files), encoding="utf-8")
    first = run(str(tmp_path / "links.txt"), tmp_path)
    assert run(str(tmp_path / "links.txt"), tmp_path).equals(first)
    assert web.sent_bytes == {"a.mp4": len(video), "plain.mp4": 2 * len(web.files["plain.mp4"])}, (
        "only what the server has no version for is looked at again"
    )


def test_an_interrupted_ingestion_downloads_nothing_twice(web: Web, video: bytes, tmp_path: Path) -> None:
    names = [f"{kind}{number}.mp4" for number in range(3) for kind in ("a", "plain")]
    web.files = {name: another(video, index) for index, name in enumerate(names)}
    links = tmp_path / "links.txt"
    links.write_text("".join(f"{web.url}/{name}\n" for name in web.files), encoding="utf-8")
    with pytest.raises(KinoflowError, match="cannot be used"):
        run(str(links), tmp_path, IngestConfig(max_failed_share=0.1, max_file_bytes=len(video)))
    (tmp_path / "ingest").write_bytes(b"in the way of the table")
    with pytest.raises(KinoflowError):
        ingest(IngestConfig(), str(links), str(tmp_path / "objects"), str(tmp_path / "ingest" / "x"))
    before = web.sent_bytes.copy()
    (tmp_path / "ingest").unlink()
    assert run(str(links), tmp_path)["outcome"].to_list() == ["ingested"] * 6
    assert web.sent_bytes == before
    run(str(links), tmp_path)
    assert set(web.sent_bytes - before) == {name for name in web.files if name.startswith("plain")}


def test_tables_archives_and_videos_on_the_web(web: Web, video: bytes, tmp_path: Path) -> None:
    web.files = {
        "set/list.csv": b"path,text\nvideos/a b.mp4,hello\n/etc/hostname,no\n../up.mp4,no\n",
        "set/videos/a%20b.mp4": video,
    }
    table = run(f"{web.url}/set/list.csv?token=t", tmp_path)
    assert table["reason"].to_list() == [None, "unsafe_path", "unsafe_path"]
    assert (table["caption"][0], table["size_bytes"][0]) == ("hello", len(video))
    found = manifest.load(str(tmp_path / "ingest"))
    assert found.annotations["source"] == f"{web.url}/set/list.csv"
    single = run(f"{web.url}/set/videos/a%20b.mp4", tmp_path / "single")
    assert single["content_sha256"][0] == table["content_sha256"][0]
    with pytest.raises(KinoflowError, match=r"The list .* cannot be had: The server has no such file"):
        run(f"{web.url}/nothing.csv", tmp_path / "none")


def test_nothing_of_an_address_with_a_signature_is_stored(web: Web, video: bytes, tmp_path: Path) -> None:
    web.files = {"a.mp4": video}
    (tmp_path / "links.txt").write_text(f"{web.url}/a.mp4?X-Goog-Signature=verysecret\n", encoding="utf-8")
    run(str(tmp_path / "links.txt"), tmp_path / "run")
    for item in store.list_objects(str(tmp_path / "run")):
        assert b"verysecret" not in (tmp_path / "run" / item.key).read_bytes()
