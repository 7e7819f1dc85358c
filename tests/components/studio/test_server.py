"""What the server refuses, asked without a browser."""

from __future__ import annotations

import asyncio
import http.client
from urllib.parse import urlsplit

import pytest

from components.studio.guard import Guard

pytestmark = pytest.mark.timeout(900)  # as in test_page


def request(studio, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""):
    connection = http.client.HTTPConnection(urlsplit(studio.url).netloc, timeout=60)
    connection.request(method, path, body=body or None, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace"), answer.headers


def test_the_page_may_load_nothing_from_elsewhere(studio):
    status, text, headers = request(studio, "GET", "/")
    assert status == 200 and "Kinoflow Studio" in text
    assert "default-src 'self'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_names_and_other_pages_are_refused(studio, headers):
    assert request(studio, "GET", "/", headers)[0] == 403


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fsummary.json", "uploads", "nothing.mp4", "%2Fetc%2Fpasswd", "a.mp4%00.png"]
)
def test_only_finished_files_are_served(studio, name):
    assert request(studio, "GET", f"/made/{name}")[0] == 404


def test_uploads_have_a_limit_whatever_they_announce(studio):
    path = "/_nicegui/client/x/upload/1"
    status, text, _ = request(studio, "POST", path, {"Content-Length": str(10**9)})
    assert (status, text) == (413, "At most 1 MB are taken.")


def test_a_body_that_goes_on_and_on_is_cut_off():
    async def reader(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def endless():
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    answers = []

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "path": "/_nicegui/client/x/upload/1", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(reader, frozenset({"localhost"}), 5000)(scope, endless, send))
    assert answers[0]["status"] == 413


def test_there_is_no_description_of_the_interface_to_probe(studio):
    assert [request(studio, "GET", path)[0] for path in ("/openapi.json", "/docs", "/redoc")] == [404, 404, 404]
