"""`check_store` against a real S3 server: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from components import store
from components.store.check import CHECKSUM_SETTINGS, check_store
from components.store.failures import StoreError
from tests.conftest import S3Server


def test_the_embedded_server_serves_and_needs_its_settings(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    store.write_bytes(f"{bucket}/mine/kept", b"kept")
    findings, settings = check_store(f"{bucket}/mine")
    states = {finding.check.removeprefix("store: "): finding.state for finding in findings}
    assert states == {
        "reachable": "ok", "multipart": "ok", "range reads": "ok", "list after write": "ok", "checksums": "ok",
        "concurrent writers": "ok", "names": "ok", "conditional put": "note", "default checksums": "note",
        "clean-up": "ok",
    }  # fmt: skip
    assert settings == {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint, "AWS_DEFAULT_REGION": "us-east-1", **CHECKSUM_SETTINGS,
    }  # fmt: skip
    assert [item.key for item in store.list_objects(bucket)] == ["mine/kept"]
    assert not store.pending_uploads(bucket)


def test_wrong_credentials_and_a_missing_bucket_are_failures_with_advice(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((finding,), _) = check_store("s3://nowhere-at-all/x")
    assert finding.state == "failed" and "bucket does not exist" in finding.seen and finding.advice
    bucket = s3_server.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-wrong-secret")
    ((finding,), settings) = check_store(bucket)
    assert finding.state == "failed" and "refused the credentials" in finding.seen
    assert "planted" not in finding.seen + str(settings)


def test_a_folder_is_no_store() -> None:
    with pytest.raises(StoreError, match="'/tmp' is no store"):
        check_store("/tmp")


@contextmanager
def lying(endpoint: str) -> Iterator[str]:
    """A door to the S3 server that flips bits of ranged reads and forgets an object in every list."""

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # botocore waits for a "100 Continue"

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            behind = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=20)
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            content = answer.read()
            if "Range" in self.headers:
                content = bytes(byte ^ 1 for byte in content)
            if "list-type=2" in self.path:
                start = content.find(b"<Contents>")
                end = content.find(b"</Contents>") + len(b"</Contents>")
                content = content[:start] + content[end:] if start >= 0 else content
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_store_that_lies_is_found_out(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.bucket()
    with lying(s3_server.endpoint) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        findings, _ = check_store(bucket)
    failed = {finding.check.removeprefix("store: "): finding for finding in findings if finding.state == "failed"}
    assert {"range reads", "list after write", "names"} <= set(failed)
    assert "came back wrong" in failed["range reads"].seen and "Do not use" in failed["range reads"].advice
    assert "missing from the list" in failed["list after write"].seen
