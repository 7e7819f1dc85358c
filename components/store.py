"""Everything is addressed by URI: `s3://bucket/key` or a local path. The only file that speaks S3.

Credentials and the endpoint come from the standard environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_ENDPOINT_URL_S3`, `AWS_DEFAULT_REGION`), read by boto3 itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from components.errors import KinoflowError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MULTIPART_BYTES = 64 << 20
_CLIENT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class StoreError(KinoflowError):
    """The store refused, is away, or is full."""


class ObjectMissing(StoreError):  # noqa: N818  # the state of the store, not a fault of it
    """There is nothing at that URI."""


@dataclass(frozen=True)
class StoredObject:
    """One object below a prefix; `key` is relative to it, with forward slashes."""

    key: str
    size_bytes: int


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix rather than a local path."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def safe_key(key: str) -> str:
    """Return `key` if it stays inside its prefix; refuse absolute paths and `..` (names come from outside)."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in key or "\0" in key:
        raise StoreError(f"The name {key!r} would leave its folder; it is refused.")
    return key


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StoreError(f"{uri!r} names no bucket; write s3://bucket/key.")
    return bucket, key.lstrip("/")


_clients = threading.local()


def _client() -> S3Client:
    """One client per thread and process: boto3's sessions are not shared between threads."""
    key = (os.getpid(), *(os.environ.get(name) for name in _CLIENT_VARIABLES))
    if getattr(_clients, "key", None) != key:
        import boto3
        from botocore.config import Config

        _clients.client = boto3.session.Session().client(
            "s3",
            region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            config=Config(
                # botocore's default checksums break some S3 servers
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "5")), "mode": "standard"},
                connect_timeout=5,
                read_timeout=60,
                s3={"addressing_style": "path"},
            ),
        )
        _clients.key = key
    client: S3Client = _clients.client
    return client


@contextmanager
def _sentences(action: str, uri: str) -> Iterator[None]:
    """Turn what botocore and the operating system raise into one sentence."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise StoreError(
            f"Could not {action} {uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except ClientError as error:
        raise _client_error(action, uri, error) from error
    except S3UploadFailedError as error:
        raise StoreError(f"Could not {action} {uri}: {error}.") from error
    except BotoCoreError as error:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", "the default AWS endpoint")
        raise StoreError(
            f"Could not {action} {uri}: the object store at {endpoint} did not answer ({type(error).__name__}); "
            "check that it runs and that AWS_ENDPOINT_URL_S3 is right."
        ) from error
    except FileNotFoundError as error:
        raise ObjectMissing(f"Could not {action} {uri}: there is no such file.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"Could not {action} {uri}: the disk is full; free some space and start again.") from error
        raise StoreError(f"Could not {action} {uri}: {error.strerror or error}.") from error


def _client_error(action: str, uri: str, error: Any) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in ("404", "NoSuchKey", "NotFound"):
        return ObjectMissing(f"Could not {action} {uri}: there is no such object.")
    if code == "NoSuchBucket":
        return ObjectMissing(f"Could not {action} {uri}: the bucket does not exist; create it first.")
    if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"):
        return StoreError(
            f"Could not {action} {uri}: the object store refused the credentials ({code}); "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return StoreError(f"Could not {action} {uri}: the object store answered {code or error}.")


def exists(uri: str) -> bool:
    """Whether an object (not a prefix) exists at `uri`."""
    if not is_s3(uri):
        return Path(uri).is_file()
    bucket, key = split_s3(uri)
    try:
        with _sentences("look up", uri):
            _client().head_object(Bucket=bucket, Key=key)
    except ObjectMissing:
        return False
    return True


def read_bytes(uri: str) -> bytes:
    """The whole object; `ObjectMissing` if there is none."""
    with _sentences("read", uri):
        if not is_s3(uri):
            return Path(uri).read_bytes()
        bucket, key = split_s3(uri)
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole: readers see the old bytes or the new ones, never a part."""
    with _sentences("write", uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            _client().put_object(Bucket=bucket, Key=key, Body=data)
            return
        with _local_replacement(Path(uri)) as temporary:
            temporary.write_bytes(data)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to `uri`, whole or not at all."""
    with _sentences("write", uri):
        if is_s3(uri):
            from boto3.s3.transfer import TransferConfig

            bucket, key = split_s3(uri)
            transfer = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
            _client().upload_file(str(path), bucket, key, Config=transfer)
            return
        with _local_replacement(Path(uri)) as temporary:
            shutil.copyfile(path, temporary)


def download(uri: str, path: Path) -> None:
    """Copy the object at `uri` to a local file, whole or not at all."""
    with _sentences("read", uri), _local_replacement(path) as temporary:
        if is_s3(uri):
            bucket, key = split_s3(uri)
            _client().download_file(bucket, key, str(temporary))
        else:
            shutil.copyfile(uri, temporary)


def list_objects(prefix: str) -> list[StoredObject]:
    """Every object below `prefix`, keys relative to it, sorted by key; empty when there is nothing."""
    if not is_s3(prefix):
        root = Path(prefix)
        found = [p for p in root.rglob("*") if p.is_file()] if root.is_dir() else []
        objects = [StoredObject(p.relative_to(root).as_posix(), p.stat().st_size) for p in found]
        return sorted(objects, key=lambda o: o.key)
    bucket, key = split_s3(prefix)
    base = key.rstrip("/") + "/" if key else ""
    objects = []
    with _sentences("list", prefix):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base):
            for item in page.get("Contents", []):
                objects.append(StoredObject(item["Key"][len(base) :], item["Size"]))
    return sorted((o for o in objects if o.key and not o.key.endswith("/")), key=lambda o: o.key)


def delete(uri: str) -> None:
    """Remove one object; no error if it is already gone."""
    with _sentences("delete", uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            _client().delete_object(Bucket=bucket, Key=key)
        else:
            Path(uri).unlink(missing_ok=True)


def ensure_bucket(uri: str) -> None:
    """Create the bucket of an S3 URI, or the folder of a local one, when it does not exist."""
    if not is_s3(uri):
        with _sentences("create", uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
        return
    bucket, _ = split_s3(uri)
    try:
        with _sentences("look up", uri):
            _client().head_bucket(Bucket=bucket)
    except ObjectMissing:
        with _sentences("create", uri):
            _client().create_bucket(Bucket=bucket)


@contextmanager
def _local_replacement(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
