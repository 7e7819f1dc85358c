"""Semantic duplicates: clips that show the same things, by the angle between CLIP's features of their middle frames.

All pairs count, without approximation, in bounded memory. In the directions in which a table's clips differ most, two
of them lie at most as far apart as they do in all; what is left of either enters as its length only. That bound costs
34 multiplications a pair instead of the features' 512 or more, and rules out nearly all; the rest is looked at in full.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

NUM_DIRECTIONS = 32
SAMPLED_CLIPS = 20_000
"""From so many, evenly spread, the directions are taken; any directions would do, these rule out most."""
ROWS_AT_ONCE, COLUMNS_AT_ONCE, PAIRS_AT_ONCE = 256, 8192, 8192
TOLERANCE = 1e-4
"""Of products in single precision, so that the bound never rules out a pair that the features would not."""

Float = NDArray[np.float32]
Int64 = NDArray[np.int64]


def with_semantic_groups(clips: pl.DataFrame, min_similarity: float | None) -> pl.DataFrame:
    """Fill `semantic_group` of all shots: the smallest clip id of those connected by similarity, null when alone.

    It depends neither on what was decided about a clip nor on the order of the table. Stills are compared with stills,
    videos with videos.

    Args:
        clips: table of the `clips` schema; only those with an `embedding` belong to groups.
        min_similarity: cosine from which on two clips show the same; none do when absent.
    """
    groups = [pl.DataFrame(schema={"clip_id": pl.String, "semantic_group": pl.String})]
    if min_similarity is not None:
        described = clips.select("clip_id", "media", "embedding").filter(pl.col("embedding").is_not_null())
        shots = described.sort("clip_id").with_columns(_size=pl.col("embedding").bin.size())
        for _, alike in shots.group_by("media", "_size", maintain_order=True):
            vectors = np.frombuffer(b"".join(alike["embedding"]), np.float16).reshape(len(alike), -1)
            label = similar_groups(vectors, min_similarity)
            members = np.flatnonzero(np.bincount(label, minlength=len(label))[label] > 1)
            ids = alike["clip_id"]
            groups.append(pl.DataFrame({"clip_id": ids[members], "semantic_group": ids[label[members]]}))
    joined = clips.drop("semantic_group", strict=False).join(
        pl.concat(groups), on="clip_id", how="left", maintain_order="left"
    )
    order = clips.columns if "semantic_group" in clips.columns else joined.columns
    return joined.select(order)


def similar_groups(vectors: NDArray[np.float16], min_similarity: float) -> Int64:
    """(n,) for each vector the first that it is connected to, itself included.

    Args:
        vectors: (n, width); lengths do not matter.
        min_similarity: cosine of connected vectors.
    """
    groups = _Groups(len(vectors))
    bounds = _bounds(vectors)
    least = np.float32(min_similarity - TOLERANCE)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(vectors)))
        for start in range(first, len(vectors), COLUMNS_AT_ONCE):
            columns = np.arange(start, min(start + COLUMNS_AT_ONCE, len(vectors)))
            open_ = bounds[rows[0] : rows[-1] + 1] @ bounds[start : columns[-1] + 1].T >= least
            if open_.any():
                _connect(groups, vectors, rows, columns, open_, min_similarity)
    return groups.first_of(np.arange(len(vectors)))


def _bounds(vectors: NDArray[np.float16]) -> Float:
    """(n, 34): a row times another one is at least the cosine of the two vectors.

    For vectors a, b of length 1, with p their parts in some directions and r the lengths of the rest,
    |a - b|^2 >= |p(a) - p(b)|^2 + (r(a) - r(b))^2, so cos(a, b) <= p(a) p(b) + r(a) r(b).
    """
    count = len(vectors)
    sample = _unit(vectors[:: max(1, count // SAMPLED_CLIPS)])
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    basis, _ = np.linalg.qr(np.column_stack([mean, directions[:, : -1 - NUM_DIRECTIONS : -1]]))
    bounds = np.empty((count, basis.shape[1] + 1), np.float32)
    for start in range(0, count, PAIRS_AT_ONCE):
        some = _unit(vectors[start : start + PAIRS_AT_ONCE])
        parts = some @ basis.astype(np.float32)
        bounds[start : start + len(some), :-1] = parts
        bounds[start : start + len(some), -1] = np.sqrt(np.maximum(1.0 - np.square(parts).sum(axis=1), 0.0))
    return bounds


def _connect(
    groups: _Groups,
    vectors: NDArray[np.float16],
    rows: Int64,
    columns: Int64,
    open_: NDArray[np.bool_],
    min_similarity: float,
) -> None:
    """Look at open pairs, of each column one at a time: what was connected meanwhile need not be looked at."""
    open_ &= rows[:, None] < columns
    while True:
        open_ &= groups.first_of(rows)[:, None] != groups.first_of(columns)
        column = np.flatnonzero(open_.any(axis=0))
        if not len(column):
            return
        row = open_[:, column].argmax(axis=0)
        open_[row, column] = False
        pairs = np.stack([rows[row], columns[column]], axis=1)
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            some = pairs[start : start + PAIRS_AT_ONCE]
            first, second = (_unit(vectors[some[:, side]]) for side in (0, 1))
            groups.join(some[np.einsum("ij,ij->i", first, second) >= min_similarity])


def _unit(vectors: NDArray[np.float16]) -> Float:
    """The same at length 1, in single precision; what has no length or no values is like nothing else."""
    values = np.nan_to_num(vectors.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(length, 1e-12), np.float32)


class _Groups:
    """Which positions are connected; the first of a group names it."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def first_of(self, positions: Int64) -> Int64:
        """(n,) the first position that each one is connected to."""
        found = self._parent[positions]
        while not np.array_equal(found, above := self._parent[found]):
            found = above
        self._parent[positions] = found
        return found

    def join(self, pairs: Int64) -> None:
        """Connect these (n, 2) pairs."""
        for pair in pairs.tolist():
            low, high = sorted(self.first_of(np.array(pair)).tolist())
            self._parent[high] = low
