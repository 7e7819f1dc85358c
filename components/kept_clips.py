"""Kept clips as planning needs them: a few numbers each, and a seed of their own."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components import tables
from components.config import Draws
from components.plan_file import PlannedClips
from components.texts import Texts
from model import pcg64, splitmix
from model.buckets import UniformDraws

IMAGE_FPS = 120.0
"""Frame rate told to the network for still images (Open-Sora 1.1)."""

DEFAULT_FPS = 24.0
"""Frame rate of videos whose container names none (Open-Sora 1.1)."""

SEED_BITS = 61
"""Bits of a clip's seed; the bits above separate its streams of draws, and leave room for offsets within one."""

COLUMNS = ("clip_id", "num_frames", "height", "width", "fps", "caption_sha256")
_WORD_BYTES = 8
_CHUNK_ROWS = 1 << 16
"""Rows whose seeds are made at once: one Python object each in one mode, arrays that stay in the cache in the other."""

Int32 = NDArray[np.int32]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True)
class Clips:
    """The columns of kept clips that planning needs, ordered by clip id.

    Attributes:
        told: What the plan says of every clip.
        sizes: (num_frames, height, width) of every clip, three arrays (N,).
        seeds: (N,) uint64, a pure function of (seed, clip id): what happens to a clip does not depend on the others.
        uniform: Draws in [0, 1) from seeds.
    """

    told: PlannedClips
    sizes: tuple[Int32, Int32, Int32]
    seeds: UInt64
    uniform: UniformDraws

    def __len__(self) -> int:
        """N."""
        return len(self.seeds)

    @classmethod
    def read(cls, path: Path, *, split: str, seed: int, draws: Draws = "opensora-1.1") -> Clips:
        """Kept clips of one split from a table with the columns of `tables.CLIPS`; others are not read.

        Raises:
            KinoflowError: The file is no such table.
        """
        is_wanted = (pl.col("outcome") == "kept") & (pl.col("split") == split)
        return cls.of(tables.scan(path, tables.CLIPS).filter(is_wanted).select(COLUMNS).collect(), seed, draws)

    @classmethod
    def of(cls, table: pl.DataFrame, seed: int, draws: Draws = "opensora-1.1") -> Clips:
        """Clips of a table with (at least) `COLUMNS`, in any order.

        Args:
            table: Kept clips.
            seed: Of all draws.
            draws: What they are made with.
        """
        table = table.select(COLUMNS)
        if not table["clip_id"].is_sorted():
            table = table.sort("clip_id")
        ids = Texts.of(table["clip_id"])
        own_fps = pl.col("fps").fill_nan(None).fill_null(DEFAULT_FPS)
        fps = table.select(pl.when(pl.col("num_frames") == 1).then(IMAGE_FPS).otherwise(own_fps).cast(pl.Float32))
        num_frames, height, width = (
            table[name].cast(pl.Int32).to_numpy() for name in ("num_frames", "height", "width")
        )
        told = PlannedClips(ids, _digest_words(table["caption_sha256"]), fps.to_series().to_numpy())
        seeds_of, uniform = _DRAWS[draws]
        return cls(told, (num_frames, height, width), seeds_of(ids, seed), uniform)


def _digest_words(digests: pl.Series) -> UInt64:
    """(N, 2) the digests' hexadecimal digits as two words each."""
    words = np.empty((len(digests), 2), dtype=np.uint64)
    for place in range(2):
        digits = digests.str.slice(place * 2 * _WORD_BYTES, 2 * _WORD_BYTES)
        words[:, place] = digits.str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
    return words


def hash_text(text: str) -> int:
    """A number of `SEED_BITS` bits from SHA-256."""
    return int(_seeds_of_digests([hashlib.sha256(text.encode()).digest()])[0])


def _seeds_of_digests(digests: Iterable[bytes]) -> UInt64:
    first = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 4)[:, 0]
    return first >> np.uint64(64 - SEED_BITS)


def _sha256_seeds(ids: Texts, seed: int) -> UInt64:
    """SHA-256 of seed and clip id."""
    seeds = np.empty(len(ids), dtype=np.uint64)
    prefix, sha256 = f"{seed}/".encode(), hashlib.sha256
    for start in range(0, len(ids), _CHUNK_ROWS):
        rows = slice(start, min(start + _CHUNK_ROWS, len(ids)))
        offsets = ids.offsets[rows.start : rows.stop + 1] - ids.offsets[rows.start]
        text = ids.data[ids.offsets[rows.start] : ids.offsets[rows.stop]].tobytes()
        bounds = offsets.tolist()
        parts = (text[begin:end] for begin, end in itertools.pairwise(bounds))
        seeds[rows] = _seeds_of_digests([sha256(prefix + part).digest() for part in parts])
    return seeds


def _mixed_seeds(ids: Texts, seed: int) -> UInt64:
    """Words of eight bytes of the clip id, folded into a hash of the seed one after another by SplitMix64's mixing."""
    start_word = np.uint64(hash_text(str(seed)))
    padded = np.concatenate((ids.data, np.zeros(_WORD_BYTES - 1, dtype=np.uint8)))
    words = np.ndarray((len(ids.data),), dtype="<u8", buffer=padded, strides=(1,))  # the word that begins at each byte
    masks = np.array([(1 << 8 * count) - 1 for count in range(_WORD_BYTES + 1)], dtype=np.uint64)
    seeds = np.empty(len(ids), dtype=np.uint64)
    for start in range(0, len(ids), _CHUNK_ROWS):
        begin = ids.offsets[start : start + _CHUNK_ROWS]
        begin = begin[: min(_CHUNK_ROWS, len(ids) - start)]
        length = ids.offsets[start + 1 : start + 1 + len(begin)] - begin
        mixed = splitmix.first_word(start_word ^ length.astype(np.uint64))
        for place in range(0, int(length.max()), _WORD_BYTES):
            rows = np.flatnonzero(length > place)
            left = np.minimum(length[rows] - place, _WORD_BYTES)
            mixed[rows] = splitmix.first_word(mixed[rows] ^ (words[begin[rows] + place] & masks[left]))
        seeds[start : start + len(begin)] = mixed >> np.uint64(64 - SEED_BITS)
    return seeds


_DRAWS: dict[Draws, tuple[Callable[[Texts, int], UInt64], UniformDraws]] = {
    "opensora-1.1": (_sha256_seeds, pcg64.first_uniform),
    "fast": (_mixed_seeds, splitmix.first_uniform),
}
