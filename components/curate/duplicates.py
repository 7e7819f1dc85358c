"""Near-duplicates: clips that look the same although their bytes differ (another encoding, size or container).

A perceptual hash sees shapes in grey and cannot tell a red circle from a green one, and on flat pictures noise flips
a third of its bits. So small colour thumbnails decide, and the hash only vetoes what merely shares its colours.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASH_HEX_DIGITS = 16
CELL_LEVELS_MARGIN = 1e-6


@dataclass(frozen=True)
class Fingerprint:
    """What the column `phash` holds.

    Attributes:
        hashes: (3,) uint64, perceptual hashes of three frames in order.
        colours: (frames * cells * 3,) float64, colour thumbnails of the same frames, levels 0 to 255.
    """

    hashes: NDArray[np.uint64]
    colours: NDArray[np.float64]

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Read the text form: hexadecimal hashes, a dash, hexadecimal thumbnails."""
        hashes, _, colours = text.partition("-")
        places = range(0, len(hashes), HASH_HEX_DIGITS)
        return cls(
            np.array([int(hashes[place : place + HASH_HEX_DIGITS], 16) for place in places], np.uint64),
            np.frombuffer(bytes.fromhex(colours), np.uint8).astype(np.float64),
        )

    @property
    def mean_colour(self) -> NDArray[np.float64]:
        """(3,) mean red, green and blue."""
        mean: NDArray[np.float64] = self.colours.reshape(-1, 3).mean(axis=0)
        return mean


def near_duplicates(phashes: Sequence[str], max_bits: int, max_levels: float) -> list[int | None]:
    """For each clip the index of an earlier, kept clip that it repeats, or None when it is the first of its kind.

    Two clips are one when each of their three hashes differs in at most `max_bits` bits and their colours differ by
    at most `max_levels` (root mean square). Only clips that are themselves kept are compared with.
    """
    if max_bits < 0:
        return [None] * len(phashes)
    # Colours within max_levels have channel means within sqrt(3) times that: only neighbouring cells can match.
    cell_levels = np.sqrt(3) * max_levels + CELL_LEVELS_MARGIN
    kept: dict[tuple[int, ...], list[tuple[int, Fingerprint]]] = defaultdict(list)
    found: list[int | None] = []
    for index, text in enumerate(phashes):
        fingerprint = Fingerprint.parse(text)
        cell = tuple(int(value) for value in np.floor(fingerprint.mean_colour / cell_levels))
        neighbours = itertools.product(*((value - 1, value, value + 1) for value in cell))
        candidates = sorted(
            (item for neighbour in neighbours for item in kept.get(neighbour, ())), key=lambda item: item[0]
        )
        match = _first_match(fingerprint, candidates, max_bits, max_levels)
        if match is None:
            kept[cell].append((index, fingerprint))
        found.append(match)
    return found


def _first_match(
    fingerprint: Fingerprint, candidates: Iterable[tuple[int, Fingerprint]], max_bits: int, max_levels: float
) -> int | None:
    for index, other in candidates:
        bits = int(np.bitwise_count(fingerprint.hashes ^ other.hashes).max())
        levels = float(np.sqrt(np.mean((fingerprint.colours - other.colours) ** 2)))
        if bits <= max_bits and levels <= max_levels:
            return index
    return None
