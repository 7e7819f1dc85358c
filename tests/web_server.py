"""A web server of one's own whose files misbehave in known ways."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """A server on this machine; counts what it was asked for and what it sent.

    Files behave as their names say: `loop…` redirects to itself, `page…` is HTML, `forbidden…` is refused, `busy…` is
    too busy twice, `cut…` breaks off the first time, `plain…` has no version, `slow…` takes six seconds and `endless…`
    two minutes unless `is_patient` is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.is_patient = threading.Event()
        self.asked: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # clients that leave early are part of the tests
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to: Any) -> None:
        name = to.path.partition("?")[0].strip("/")
        self.asked[name] += 1
        data = self.files.get(name)
        first = self.asked[name] == 1
        if name.startswith("loop"):
            return self.send(to, 302, b"", Location=f"{self.url}/loop")
        if name.startswith("page"):
            return self.send(to, 200, b"<html>log in</html>", **{"Content-Type": "text/html; charset=utf-8"})
        if name.startswith("slow"):
            self.is_patient.wait(6)
        if name.startswith("endless") and not self.is_patient.wait(120):
            return None
        if data is None:
            return self.send(to, 404, b"")
        if name.startswith("forbidden"):
            return self.send(to, 403, b"")
        if name.startswith("busy") and self.asked[name] <= 2:
            return self.send(to, 503, b"", **{"Retry-After": "0"})
        headers = {} if name.startswith("plain") else {"ETag": f'"{hash(data)}"', "Accept-Ranges": "bytes"}
        if headers and to.headers.get("If-None-Match") == headers["ETag"]:
            return self.send(to, 304, b"", **headers)
        start = int(to.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start and to.headers.get("If-Range") == headers.get("ETag"):
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.send(to, 206, data[start:], **headers)
        return self.send(to, 200, data, cut=name.startswith("cut") and first, **headers)

    def send(self, to: Any, status: int, data: bytes, *, cut: bool = False, **headers: str) -> None:
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name, value)
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        body = data[: len(data) // 2] if cut else data
        to.wfile.write(body)
        self.sent_bytes[to.path.strip("/")] += len(body)
        to.close_connection = True


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Web]:
    """Serve files by name while the body runs; more may be added."""
    web = Web()
    web.files |= files
    try:
        yield web
    finally:
        web.is_patient.set()
        web.server.shutdown()
        web.server.server_close()
