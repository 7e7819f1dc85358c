"""Files from http(s): bounded in size, time, tries and redirects; a broken transfer goes on where it stopped."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
MAX_REDIRECTS = 5
MAX_PAUSE_S = 60.0
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
WEB_PAGES = ("text/html", "application/xhtml+xml")
SECRETS = re.compile(
    r"x-(amz|goog|oss)-.*|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy|sig|token|access_token|api_?key",
    re.IGNORECASE,
)
_local = threading.local()


@dataclass(frozen=True)
class Limits:
    """What one download may take.

    Attributes:
        max_bytes: of the file.
        attempts: how often it is begun or gone on with.
        timeout_s: for all attempts together.
        pause_s: before the second attempt; doubled before each further one.
    """

    max_bytes: int
    attempts: int = 5
    timeout_s: float = 3600.0
    pause_s: float = 1.0


class DownloadError(Exception):
    """A file that cannot be had: reason slug and sentence."""


class _PassingError(Exception):
    """May go better the next time, after `pause_s` if the server names it."""

    def __init__(self, sentence: str, pause_s: float | None = None) -> None:
        super().__init__(sentence)
        self.pause_s = pause_s


def is_url(text: str) -> bool:
    """Whether this is an http(s) address."""
    return text[:8].lower().startswith(("http://", "https://"))


def public_url(url: str) -> str:
    """The address without credentials: neither user, nor password, nor the parameters of a signature."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return url.partition("?")[0]
    kept = [(name, value) for name, value in pairs if not SECRETS.fullmatch(name)]
    query = parts.query if len(kept) == len(pairs) else urlencode(kept)
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def name_of(url: str) -> str:
    """The file name at the end of an address."""
    try:
        return unquote(urlsplit(url).path).rpartition("/")[2]
    except ValueError:
        return ""


def fetch(url: str, path: Path, limits: Limits, known: str | None = None) -> str | None:
    """Download one file.

    Args:
        url: its http(s) address.
        path: where to put it.
        limits: what it may take.
        known: what an earlier call returned; then nothing is downloaded when the file has not changed.

    Returns:
        The server's name for this version of the file, "" when it has none; None when it is still the known one.

    Raises:
        DownloadError: it cannot be had.
    """
    download = _Download(url, path, limits, known)

    def pause_s(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        named = error.pause_s if isinstance(error, _PassingError) else None
        return min(MAX_PAUSE_S, named or limits.pause_s * 2 ** (state.attempt_number - 1) * random.uniform(0.75, 1.25))

    retrying = Retrying(
        retry=retry_if_exception_type(_PassingError), stop=stop_after_attempt(limits.attempts), wait=pause_s,
        reraise=True,
    )  # fmt: skip
    try:
        return retrying(download.go_on)
    except _PassingError as error:
        raise DownloadError("download_failed", f"{error} ({limits.attempts} tries).") from error
    except requests.TooManyRedirects as error:
        raise DownloadError("download_failed", f"More than {MAX_REDIRECTS} redirects.") from error
    except (requests.RequestException, UnicodeError, ValueError) as error:
        raise DownloadError("bad_address", f"The address cannot be asked for ({type(error).__name__}).") from error


class _Download:
    """One file on its way; each attempt goes on after the bytes that are there."""

    def __init__(self, url: str, path: Path, limits: Limits, known: str | None) -> None:
        self.url, self.path, self.limits, self.known = url, path, limits, known
        self.version = ""
        self.ends_s = time.monotonic() + limits.timeout_s
        self.can_go_on = False
        path.write_bytes(b"")

    def go_on(self) -> str | None:
        """Ask for what is missing and write it."""
        start = self.path.stat().st_size if self.can_go_on else 0
        try:
            with _session().get(
                self.url, headers=self._headers(start), stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            ) as answer:
                if answer.status_code == 304 and self.known:
                    return None
                start = self._check(answer, start)
                self._write(answer, start)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(error, requests.exceptions.SSLError):
                raise DownloadError("download_failed", "The server's certificate is not trusted.") from error
            raise _PassingError(f"The transfer broke off or never began ({type(error).__name__})") from error
        return self.version

    def _headers(self, start: int) -> dict[str, str]:
        headers = {"User-Agent": "kinoflow", "Accept-Encoding": "identity"}
        if start:
            return headers | {"Range": f"bytes={start}-", "If-Range": _validator(self.version)}
        if self.known:
            name = "If-None-Match" if self.known.startswith("etag ") else "If-Modified-Since"
            headers[name] = self.known.partition(" ")[2]
        return headers

    def _check(self, answer: requests.Response, start: int) -> int:
        """Refuse what is no file; returns from which byte on it is written."""
        status, headers = answer.status_code, answer.headers
        if status in (404, 410):
            raise DownloadError("missing_file", f"The server has no such file ({status}).")
        if status == 416 and start:
            self.can_go_on = False
            raise _PassingError("The server cannot go on with the transfer")
        if status in PASSING_STATUS:
            raise _PassingError(f"The server answered {status}", _seconds(headers.get("Retry-After", "")))
        if status not in (200, 206):
            raise DownloadError("download_failed", f"The server refused the file ({status}).")
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in WEB_PAGES:
            raise DownloadError("web_page", f"The server sent a web page ({kind}), not a file.")
        if status == 206 and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            self.can_go_on = False
            raise _PassingError("The server sent another part than the one asked for")
        start = start if status == 206 else 0
        length = headers.get("Content-Length", "")
        if length.isdigit() and start + int(length) > self.limits.max_bytes:
            raise self._too_large()
        if not start:
            self.version = _version(answer)
            self.can_go_on = (
                headers.get("Accept-Ranges", "").lower() == "bytes"
                and bool(_validator(self.version))
                and "Content-Encoding" not in headers
            )
        return start

    def _write(self, answer: requests.Response, start: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(start)
            file.truncate()
            size = start
            for chunk in answer.iter_content(CHUNK_BYTES):
                size += len(chunk)
                if size > self.limits.max_bytes:
                    raise self._too_large()
                if time.monotonic() > self.ends_s:
                    raise DownloadError("download_failed", f"It took longer than {self.limits.timeout_s:g} s.")
                file.write(chunk)

    def _too_large(self) -> DownloadError:
        return DownloadError("too_large", f"The file is larger than {self.limits.max_bytes} bytes (max_file_bytes).")


def _version(answer: requests.Response) -> str:
    etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    return f"etag {etag}" if etag else f"modified {modified}" if modified else ""


def _validator(version: str) -> str:
    """For `If-Range`, which takes no weak tag."""
    kind, _, value = version.partition(" ")
    return "" if kind == "etag" and value.startswith("W/") else value


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _session() -> requests.Session:
    """One for each thread; proxies and certificates come from the standard environment."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.max_redirects = MAX_REDIRECTS
    session: requests.Session = _local.session
    return session


def joined(base: str, path: str) -> str:
    """The address of a relative path beside a list that was fetched from `base`."""
    parts = urlsplit(base)
    folder = parts.path.rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/{quote(path)}", "", ""))
