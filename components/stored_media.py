"""Frames of clips, read from the content-addressed objects they were cut from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from components import manifest, store
from components.errors import KinoflowError
from components.media import Frames, UnreadableMedia
from components.video import pick_frames, read_frames

logger = logging.getLogger(__name__)


class DamagedObject(KinoflowError):  # noqa: N818  # the object's state, by the name its ledger slug has
    """The stored bytes are not the ones that were ingested."""


@contextmanager
def local_object(
    objects: str, key: str, content_sha256: str | None = None, scratch: Path | None = None
) -> Iterator[Path]:
    """A file with the bytes of an object, for as long as the body runs.

    Args:
        objects: URI prefix of the content-addressed objects.
        key: of one object below it.
        content_sha256: checked when given.
        scratch: folder for a copy; the system's own when absent.

    Raises:
        StoreError: there is no such object, it cannot be read, or its key would leave the prefix.
        DamagedObject: its bytes are not those.
    """
    uri = store.join(objects, store.safe_key(key))
    if store.is_s3(uri):
        with tempfile.TemporaryDirectory(prefix="kinoflow-", dir=scratch) as folder:
            path = Path(folder) / PurePosixPath(key).name
            _check_bytes(key, store.download(uri, path).sha256, content_sha256)
            yield path
        return
    path = Path(uri)
    if not path.is_file():
        raise store.ObjectMissing(f"There is no object {uri}.")
    if content_sha256:
        _check_bytes(key, manifest.sha256_file(path), content_sha256)
    yield path


def _check_bytes(key: str, found: str, ingested: str | None) -> None:
    if ingested and found != ingested:
        raise DamagedObject(f"The object {key} no longer has the bytes that were ingested.")


def fitted(height: int, width: int, *, short_side: int | None = None, long_side: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels, shrunk to that side and never enlarged."""
    share = min(
        1.0,
        short_side / min(height, width) if short_side else 1.0,
        long_side / max(height, width) if long_side else 1.0,
    )
    return max(1, round(height * share)), max(1, round(width * share))


def clip_frames(
    row: Mapping[str, object], objects: str, long_side: int, shares: Sequence[float] = (0.1, 0.5, 0.9)
) -> Frames:
    """Small frames of a clip, for people to look at.

    Args:
        row: of the clips table.
        objects: URI prefix of the content-addressed objects.
        long_side: in pixels; smaller pictures stay as they are.
        shares: places in the clip, 0 to 1.

    Returns:
        (T, H, W, 3) uint8; T is 0 when they cannot be read.
    """
    start, count = int(str(row["start_frame"])), int(str(row["num_frames"]))
    numbers = sorted({start + min(int(share * count), count - 1) for share in shares})
    size = fitted(int(str(row["height"])), int(str(row["width"])), long_side=long_side)
    try:
        with local_object(objects, str(row["object_key"])) as path:
            return read_frames(path, numbers, size)
    except (store.StoreError, UnreadableMedia, OSError, ValueError) as error:
        logger.info("no picture of clip %s: %s", row["clip_id"], error)
        return np.zeros((0, *size, 3), np.uint8)


def example_frames(
    rows: Iterable[Mapping[str, object]], objects: str, long_side: int, *, place: int
) -> dict[str, Frames]:
    """One small frame of each clip, every file read once.

    Args:
        rows: of the clips table.
        objects: URI prefix of the content-addressed objects.
        long_side: in pixels; smaller pictures stay as they are.
        place: so many frames after the beginning of its clip a frame lies, or in the middle of a shorter one.

    Returns:
        (H, W, 3) uint8 by clip id; clips that cannot be read are left out.
    """
    by_file: dict[str, dict[str, Mapping[str, object]]] = {}
    for row in rows:
        by_file.setdefault(str(row["object_key"]), {})[str(row["clip_id"])] = row
    found: dict[str, Frames] = {}
    for key, clips in sorted(by_file.items()):
        numbers = {name: _example_number(row, place) for name, row in clips.items()}
        first = next(iter(clips.values()))
        size = fitted(int(str(first["height"])), int(str(first["width"])), long_side=long_side)
        try:
            with local_object(objects, key) as path:
                for number, frame in pick_frames(path, list(numbers.values()), size):
                    found |= {name: frame for name, wanted in numbers.items() if wanted == number}
        except Exception as error:  # a picture is never worth a table
            logger.info("no picture of %s: %s", ", ".join(sorted(set(numbers) - set(found))), error)
    return found


def _example_number(row: Mapping[str, object], place: int) -> int:
    return int(str(row["start_frame"])) + min(place, int(str(row["num_frames"])) // 2)
