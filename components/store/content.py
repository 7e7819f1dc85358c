"""What is written to a store: bytes that can be read again at any offset, so that a lost part is sent again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Content(Protocol):
    """The bytes of an object to be written; reading the same range twice must give the same bytes."""

    @property
    def size_bytes(self) -> int:
        """Length of the whole."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; both lie inside."""
        ...


@dataclass(frozen=True)
class Transferred:
    """What went through on its way to or from the store."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class BytesContent:
    """Bytes in memory."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """Length of the whole."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """A part of them."""
        return self.data[offset : offset + size]


class FileContent:
    """A local file of fixed size; use it as a context manager.

    Raises:
        OSError: it cannot be opened, or was cut short while it was read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._size_bytes = os.fstat(self._file.fileno()).st_size

    @property
    def size_bytes(self) -> int:
        """Length of the file when it was opened."""
        return self._size_bytes

    def read(self, offset: int, size: int) -> bytes:
        """A part of the file."""
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self._path} became shorter while it was read")
        return data

    def __enter__(self) -> FileContent:
        """The content itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()


def ranges(size_bytes: int, step_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of consecutive pieces of at most `step_bytes`."""
    for offset in range(0, size_bytes, step_bytes):
        yield offset, min(step_bytes, size_bytes - offset)
