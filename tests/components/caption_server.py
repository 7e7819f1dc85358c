"""A caption server that speaks the protocol of OpenAI strictly, and misbehaves when it is told to."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

MODEL = "see/describe-7b"
Reply = tuple[int, dict[str, str], bytes]


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    """The body of an answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return json.dumps(document).encode()


@dataclass
class CaptionServer:
    """What came in, and what goes out next: `reply` gets each checked request body."""

    key: str | None = None
    reply: Callable[[dict[str, Any]], Reply] = lambda _: (200, {}, completion("The video shows a red ball. It rolls."))
    requests: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[list[tuple[int, int]]] = field(default_factory=list)
    busiest: int = 0
    url: str = ""


def fault(body: dict[str, Any]) -> str | None:
    """What is wrong with a request, as a strict server would see it."""
    if set(body) != {"model", "messages", "max_tokens", "temperature"}:
        return f"unexpected keys {sorted(body)}"
    if body["model"] != MODEL or body["temperature"] != 0 or not isinstance(body["max_tokens"], int):
        return "wrong model, temperature or max_tokens"
    if len(body["messages"]) != 1 or body["messages"][0]["role"] != "user":
        return "wrong messages"
    *pictures, words = body["messages"][0]["content"]
    if words["type"] != "text" or not words["text"] or not pictures:
        return "wrong content"
    if any(set(part) != {"type", "image_url"} or set(part["image_url"]) != {"url"} for part in pictures):
        return "wrong picture parts"
    return None


def sizes_of(body: dict[str, Any]) -> list[tuple[int, int]]:
    """(height, width) of each picture of a request."""
    found = []
    for part in body["messages"][0]["content"][:-1]:
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert picture.format == "JPEG"
        found.append((picture.height, picture.width))
    return found


@contextmanager
def caption_server(server: CaptionServer) -> Iterator[CaptionServer]:
    """Serve on a free port until the body ends."""
    lock, busy = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # the client has had enough
                self.end_headers()
                self.wfile.write(body)

        def refused(self) -> bool:
            if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                self.answer(401, {}, b'{"error": {"message": "invalid api key"}}')
                return True
            return False

        def do_GET(self) -> None:
            if self.refused():
                return
            assert self.path == "/v1/models"
            self.answer(200, {}, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.refused():
                return
            assert (self.path, self.headers["Content-Type"]) == ("/v1/chat/completions", "application/json")
            with lock:
                busy += 1
                server.busiest = max(server.busiest, busy)
                server.requests.append(body)
                server.pictures.append(sizes_of(body))
            time.sleep(0.01)
            wrong = fault(body)
            status, headers, data = (400, {}, wrong.encode()) if wrong else server.reply(body)
            with lock:
                busy -= 1
            self.answer(status, headers, data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
