"""Everything is addressed by URI: `s3://bucket/key` or a local path. The only package that speaks S3.

A store that does not answer is waited for (`KINOFLOW_STORE_PATIENCE_S`, five minutes when absent); wrong credentials, a
missing bucket or a full disk end at once. Everything is written whole or not at all and hashed on its way.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from components.store import parts
from components.store.content import BytesContent, Content, FileContent, Transferred, ranges
from components.store.failures import ObjectMissing, Refused, StoreError, sentences
from components.store.parts import PendingUpload
from components.store.s3 import StoreSettings, outage_s, request, split_s3

__all__ = [
    "BytesContent", "Content", "FileContent", "ObjectMissing", "PendingUpload", "Refused", "StoreError",
    "StoreSettings", "StoredObject", "Transferred", "abort", "checksum", "delete", "describe", "download",
    "ensure_bucket", "exists", "is_s3", "join", "list_objects", "outage_s", "pending_uploads", "read_bytes",
    "read_range", "remove_empty_folders", "safe_key", "split_s3", "upload", "write", "write_bytes",
]  # fmt: skip

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class StoredObject:
    """One object below a prefix; `key` is relative to it, with forward slashes."""

    key: str
    size_bytes: int
    modified_s: float = field(default=0.0, compare=False)  # since 1970
    etag: str = field(default="", compare=False)  # the server's name for these bytes; a local file has none


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


def exists(uri: str) -> bool:
    """Whether an object (not a prefix) exists at `uri`."""
    return parts.size_of(uri) is not None if is_s3(uri) else Path(uri).is_file()


def describe(uri: str) -> StoredObject:
    """Size, time and version of one object of a bucket, its own name as key; `ObjectMissing` if there is none."""
    bucket, key = split_s3(uri)
    found = request("look up", uri, lambda s3: s3.head_object(Bucket=bucket, Key=key))
    name = PurePosixPath(key).name
    return StoredObject(name, found["ContentLength"], found["LastModified"].timestamp(), found.get("ETag", ""))


def read_bytes(uri: str) -> bytes:
    """The whole object; `ObjectMissing` if there is none."""
    if not is_s3(uri):
        with sentences("read", uri):
            return Path(uri).read_bytes()
    bucket, key = split_s3(uri)
    return request("read", uri, lambda s3: s3.get_object(Bucket=bucket, Key=key)["Body"].read())


def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes of an object from `start` on.

    Raises:
        ObjectMissing: there is no such object.
        StoreError: the object ends before that, or the store cannot be read.
    """
    if not length:
        return b""
    if is_s3(uri):
        data = parts.read_range(uri, start, length)
    else:
        with sentences("read", uri), Path(uri).open("rb") as file:
            data = os.pread(file.fileno(), length, start)
    if len(data) != length:
        raise StoreError(
            f"Could not read {uri}: it ends after {start + len(data)} bytes, {start + length} were wanted."
        )
    return data


def write(uri: str, content: Content) -> Transferred:
    """Write an object whole, hashing it on the way: readers see the old bytes or the new ones, never a part.

    A large one goes to S3 in parallel parts; when an earlier process was killed while it wrote the same bytes there,
    the parts it sent are not sent again.
    """
    if is_s3(uri):
        return parts.put(uri, content)
    digest = hashlib.sha256()
    with sentences("write", uri), _local_replacement(Path(uri)) as temporary, temporary.open("wb") as file:
        for offset, length in ranges(content.size_bytes, CHUNK_BYTES):
            data = content.read(offset, length)
            digest.update(data)
            file.write(data)
    return Transferred(content.size_bytes, digest.hexdigest())


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object from memory, whole or not at all."""
    write(uri, BytesContent(data))


def upload(path: Path, uri: str) -> Transferred:
    """Copy a local file to `uri`, whole or not at all."""
    with sentences("write", uri), FileContent(path) as content:
        return write(uri, content)


def download(uri: str, path: Path) -> Transferred:
    """Copy the object at `uri` to a local file, whole or not at all; it is hashed on the way."""
    with sentences("read", uri), _local_replacement(path) as temporary, temporary.open("wb") as file:
        if is_s3(uri):
            return parts.get(uri, file.write)
        with Path(uri).open("rb") as source:
            digest, size_bytes = hashlib.sha256(), 0
            while data := source.read(CHUNK_BYTES):
                digest.update(data)
                file.write(data)
                size_bytes += len(data)
            return Transferred(size_bytes, digest.hexdigest())


def checksum(uri: str) -> Transferred:
    """Size and SHA-256 of an object, which is read and not kept."""
    if is_s3(uri):
        return parts.get(uri, lambda _: None)
    with sentences("read", uri), Path(uri).open("rb") as file:
        return Transferred(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def list_objects(prefix: str) -> list[StoredObject]:
    """Every object below `prefix`, keys relative to it, sorted by key; empty when there is nothing."""
    if not is_s3(prefix):
        return sorted(_local_objects(Path(prefix)), key=lambda o: o.key)
    bucket, key = split_s3(prefix)
    base = key.rstrip("/") + "/" if key else ""
    pages = request(
        "list", prefix, lambda s3: list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base))
    )
    objects = [
        StoredObject(item["Key"][len(base) :], item["Size"], item["LastModified"].timestamp(), item.get("ETag", ""))
        for page in pages
        for item in page.get("Contents", [])
    ]
    return sorted((o for o in objects if o.key and not o.key.endswith("/")), key=lambda o: o.key)


def _local_objects(root: Path) -> Iterator[StoredObject]:
    for path in root.rglob("*") if root.is_dir() else []:
        with suppress(FileNotFoundError):  # others may write and delete meanwhile
            if path.is_file():
                stat = path.stat()
                yield StoredObject(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime)


def delete(uri: str) -> None:
    """Remove one object; no error if it is already gone."""
    if not is_s3(uri):
        with sentences("delete", uri):
            Path(uri).unlink(missing_ok=True)
        return
    bucket, key = split_s3(uri)
    request("delete", uri, lambda s3: s3.delete_object(Bucket=bucket, Key=key))


def remove_empty_folders(prefix: str) -> int:
    """Remove the local folder and those below it that hold nothing; returns how many. A bucket has no folders."""
    root = Path(prefix)
    if is_s3(prefix) or not root.is_dir():
        return 0
    removed = 0
    folders = [path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()]
    for folder in [*sorted(folders, key=lambda path: len(path.parts), reverse=True), root]:
        with suppress(OSError):  # not empty
            folder.rmdir()
            removed += 1
    return removed


def pending_uploads(prefix: str) -> list[PendingUpload]:
    """Uploads in parts below `prefix` that nobody has completed; their parts take room and are not visible."""
    return parts.pending_uploads(prefix) if is_s3(prefix) else []


def abort(upload: PendingUpload) -> None:
    """Free the parts of a begun upload; no error if it is already gone."""
    parts.abort_upload(upload)


def ensure_bucket(uri: str) -> None:
    """Create the bucket of an S3 URI, or the folder of a local one, when it does not exist."""
    if not is_s3(uri):
        with sentences("create", uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
        return
    bucket, _ = split_s3(uri)
    try:
        request("look up", uri, lambda s3: s3.head_bucket(Bucket=bucket))
    except ObjectMissing:
        request("create", uri, lambda s3: s3.create_bucket(Bucket=bucket))


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
