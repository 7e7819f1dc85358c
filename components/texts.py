"""Many short strings in two arrays: an object for each of ten million would weigh more than all else about them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

_CHUNK_ROWS = 1 << 18
"""Rows handled at once, so that the intermediate copies stay small."""


@dataclass(frozen=True)
class Texts:
    """N strings.

    Attributes:
        data: (bytes,) uint8, all of them in UTF-8, end to end.
        offsets: (N + 1,) int64, where each begins.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, series: pl.Series) -> Texts:
        """The strings of a column without nulls."""
        lengths = series.str.len_bytes().to_numpy()
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        data = np.empty(int(offsets[-1]), dtype=np.uint8)
        for start in range(0, len(series), _CHUNK_ROWS):
            part = series.slice(start, _CHUNK_ROWS)
            joined = part.str.join("").item().encode()
            begin = int(offsets[start])
            data[begin : begin + len(joined)] = np.frombuffer(joined, dtype=np.uint8)
        return cls(data, offsets)

    def __len__(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        """One of the strings."""
        return self.data[int(self.offsets[row]) : int(self.offsets[row + 1])].tobytes().decode()

    def each(self) -> Iterator[str]:
        """The strings one after another, decoded many at a time."""
        for start in range(0, len(self), _CHUNK_ROWS):
            bounds = self.offsets[start : start + _CHUNK_ROWS + 1]
            data = self.data[int(bounds[0]) : int(bounds[-1])].tobytes()
            ends = (bounds - bounds[0]).tolist()
            if data.isascii():
                text = data.decode()
                yield from (text[begin:end] for begin, end in itertools.pairwise(ends))
            else:
                yield from (data[begin:end].decode() for begin, end in itertools.pairwise(ends))

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """These strings, in this order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        data = np.empty(int(offsets[-1]), dtype=np.uint8)
        for first in range(0, len(rows), _CHUNK_ROWS):
            part = slice(first, min(first + _CHUNK_ROWS, len(rows)))
            begin, end = int(offsets[part.start]), int(offsets[part.stop])
            data[begin:end] = self.data[ranges(starts[part], lengths[part])]
        return Texts(data, offsets)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`arange(starts[0], starts[0] + lengths[0])`, then those of the next, ..., in one array."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    positions: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return positions
