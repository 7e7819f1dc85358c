"""Captions from an OpenAI-compatible server: chat completions with pictures as data URIs."""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
import tenacity
from pydantic import BaseModel, ValidationError

from components.caption import MAX_CHARACTERS
from components.caption_config import CaptionEndpoint, CaptionerConfig
from components.contact_sheet import jpeg
from components.curate.captioning import Answer, Question, whole_sentences
from components.errors import KinoflowError
from components.media import Frames

MAX_ANSWER_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 10.0
JPEG_QUALITY = 90
FIRST_WAIT_S = 0.5
SILENT_FAILURES = 8
"""So many clips in a row without any sensible response, and the server counts as gone."""
_WORTH_ANOTHER_TRY = {408, 409, 425, 429, 500, 502, 503, 504}
Read = TypeVar("Read")

# Its log names every request; addresses say little and pictures nothing.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _RequestFailedError(Exception):
    """A request without a usable answer.

    Attributes:
        detail: a phrase for the middle of a sentence.
        again: whether another attempt may do better.
        silent: whether the server showed no sign of working at all.
        after_s: wait that the server asks for.
    """

    def __init__(self, detail: str, *, again: bool, silent: bool = False, after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail, self.again, self.silent, self.after_s = detail, again, silent, after_s


class EndpointCaptioner:
    """Asks a server, several clips at once.

    Raises:
        KinoflowError: the key is missing, the server does not answer, or it does not offer the model.
    """

    def __init__(self, config: CaptionerConfig, source: CaptionEndpoint) -> None:
        self._config, self._source = config, source
        limits = httpx2.Limits(max_connections=source.concurrency, max_keepalive_connections=source.concurrency)
        timeout = httpx2.Timeout(source.timeout_s, connect=min(CONNECT_TIMEOUT_S, source.timeout_s))
        self._client = httpx2.Client(headers=_authorization(source), limits=limits, timeout=timeout)
        self._lock, self._silent_in_a_row = threading.Lock(), 0
        self._require_model()

    @property
    def name(self) -> str:
        """As the server knows it."""
        return self._source.model

    @property
    def identity(self) -> str:
        """The name: which weights are behind it only the server knows."""
        return self._source.model

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[str, Answer]]:
        """In the order of the questions, a few of which wait ready while others are under way.

        Raises:
            KinoflowError: the server refuses the key, or no longer works.
        """
        waiting: deque[tuple[str, Future[Answer]]] = deque()
        pool = ThreadPoolExecutor(self._source.concurrency, thread_name_prefix="caption")
        try:
            for question in questions:
                waiting.append((question.clip_id, pool.submit(self._answer, question)))
                if len(waiting) >= 2 * self._source.concurrency:
                    clip_id, future = waiting.popleft()
                    yield clip_id, future.result()
            while waiting:
                clip_id, future = waiting.popleft()
                yield clip_id, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, question: Question) -> Answer:
        content: list[dict[str, object]] = [
            {"type": "image_url", "image_url": {"url": _data_uri(frame)}} for frame in question.frames
        ]
        content.append({"type": "text", "text": question.prompt})
        body = {
            "model": self._source.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._config.max_new_tokens,
            "temperature": 0,
        }
        try:
            text = self._patiently("POST", "chat/completions", body, _caption_in)
        except _RequestFailedError as error:
            self._count(silent=error.silent, detail=error.detail)
            return Answer(None, f"The caption server {error.detail}.")
        self._count(silent=False)
        return Answer(text)

    def _count(self, *, silent: bool, detail: str = "") -> None:
        with self._lock:
            self._silent_in_a_row = self._silent_in_a_row + 1 if silent else 0
            gone = self._silent_in_a_row >= SILENT_FAILURES
        if gone:
            raise KinoflowError(
                f"The caption server at {self._source.url} no longer works (it {detail}); the captions it gave are "
                "kept, start again when it does."
            )

    def _require_model(self) -> None:
        try:
            offered = self._patiently("GET", "models", None, _models_in)
        except _RequestFailedError as error:
            raise KinoflowError(
                f"The caption server at {self._source.url} {error.detail}; start it, or correct "
                "captions.captioner.source.url."
            ) from error
        if self._source.model not in offered:
            raise KinoflowError(
                f"The caption server at {self._source.url} has no model {self._source.model!r}; it offers "
                f"{', '.join(sorted(offered)[:10]) or 'none'}."
            )

    def _patiently(self, method: str, path: str, body: object, read: Callable[[bytes], Read]) -> Read:
        """What `read` makes of the response; tried again while that may help."""
        source = self._source
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _RequestFailedError) and error.again),
            stop=tenacity.stop_after_attempt(source.attempts),
            wait=_Waits(source.max_wait_s),
            reraise=True,
        )
        return retrying(lambda: read(self._response(method, f"{source.url}/{path}", body)))

    def _response(self, method: str, url: str, body: object) -> bytes:
        deadline_s = time.monotonic() + self._source.timeout_s
        received = bytearray()
        try:
            with self._client.stream(method, url, json=body) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        raise _RequestFailedError(f"sent more than {MAX_ANSWER_BYTES >> 20} MiB", again=False)
                    if time.monotonic() > deadline_s:
                        raise _RequestFailedError(f"took more than {self._source.timeout_s:g} s", again=True)
                _check_status(response, self._source)
        except httpx2.TimeoutException as error:
            raise _RequestFailedError(
                f"did not answer within {self._source.timeout_s:g} s", again=True, silent=True
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise _RequestFailedError(f"cannot be reached ({cause})", again=True, silent=True) from error
        return bytes(received)


class _Waits(tenacity.wait.wait_base):
    """Doubling waits with some chance in them, or as long as the server asks, up to a limit."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._growing = tenacity.wait_exponential(FIRST_WAIT_S, max_wait_s) + tenacity.wait_random(0, FIRST_WAIT_S / 2)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        """Seconds to wait."""
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked = error.after_s if isinstance(error, _RequestFailedError) else None
        return min(self._max_wait_s, self._growing(retry_state) if asked is None else asked)


def _authorization(source: CaptionEndpoint) -> dict[str, str]:
    if source.api_key_variable is None:
        return {}
    key = os.environ.get(source.api_key_variable, "").strip()
    if not key:
        raise KinoflowError(
            f"The environment variable {source.api_key_variable} is not set; "
            "captions.captioner.source.api_key_variable says that it holds the key of the caption server."
        )
    if not (key.isascii() and key.isprintable()):
        raise KinoflowError(f"The environment variable {source.api_key_variable} holds no key: it is not plain text.")
    return {"Authorization": f"Bearer {key}"}


def _check_status(response: httpx2.Response, source: CaptionEndpoint) -> None:
    status = response.status_code
    if status in (401, 403):
        where = source.api_key_variable
        advice = f"check the key in {where}" if where else "name the key's variable in api_key_variable"
        raise KinoflowError(f"The caption server at {source.url} refuses access (HTTP {status}); {advice}.")
    if status != 200:
        after_s = _retry_after_s(response.headers.get("Retry-After", ""))
        raise _RequestFailedError(
            f"answered HTTP {status}", again=status in _WORTH_ANOTHER_TRY, silent=status >= 500, after_s=after_s
        )


def _retry_after_s(header: str) -> float | None:
    """Seconds, from either form of the header (RFC 9110); None when it says nothing sensible."""
    if header.strip().isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _caption_in(body: bytes) -> str:
    try:
        choices = _Completion.model_validate_json(body).choices
    except ValidationError as error:
        raise _RequestFailedError(f"answered with no chat completion ({_beginning(body)})", again=True) from error
    if not choices or not choices[0].message.content.strip():
        raise _RequestFailedError("answered with no caption", again=True)
    text = choices[0].message.content.strip()
    if len(text) > MAX_CHARACTERS:
        raise _RequestFailedError(f"answered with {len(text)} characters, no caption", again=False)
    return whole_sentences(text) if choices[0].finish_reason == "length" else text


def _models_in(body: bytes) -> set[str]:
    try:
        return {model.id for model in _Models.model_validate_json(body).data}
    except ValidationError as error:
        raise _RequestFailedError(f"does not list its models ({_beginning(body)})", again=False) from error


def _beginning(body: bytes) -> str:
    text = " ".join(body[:200].decode(errors="replace").split())
    return f"it begins {text[:60]!r}" if text else "it is empty"


def _data_uri(frame: Frames) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(frame, JPEG_QUALITY)).decode()}"
