"""Requests to an S3 store: one client a process, outages ridden out, every failure one sentence.

Credentials and the endpoint come from the standard environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_ENDPOINT_URL_S3`, `AWS_DEFAULT_REGION`), read by boto3 itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from components.store.failures import ObjectMissing, Refused, StoreError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

T = TypeVar("T")
CONNECTIONS = 32
MAX_PAUSE_S = 10.0
REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden")
# A server that says one of these may answer otherwise in a moment; botocore itself has tried a few times by then.
PASSING_CODES = ("SlowDown", "RequestTimeout", "ServiceUnavailable", "Throttling", "BadDigest")
PASSING_STATUS = (429, 502, 503, 504)
_CLIENT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class StoreSettings(BaseSettings):
    """What the environment says about the store beside addresses and credentials: `KINOFLOW_STORE_…`."""

    model_config = SettingsConfigDict(env_prefix="KINOFLOW_STORE_", extra="ignore")

    patience_s: float = Field(300.0, ge=0, description="How long a store that does not answer is waited for.")


class _Shared:
    """The client of this process and how long its threads have waited for the store."""

    lock = threading.Lock()
    key: tuple[object, ...] = ()
    client: Any = None
    outage_s = 0.0


def outage_s() -> float:
    """Seconds that requests of this process have waited so far for a store that was away, over all threads."""
    return _Shared.outage_s


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{uri!r} names no bucket; write s3://bucket/key.")
    return bucket, key.lstrip("/")


def _client() -> S3Client:
    """The client of this process: threads may share one, processes may not."""
    key = (os.getpid(), *(os.environ.get(name) for name in _CLIENT_VARIABLES))
    with _Shared.lock:
        if _Shared.key != key:
            import boto3
            from botocore.config import Config

            _Shared.client = boto3.session.Session().client(
                "s3",
                region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                config=Config(
                    # botocore's default checksums break some S3 servers
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "4")), "mode": "standard"},
                    connect_timeout=5,
                    read_timeout=60,
                    max_pool_connections=CONNECTIONS,
                    s3={"addressing_style": "path"},
                ),
            )
            _Shared.key = key
        client: S3Client = _Shared.client
    return client


def request(action: str, uri: str, ask: Callable[[S3Client], T]) -> T:
    """Ask the store; a server that is away is waited for, everything else is final.

    Args:
        action: for the sentence, for example "read".
        uri: for the sentence.
        ask: makes the request; called again after an outage.

    Raises:
        ObjectMissing: no such object or bucket.
        StoreError: refused, or away for longer than `StoreSettings.patience_s`.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    began_s = time.monotonic()
    patience_s = StoreSettings().patience_s
    retrying = Retrying(
        retry=retry_if_exception(is_outage), stop=stop_before_delay(patience_s), reraise=True,
        wait=wait_random_exponential(multiplier=0.5, max=MAX_PAUSE_S), before_sleep=_say(action, uri, patience_s),
    )  # fmt: skip
    away = False
    try:
        return retrying(lambda: ask(_client()))
    except NoCredentialsError as error:
        raise StoreError(
            f"Could not {action} {uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except ParamValidationError as error:
        raise Refused(f"Could not {action} {uri}: no store takes that name.") from error
    except ClientError as error:
        raise _answered(action, uri, error) from error
    except BotoCoreError as error:
        away = True
        raise StoreError(
            f"Could not {action} {uri}: the object store at {_endpoint()} did not answer for "
            f"{time.monotonic() - began_s:.0f} s ({type(error).__name__}); check that it runs and that "
            "AWS_ENDPOINT_URL_S3 is right."
        ) from error
    finally:
        if retrying.statistics.get("attempt_number", 1) > 1:
            _count(time.monotonic() - began_s, away)


def _count(waited_s: float, away: bool) -> None:
    with _Shared.lock:
        _Shared.outage_s += waited_s
    if not away:
        logger.warning("The object store at %s answers again after %.0f s.", _endpoint(), waited_s)


def is_outage(error: BaseException) -> bool:
    """Whether the same request may succeed later without anybody mending anything."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return error_code(error) in PASSING_CODES or status in PASSING_STATUS
    if isinstance(error, exceptions.SSLError):
        return False
    passing = exceptions.ConnectionError | exceptions.HTTPClientError | exceptions.IncompleteReadError
    return isinstance(error, passing | exceptions.ResponseStreamingError)


def error_code(error: Any) -> str:
    """What an S3 server calls the failure, for example "NoSuchKey"."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _say(action: str, uri: str, patience_s: float) -> Callable[[RetryCallState], None]:
    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1:
            logger.warning(
                "Could not %s %s: the object store at %s does not answer (%s); trying again for %.0f s.",
                action, uri, _endpoint(), type(error).__name__, patience_s,
            )  # fmt: skip

    return say


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3", "the default AWS endpoint")


def _answered(action: str, uri: str, error: Any) -> StoreError:
    code = error_code(error)
    if code in ("404", "NoSuchKey", "NotFound"):
        return ObjectMissing(f"Could not {action} {uri}: there is no such object.")
    if code == "NoSuchBucket":
        return ObjectMissing(f"Could not {action} {uri}: the bucket does not exist; create it first.")
    if code in REFUSED:
        return Refused(
            f"Could not {action} {uri}: the object store refused the credentials ({code}); "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    kind = Refused if 400 <= status < 500 else StoreError
    return kind(f"Could not {action} {uri}: the object store answered {code or error}.")
