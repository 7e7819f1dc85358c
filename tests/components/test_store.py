"""Objects by URI, on a local disk and on a real S3 server alike."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest

from components import store
from components.errors import KinoflowError
from components.store import ObjectMissing, StoredObject, StoreError, parts
from components.store.failures import sentences
from tests.conftest import S3Server
from tests.s3_process import free_port, start_s3_server

AWKWARD_KEYS = [
    "plain.txt",
    "with space.txt",
    "ümläut/日本.txt",
    'it\'s "quoted".txt',
    "a+b%20&c=d?e#f.txt",
    "deep/er/x",
]


@pytest.fixture(params=["local", "s3"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.bucket() + "/some/prefix"


def test_what_is_written_can_be_read_listed_and_deleted(prefix: str) -> None:
    for number, key in enumerate(AWKWARD_KEYS):
        store.write_bytes(store.join(prefix, key), bytes([number]) * (number + 1))
    assert store.list_objects(prefix) == sorted(
        (StoredObject(key, number + 1) for number, key in enumerate(AWKWARD_KEYS)), key=lambda item: item.key
    )
    for number, key in enumerate(AWKWARD_KEYS):
        uri = store.join(prefix, key)
        assert store.exists(uri)
        assert store.read_bytes(uri) == bytes([number]) * (number + 1)
        store.delete(uri)
        assert not store.exists(uri)
    assert store.list_objects(prefix) == []


def test_a_second_write_replaces_the_first(prefix: str) -> None:
    uri = store.join(prefix, "x")
    store.write_bytes(uri, b"old and longer")
    store.write_bytes(uri, b"new")
    assert store.read_bytes(uri) == b"new"


def test_files_go_up_and_come_down_whole(prefix: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 5000)
    store.upload(source, store.join(prefix, "a/big"))
    store.download(store.join(prefix, "a/big"), tmp_path / "new folder" / "copy")
    assert (tmp_path / "new folder" / "copy").read_bytes() == source.read_bytes()
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["copy"]


def test_a_large_object_goes_in_parts(s3_server: S3Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(parts.PART_BYTES + 12345)
        file.seek(parts.PART_BYTES)
        file.write(b"end")
    uri = s3_server.bucket() + "/big"
    store.upload(source, uri)
    store.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_what_is_missing_is_named(prefix: str, tmp_path: Path) -> None:
    store.write_bytes(store.join(prefix, "there"), b"")
    uri = store.join(prefix, "not there")
    assert not store.exists(uri)
    with pytest.raises(ObjectMissing, match="not there"):
        store.read_bytes(uri)
    with pytest.raises(ObjectMissing, match="not there"):
        store.download(uri, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*")), "a failed download leaves nothing behind"
    store.delete(uri)


def test_a_prefix_is_not_the_beginning_of_a_name(prefix: str) -> None:
    store.write_bytes(store.join(prefix, "ab/x"), b"1")
    store.write_bytes(store.join(prefix, "abc/x"), b"2")
    assert [item.key for item in store.list_objects(store.join(prefix, "ab"))] == ["x"]
    assert store.list_objects(store.join(prefix, "nothing")) == []


def test_more_objects_than_one_page(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.write_bytes(f"{bucket}/p/{number:04d}", b""), range(1005)))
    assert len(store.list_objects(f"{bucket}/p")) == 1005


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    store.write_bytes(uri, b"old")
    with pytest.raises(ObjectMissing):
        store.upload(tmp_path / "missing", uri)
    assert store.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_one_sentence() -> None:
    full = Path("/dev/full")
    with pytest.raises(StoreError, match="disk is full"), sentences("write", "/x"), full.open("wb") as file:
        file.write(b"x")


def test_ensure_bucket_creates_and_leaves_alone(s3_server: S3Server, tmp_path: Path) -> None:
    for uri in ("s3://made-by-test/x", str(tmp_path / "made")):
        store.ensure_bucket(uri)
        store.write_bytes(store.join(uri, "object"), b"kept")
        store.ensure_bucket(uri)
        assert store.read_bytes(store.join(uri, "object")) == b"kept"


def test_a_missing_bucket_is_one_sentence(s3_server: S3Server) -> None:
    assert not store.exists("s3://no-such-bucket/x")
    with pytest.raises(ObjectMissing, match="bucket does not exist; create it"):
        store.read_bytes("s3://no-such-bucket/x")
    with pytest.raises(StoreError, match="no-such-bucket"):
        store.write_bytes("s3://no-such-bucket/x", b"")
    with pytest.raises(StoreError, match="no-such-bucket"):
        store.list_objects("s3://no-such-bucket/x")


def test_wrong_credentials_are_one_sentence(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.bucket()
    store.write_bytes(f"{bucket}/x", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="refused the credentials") as caught:
        store.read_bytes(f"{bucket}/x")
    assert "wrong" not in str(caught.value)


def test_missing_credentials_are_one_sentence(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.read_bytes("s3://bucket/x")


def test_an_absent_server_is_one_sentence(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("KINOFLOW_STORE_PATIENCE_S", "0")
    with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{port} did not answer.*AWS_ENDPOINT_URL_S3"):
        store.exists("s3://bucket/x")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "", "."])
def test_keys_that_leave_their_folder_are_refused(key: str) -> None:
    with pytest.raises(KinoflowError, match="refused"):
        store.safe_key(key)


def test_split_s3() -> None:
    assert store.split_s3("s3://bucket/a/b?c#d\ne") == ("bucket", "a/b?c#d\ne")
    assert store.split_s3("s3://bucket") == ("bucket", "")
    with pytest.raises(StoreError, match="names no bucket"):
        store.split_s3("s3:///x")


# --- large objects, interruptions and outages ----------------------------------------------------------------------


class InterruptedUploadError(Exception):
    """Stands for the process that ends while it uploads."""


class Pieces:
    """Three parts and a bit, told by a number each; calls `at` before a part is read for the first time."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None, first: bytes = b"\0") -> None:
        self.size_bytes = 3 * parts.PART_BYTES + 1000
        self.at, self.first = at or {}, first

    def read(self, offset: int, size: int) -> bytes:
        number = offset // parts.PART_BYTES
        self.at.pop(number, lambda: None)()
        return (self.first if number == 0 else bytes([number])) * size

    @property
    def sha256(self) -> str:
        steps = ((n, min(parts.PART_BYTES, self.size_bytes - n * parts.PART_BYTES)) for n in range(4))
        return hashlib.sha256(b"".join(self.read(n * parts.PART_BYTES, size) for n, size in steps)).hexdigest()


def interrupt() -> None:
    raise InterruptedUploadError


@pytest.mark.parametrize("first", [b"\0", b"x"])
def test_an_interrupted_upload_goes_on_from_the_parts_that_are_right(
    s3_server: S3Server, caplog: pytest.LogCaptureFixture, first: bytes
) -> None:
    uri = s3_server.bucket() + "/deep/big"
    with pytest.raises(InterruptedUploadError):
        store.write(uri, Pieces({2: interrupt}))
    assert not store.exists(uri)
    [pending] = store.pending_uploads(uri.rsplit("/", 1)[0])
    assert pending.uri == uri
    with caplog.at_level("INFO"):
        written = store.write(uri, Pieces(first=first))  # where a part differs nothing is gone on with
    assert "going on with an upload of which 2 parts are there" in caplog.text
    assert ("starts anew" in caplog.text) == (first == b"x")
    assert written == store.checksum(uri) == store.Transferred(Pieces().size_bytes, Pieces(first=first).sha256)
    assert store.pending_uploads(uri) == []


def test_a_begun_upload_can_be_aborted(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    with pytest.raises(InterruptedUploadError):
        store.write(f"{bucket}/big", Pieces({1: interrupt}))
    [pending] = store.pending_uploads(bucket)
    store.abort(pending)
    store.abort(pending)
    assert store.pending_uploads(bucket) == []


def test_a_store_that_is_killed_in_the_middle_is_waited_for(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    servers = [start_s3_server(tmp_path, port)]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def replace_server() -> None:
        servers[0].kill()
        servers[0].wait()
        Timer(1.0, lambda: servers.append(start_s3_server(tmp_path, port))).start()

    waited_s = store.outage_s()
    try:
        store.ensure_bucket("s3://outage")
        content = Pieces({2: replace_server})
        written = store.write("s3://outage/big", content)
        assert written.sha256 == content.sha256 == store.checksum("s3://outage/big").sha256
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert "does not answer" in caplog.text and "answers again after" in caplog.text
    assert "starts anew" in caplog.text  # this server forgets begun uploads when it ends
    assert store.outage_s() >= waited_s + 0.5


def test_a_store_that_stays_away_is_given_up(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("KINOFLOW_STORE_PATIENCE_S", "5")
    with pytest.raises(StoreError, match="did not answer for"):
        store.write_bytes("s3://bucket/x", b"data")
    assert len([record for record in caplog.records if "trying again for 5 s" in record.message]) == 1


def test_any_range_can_be_read(prefix: str) -> None:
    uri = store.join(prefix, "x")
    store.write_bytes(uri, bytes(range(100)))
    assert store.read_range(uri, 10, 5) == bytes(range(10, 15))
    assert store.read_range(uri, 10, 0) == b""
    with pytest.raises(StoreError, match="it ends after 100 bytes, 101 were wanted"):
        store.read_range(uri, 90, 11)
    with pytest.raises(ObjectMissing, match="not there"):
        store.read_range(store.join(prefix, "not there"), 0, 1)


def test_what_goes_through_is_hashed(prefix: str, tmp_path: Path) -> None:
    source, uri = tmp_path / "source", store.join(prefix, "x")
    source.write_bytes(bytes(range(256)) * 5000)
    whole = store.Transferred(source.stat().st_size, hashlib.sha256(source.read_bytes()).hexdigest())
    assert store.upload(source, uri) == store.checksum(uri) == store.download(uri, tmp_path / "copy") == whole


def test_empty_folders_go_and_others_stay(tmp_path: Path) -> None:
    store.write_bytes(str(tmp_path / "a/b/file"), b"")
    (tmp_path / "a/c/d").mkdir(parents=True)
    assert store.remove_empty_folders(str(tmp_path / "a")) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "file"]
