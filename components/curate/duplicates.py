"""Near-duplicates: clips that look the same although their bytes differ.

Another encoding, size or container, and up to a tenth cut off at either end. Two clips are laid beside each other at
every offset that leaves so much of both; where they lie best, what is left of the difference is compared with how much
there is to see at all. A clip in which there is next to nothing to see (black, a fade) is like no other.

All pairs of a million clips are too many to look at closely: clips are sorted into cells by length, brightness and
contrast, and within neighbouring cells one matrix product rules out nearly all pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.curate.connected import connected
from components.curate.fingerprint import NUM_WINDOWS, SIDE_PX, WINDOW_BYTES, parse

MAX_TRIMMED = 0.115
"""Of the longer clip, at either end: a tenth, and room for whole frames and for cuts that are found one frame off."""
MAX_DIFFERENCE = 0.2
"""Of the contrast. Copies of generated and of real videos differ by up to 0.14, other shots by 0.26 and more."""
MIN_CONTRAST = 4.0
"""Levels of 255; what differs less from its mean colour has no features."""
OFFSETS = np.linspace(-MAX_TRIMMED, MAX_TRIMMED, 25)
COMPARED_WINDOWS = 4
"""Fewer than are stored: the means over them hardly depend on how frames lie in the stored ones."""

MAX_PATTERN_DISTANCE = 0.35
MAX_COLOUR_DISTANCE = 0.4
"""Of pairs that are looked at closely: of their smaller contrast. Copies differ by up to 0.21 and 0.18."""
LENGTH_STEP, BRIGHTNESS_STEP, CONTRAST_STEP = 0.27, 26.0, 0.25
"""Cells: copies differ by less than one step in the logarithm of the length, luma, the logarithm of contrast."""
PRODUCTS_AT_ONCE, ROWS_AT_ONCE, PAIRS_AT_ONCE = 1 << 22, 1024, 4096
CROWD = 24
"""Where more clips than these look like one, it is compared with the first and the most similar of them only."""

Pairs = NDArray[np.int64]
"""(n, 2) positions."""
Float = NDArray[np.float32]


def with_near_duplicate_groups(clips: pl.DataFrame) -> pl.DataFrame:
    """Fill `near_duplicate_group` of all shots: the smallest clip id of those that look the same, null when alone.

    It depends on nothing else: not on what was decided about a clip, nor on the order of the table. Stills are
    compared with stills, videos with videos.

    Args:
        clips: table of the `clips` schema.
    """
    shots = clips.filter(pl.col("phash").is_not_null()).sort("clip_id")
    group_of: list[pl.DataFrame] = []
    for _, same_media in shots.group_by("media", maintain_order=True):
        length_s = (same_media["end_s"] - same_media["start_s"]).to_numpy()
        group = near_duplicate_groups(parse(same_media["phash"].to_list()), length_s)
        members = np.flatnonzero(group >= 0)
        ids = same_media["clip_id"]
        group_of.append(pl.DataFrame({"clip_id": ids[members], "near_duplicate_group": ids[group[members]]}))
    schema = {"clip_id": pl.String, "near_duplicate_group": pl.String}
    groups = pl.concat([pl.DataFrame(schema=schema), *group_of])
    joined = clips.drop("near_duplicate_group").join(groups, on="clip_id", how="left", maintain_order="left")
    return joined.select(clips.columns)


def near_duplicate_groups(windows: NDArray[np.uint8], length_s: NDArray[np.float64]) -> Pairs:
    """(n,) for each clip the first of those that it is connected to, itself included; -1 when there is no other.

    Args:
        windows: (n, 8, 192) uint8, as `fingerprint.parse` gives them.
        length_s: (n,) in seconds; 0 for all stills.
    """
    count = len(windows)
    length = np.maximum(length_s, 1e-3)
    candidates = _batched(_candidates(windows, length))
    found = (pairs[differences(windows, length, pairs) <= MAX_DIFFERENCE] for pairs in candidates)
    edges = np.concatenate([np.empty((0, 2), np.int64), *found])
    label = connected(edges, count)
    alone = np.bincount(label, minlength=count)[label] == 1
    return np.where(alone, -1, label)


def _batched(pairs: Iterable[Pairs]) -> Iterator[Pairs]:
    """The same pairs, a few thousand at a time: most cells have only a few."""
    waiting, count = list[Pairs](), 0
    for some in pairs:
        waiting.append(some)
        count += len(some)
        if count >= PAIRS_AT_ONCE:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


# --- two clips side by side ------------------------------------------------------------------------------------------


def differences(windows: NDArray[np.uint8], length_s: NDArray[np.float64], pairs: Pairs) -> NDArray[np.float64]:
    """(m,) root mean square difference of each pair where they lie best, over the smaller contrast of the two.

    Args:
        windows: (n, 8, 192) uint8.
        length_s: (n,) above 0.
        pairs: (m, 2) positions.
    """
    result = np.empty(len(pairs), np.float64)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        # Centred, or single precision would not do for the difference of two large squares.
        first, second = (windows[part[:, side]].astype(np.float32) - 128.0 for side in (0, 1))
        weights, lies_well = _weights(length_s[part[:, 0]], length_s[part[:, 1]])
        square = sum(
            sign * np.einsum("pomk,pkl,poml->po", left, one @ other.swapaxes(1, 2), right, optimize=True)
            for sign, left, one, other, right in (
                (1.0, weights[0], first, first, weights[0]),
                (-2.0, weights[0], first, second, weights[1]),
                (1.0, weights[1], second, second, weights[1]),
            )
        )
        square = np.where(lies_well, square / (COMPARED_WINDOWS * WINDOW_BYTES), np.inf)
        contrast = np.minimum(_contrast(first), _contrast(second))
        result[start : start + len(part)] = np.sqrt(np.maximum(square.min(axis=1), 0.0)) / np.maximum(contrast, 1e-6)
    return result


def _contrast(centred: Float) -> NDArray[np.float64]:
    """(n,) standard deviation over space and time, mean over the channels.

    Args:
        centred: (n, 8, 192) whole levels from -128 to 127; sums and squares of these are exact in single precision.
    """
    count = NUM_WINDOWS * SIDE_PX * SIDE_PX
    total, squares = (
        values.sum(axis=1).reshape(-1, SIDE_PX * SIDE_PX, 3).sum(axis=1).astype(np.float64) / count
        for values in (centred, np.square(centred))
    )
    contrast: NDArray[np.float64] = np.sqrt((squares - np.square(total)).mean(axis=1))
    return contrast


def _weights(
    first_s: NDArray[np.float64], second_s: NDArray[np.float64]
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]:
    """How the stored windows of both clips add up to the compared ones, at every offset, and which offsets are fit.

    Returns:
        two of (pairs, offsets, compared windows, stored windows), and (pairs, offsets).
    """
    longest = np.maximum(first_s, second_s)[:, None]
    begins = OFFSETS * longest  # of the second clip, on the clock of the first
    ends = begins + second_s[:, None]
    # A hair of tolerance for lengths that are the same but for rounding.
    fits = np.abs(ends - first_s[:, None]) <= (MAX_TRIMMED + 1e-3) * longest
    start, end = np.maximum(begins, 0.0), np.minimum(ends, first_s[:, None])
    in_first = _span_weights(start / first_s[:, None], end / first_s[:, None])
    in_second = _span_weights((start - begins) / second_s[:, None], (end - begins) / second_s[:, None])
    return (in_first, in_second), fits


def _integral_matrices() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integral over time and its slope at the nine borders of the windows, (9, 8) each, as sums of the windows."""
    integral = np.tril(np.ones((NUM_WINDOWS + 1, NUM_WINDOWS)), -1) / NUM_WINDOWS
    slope = np.zeros((NUM_WINDOWS + 1, NUM_WINDOWS))
    for border in range(1, NUM_WINDOWS):
        slope[border, border - 1 : border + 1] = 0.5
    slope[0, :2] = slope[-1, :-3:-1] = 1.5, -0.5
    return integral, slope / NUM_WINDOWS


_INTEGRAL, _SLOPE = _integral_matrices()


def _span_weights(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., compared windows, stored windows): means over equal parts of a span, given as shares of the clip.

    The integral over time is known at the borders of the windows; between them a cubic (Hermite) goes through it.
    """
    parts = np.arange(COMPARED_WINDOWS + 1) / COMPARED_WINDOWS
    place = np.clip(start[..., None] + (end - start)[..., None] * parts, 0.0, 1.0) * NUM_WINDOWS
    window = np.minimum(place.astype(np.int64), NUM_WINDOWS - 1)
    t = (place - window)[..., None]
    at_places = (
        (2 * t**3 - 3 * t**2 + 1) * _INTEGRAL[window]
        + (t**3 - 2 * t**2 + t) * _SLOPE[window]
        + (3 * t**2 - 2 * t**3) * _INTEGRAL[window + 1]
        + (t**3 - t**2) * _SLOPE[window + 1]
    )
    width = np.maximum(end - start, 1e-6)[..., None, None] / COMPARED_WINDOWS
    weights: NDArray[np.float64] = np.diff(at_places, axis=-2) / width
    return weights


# --- which pairs to look at ------------------------------------------------------------------------------------------


def _candidates(windows: NDArray[np.uint8], length: NDArray[np.float64]) -> Iterator[Pairs]:
    """Pairs that may be one clip, each once, the earlier clip first; a few cells' at a time."""
    looks = _Looks(windows)
    position = np.flatnonzero(looks.contrast >= MIN_CONTRAST)
    cells = np.stack(
        [
            np.log(length[position]) / LENGTH_STEP,
            looks.colour[position, 0] / BRIGHTNESS_STEP,
            np.log(looks.contrast[position]) / CONTRAST_STEP,
        ],
        axis=1,
    )
    unique, cell_of = np.unique(np.floor(cells).astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(cell_of.ravel(), kind="stable")
    borders = np.searchsorted(cell_of.ravel()[order], np.arange(len(unique) + 1))
    members = [position[order[begin:end]] for begin, end in itertools.pairwise(borders)]
    numbers = {tuple(cell): number for number, cell in enumerate(unique.tolist())}
    steps = [tuple(step) for step in np.ndindex(3, 3, 3) if step > (1, 1, 1)]
    for cell, number in numbers.items():
        beside = (numbers.get(tuple(c + s - 1 for c, s in zip(cell, step, strict=True))) for step in steps)
        yield from looks.similar(members[number], members[number], length)
        for other in beside:
            if other is not None:
                yield from looks.similar(members[number], members[other], length)


class _Looks:
    """Coarse features of all clips: what the middle half of each looks like.

    Attributes:
        contrast: (n,) levels.
        colour: (n, 3) mean luma and colour differences, levels.
        left, right: (n, 23) lowest frequencies of the mean picture without its mean colour, over the contrast, and two
            more numbers: a row of one times a row of the other is half of what `MAX_PATTERN_DISTANCE` squared leaves
            above the squared distance of the frequencies.
    """

    def __init__(self, windows: NDArray[np.uint8]) -> None:
        count = len(windows)
        self.contrast = np.empty(count, np.float64)
        self.colour = np.empty((count, 3), np.float64)
        self.left, self.right = (np.ones((count, 23), np.float32) for _ in range(2))
        to_colour, to_pattern = _frequencies()
        middle = slice(NUM_WINDOWS // 4, NUM_WINDOWS - NUM_WINDOWS // 4)
        for start in range(0, count, PAIRS_AT_ONCE):
            some = windows[start : start + PAIRS_AT_ONCE].astype(np.float32)
            rows, mean = slice(start, start + len(some)), some[:, middle].mean(axis=1)
            self.contrast[rows] = _contrast(some - 128.0)
            self.colour[rows] = mean @ to_colour
            pattern = (mean @ to_pattern) / np.maximum(self.contrast[rows, None], MIN_CONTRAST)
            self.left[rows, :-2] = self.right[rows, :-2] = pattern
            self.left[rows, -1] = self.right[rows, -2] = MAX_PATTERN_DISTANCE**2 / 4 - (pattern**2).sum(axis=1) / 2

    def similar(self, rows: Pairs, columns: Pairs, length: NDArray[np.float64]) -> Iterator[Pairs]:
        """Pairs of a clip of one cell and a clip of another, or of the same, that are similar in every respect."""
        right = np.ascontiguousarray(self.right[columns].T)
        step = min(max(PRODUCTS_AT_ONCE // len(columns), 1), ROWS_AT_ONCE)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            nearness = self.left[some] @ right
            row, column = np.divmod(np.flatnonzero(nearness >= 0), len(columns))
            if rows is columns:
                is_later = start + row < column
                row, column = row[is_later], column[is_later]
            if len(row):
                row, column = _uncrowded(row, column, nearness)
                pairs = np.sort(np.stack([some[row], columns[column]], axis=1), axis=1)
                yield pairs[self._fit(pairs, length)]

    def _fit(self, pairs: Pairs, length: NDArray[np.float64]) -> NDArray[np.bool_]:
        first, second = pairs[:, 0], pairs[:, 1]
        contrast = np.minimum(self.contrast[first], self.contrast[second])
        colour = np.abs(self.colour[first] - self.colour[second]).max(axis=1) <= MAX_COLOUR_DISTANCE * contrast
        shares = np.minimum(length[first], length[second]) / np.maximum(length[first], length[second])
        fits: NDArray[np.bool_] = colour & (shares >= 1 - 2 * MAX_TRIMMED - 1e-3)
        return fits


def _uncrowded(row: Pairs, column: Pairs, nearness: Float) -> tuple[Pairs, Pairs]:
    """Places in a matrix, by row and column; of a row with more than `CROWD` of them the first and the nearest only."""
    counts = np.bincount(row, minlength=len(nearness))
    if counts.max() <= CROWD:
        return row, column
    begins = np.cumsum(counts) - counts
    by_nearness = np.lexsort((-nearness[row, column], row))
    rank_in_row = np.arange(len(row)) - begins[row]
    stays = (counts[row] <= CROWD) | (rank_in_row < CROWD // 2)
    stays[by_nearness[rank_in_row < CROWD // 2]] = True
    return row[stays], column[stays]


def _frequencies() -> tuple[Float, Float]:
    """(192, 3) to mean luma, blue and red difference; (192, 21) to the lowest frequencies of these three."""
    places = np.arange(SIDE_PX) + 0.5
    waves = [np.cos(np.pi / SIDE_PX * places * k) * (np.sqrt(2.0) if k else 1.0) for k in range(4)]
    channels = np.array([[0.299, 0.587, 0.114], [-0.5, -0.5, 1.0], [1.0, -0.5, -0.5]])
    channels[1:] *= 0.5
    columns = []
    for channel, side in zip(channels, (4, 2, 2), strict=True):
        for row, column in np.ndindex(side, side):
            columns.append(np.einsum("y,x,c->yxc", waves[row], waves[column], channel).ravel() / SIDE_PX**2)
    matrix = np.stack(columns, axis=1).astype(np.float32)
    means = [0, 16, 20]
    return matrix[:, means], np.delete(matrix, means, axis=1)
