"""Frames of clips, read from the content-addressed objects they were cut from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from components import manifest, store
from components.media import UnreadableMedia


@contextmanager
def local_object(objects: str, key: str, content_sha256: str | None = None) -> Iterator[Path]:
    """A file with the bytes of an object, for as long as the body runs.

    Args:
        objects: URI prefix of the content-addressed objects.
        key: of one object below it.
        content_sha256: checked when given.

    Raises:
        StoreError: there is no such object, it cannot be read, or its key would leave the prefix.
        UnreadableMedia: its bytes are not those.
    """
    uri = store.join(objects, store.safe_key(key))
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        path = Path(uri)
        if store.is_s3(uri):
            path = Path(scratch) / PurePosixPath(key).name
            found = store.download(uri, path).sha256
        elif path.is_file():
            found = manifest.sha256_file(path) if content_sha256 else ""
        else:
            raise store.ObjectMissing(f"There is no object {uri}.")
        if content_sha256 and found != content_sha256:
            raise UnreadableMedia("decode_error", "the object no longer has the bytes that were ingested", uri)
        yield path


def beside(objects: str, name: str) -> str:
    """URI prefix of that name beside the objects, shared by the runs that share these."""
    objects = objects.rstrip("/")
    parent, slash, _ = objects.rpartition("/")
    if store.is_s3(objects) and not store.split_s3(objects)[1]:
        return store.join(objects, name)
    return f"{parent}{slash}{name}"


def fitted(height: int, width: int, *, short_side: int | None = None, long_side: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels, shrunk to that side and never enlarged."""
    share = min(
        1.0,
        short_side / min(height, width) if short_side else 1.0,
        long_side / max(height, width) if long_side else 1.0,
    )
    return max(1, round(height * share)), max(1, round(width * share))
