"""Tar archives as WebDataset writes them: members of one stem belong together; nothing is extracted by its name."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from components.ingest.sidecars import MAX_SIDECAR_BYTES, SIDECAR_SUFFIXES, Said, merge, too_large

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK_BYTES = tarfile.BLOCKSIZE
CHUNK_BYTES = 1 << 20


class Member(NamedTuple):
    """One input in an archive.

    Attributes:
        name: as written.
        occurrence: how many members of this name come before it.
        refusal: reason and sentence when it cannot be taken.
        offset, size_bytes: where its bytes lie in the archive.
        said: what the members of the same stem say about it.
    """

    name: str
    occurrence: int
    refusal: tuple[str, str] | None
    offset: int = 0
    size_bytes: int = 0
    said: Said = Said()

    def copy(self, archive: Path, path: Path) -> None:
        """Write its bytes to a file; `OSError` when the archive cannot be read."""
        with archive.open("rb") as source, path.open("wb") as target:
            source.seek(self.offset)
            left = self.size_bytes
            while left and (data := source.read(min(left, CHUNK_BYTES))):
                target.write(data)
                left -= len(data)


def is_archive(name: str) -> bool:
    """Whether a file of this name is looked into."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(path: Path, scratch: Path, max_bytes: int) -> Path:
    """The archive itself, or its bytes without gzip.

    Raises:
        ValueError: it is no gzip file, is damaged, or grows beyond `max_bytes`.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    plain, size = scratch / "archive.tar", 0
    try:
        with gzip.open(path, "rb") as source, plain.open("wb") as target:
            while data := source.read1(CHUNK_BYTES):
                size += len(data)
                if size > max_bytes:
                    raise ValueError(f"unpacked it is larger than {max_bytes} bytes (max_file_bytes)")
                target.write(data)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass  # what came before the damage is listed, and the missing end noticed there
    return plain


def list_members(path: Path, max_bytes: int) -> tuple[list[Member], str | None]:
    """Inputs of an archive in their order, and a phrase on where it breaks off (None when it is whole).

    Args:
        path: an uncompressed tar file.
        max_bytes: larger members are refused.
    """
    found, damage = _headers(path)
    by_name = {info.name: info for info in found if info.isreg()}
    seen: Counter[str] = Counter()
    members = []
    total_bytes = path.stat().st_size
    for info in found:
        name = PurePosixPath(info.name)
        hidden = any(part.startswith(".") and part not in (".", "..") for part in name.parts)
        if info.isdir() or hidden or (info.isreg() and name.suffix.lower() in SIDECAR_SUFFIXES):
            continue
        occurrence = seen[info.name]
        seen[info.name] += 1
        refusal = _refusal(info, occurrence, max_bytes, total_bytes)
        said = Said() if refusal else merge(_readers(path, by_name, info.name))
        members.append(Member(info.name, occurrence, refusal, info.offset_data, info.size, said))
    return members, damage


def _headers(path: Path) -> tuple[list[tarfile.TarInfo], str | None]:
    """All headers that can be read. The library ends without a word at a damaged one, so the end is looked at."""
    found: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:", errorlevel=0) as archive:
            try:
                found.extend(archive)  # what came before an error stays
            finally:
                end = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError, MemoryError) as error:
        return found, f"after {len(found)} members: {error}"
    with path.open("rb") as file:
        tail = os.pread(file.fileno(), BLOCK_BYTES, end)
    if tail.strip(b"\0") or (found and end > path.stat().st_size):
        return found, f"after {len(found)} members: there is no readable header"
    return found, None


def _refusal(info: tarfile.TarInfo, occurrence: int, max_bytes: int, total_bytes: int) -> tuple[str, str] | None:
    name = PurePosixPath(info.name)
    if not info.name.strip("/ ") or "\0" in info.name:
        return "no_path", "The member has no name."
    if name.is_absolute() or ".." in name.parts:
        return "unsafe_path", f"The member {info.name!r} points outside of the archive."
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "no plain file"
        return "unsafe_member", f"The member {info.name!r} is {kind}."
    if occurrence:
        return "duplicate_path", f"An earlier member has the name {info.name!r}."
    if info.size > max_bytes:
        return "too_large", f"The member is larger than {max_bytes} bytes (max_file_bytes)."
    if info.offset_data + info.size > total_bytes:
        return "damaged_archive", "The archive ends before the member does."
    return None


def _readers(path: Path, by_name: dict[str, tarfile.TarInfo], name: str) -> dict[str, Callable[[], bytes | str | None]]:
    """Sidecars of the same stem, up to the last dot or, as WebDataset has it, up to the first one of the name."""
    folder, slash, base = name.rpartition("/")
    stems = dict.fromkeys([name.removesuffix(PurePosixPath(name).suffix), f"{folder}{slash}{base.partition('.')[0]}"])
    readers: dict[str, Callable[[], bytes | str | None]] = {}
    for suffix in SIDECAR_SUFFIXES:
        there = [info for stem in stems if (info := by_name.get(stem + suffix)) is not None]
        if there:
            readers[suffix] = _reader(path, there[0], suffix)
    return readers


def _reader(path: Path, info: tarfile.TarInfo, suffix: str) -> Callable[[], bytes | str | None]:
    def read() -> bytes | str | None:
        if info.size > MAX_SIDECAR_BYTES:
            return too_large(suffix)
        with path.open("rb") as file:
            return os.pread(file.fileno(), info.size, info.offset_data)

    return read
