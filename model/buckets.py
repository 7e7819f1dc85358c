"""Which bucket a clip belongs to: Open-Sora 1.1's rule, for one clip and for millions.

A bucket is (resolution, num_frames, aspect key); everything in one batch shares it, hence one tensor shape. The rule
keeps a clip at a resolution with a probability and otherwise offers it to the next smaller one. Its coin is NumPy's
`default_rng(seed + pair index).random()`, so a choice depends on nothing but the clip's seed and the table.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from model.aspect import RESOLUTIONS, CustomResolution, Resolution, nearest_aspect
from model.pcg64 import first_uniform

Int64 = NDArray[np.int64]
UniformDraws = Callable[[NDArray[np.uint64]], NDArray[np.float64]]
"""One draw in [0, 1) for each of many seeds."""

MIN_PIXEL_SHARE = 0.8
"""Share of a resolution's nominal pixel count from which a clip qualifies for it (slight upsampling is allowed)."""

_EXTREME_RATIO = 2.0**30
"""Height / width from which distances to different keys may round to the same number."""

_CHUNK_ROWS = 16384
"""Rows handled at once: their intermediate arrays stay in the processor's cache."""


class Bucket(NamedTuple):
    """One shape that batches can have, with its share of the table."""

    resolution: str
    num_frames: int
    aspect: str
    height: int
    width: int
    keep_prob: float
    batch_size: int | None


def _quoted(key: object) -> object:
    if isinstance(key, int | float):
        raise ValueError(f'aspect {key} is read as a number; write the key in quotes, as in "0.67"')
    return key


AspectKey = Annotated[str, BeforeValidator(_quoted)]


class BucketTable(BaseModel):
    """The buckets of a training stage: {resolution: {num_frames: (keep_prob, batch_size)}}.

    One frame is the image bucket. (0.0, null) is a barrier: nothing is kept there, and longer videos do not fall back
    to fewer frames at that resolution. All aspects of a (resolution, num_frames) share its batch size, but for those in
    `batch_sizes`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets: dict[str, dict[int, tuple[float, int | None]]] = Field(
        description="Resolution name -> frame count -> (probability of keeping a clip there, clips per batch)."
    )
    frame_interval: int = Field(default=3, ge=1, description="Source frames per frame that the network sees.")
    custom_resolutions: dict[str, CustomResolution] = Field(
        default_factory=dict, description="Further resolution names, each with its own (height, width) sizes."
    )
    batch_sizes: dict[str, dict[int, dict[AspectKey, int]]] = Field(
        default_factory=dict,
        exclude_if=lambda exceptions: not exceptions,  # digests of tables without any stay what they were
        description='Exceptions: resolution name -> frame count -> aspect key (in quotes: "0.67") -> clips per batch.',
    )

    @field_validator("custom_resolutions")
    @classmethod
    def _check_new_names(cls, custom: dict[str, CustomResolution]) -> dict[str, CustomResolution]:
        for name in custom:
            if name in RESOLUTIONS:
                raise ValueError(f'custom resolution "{name}" is the name of a built-in one; choose another name')
        return custom

    @model_validator(mode="after")
    def _check_buckets(self) -> "BucketTable":
        allowed = [*RESOLUTIONS, *self.custom_resolutions]
        if not any(self.buckets.values()):
            raise ValueError("the bucket table is empty; list at least one resolution with one frame count")
        for name, frame_counts in self.buckets.items():
            if name not in allowed:
                raise ValueError(f'unknown resolution "{name}" in the bucket table; allowed: {", ".join(allowed)}')
            for num_frames, (keep_prob, batch_size) in frame_counts.items():
                _check_entry(f"bucket {name} x {num_frames} frames", num_frames, keep_prob, batch_size)
        return self

    @model_validator(mode="after")
    def _check_exceptions(self) -> "BucketTable":
        sizes = {resolution.name: resolution.sizes for resolution in self.resolutions}
        for name, frame_counts in self.batch_sizes.items():
            if name not in sizes:
                raise ValueError(f'batch_sizes: no resolution "{name}" in the bucket table; it has {_listed(sizes)}')
            for num_frames, of_aspects in frame_counts.items():
                where = f"batch_sizes: {name} x {num_frames} frames"
                if num_frames not in self.buckets[name]:
                    raise ValueError(f"{where} is no bucket; the table has {_listed(self.buckets[name])} frames there")
                for aspect, batch_size in of_aspects.items():
                    if aspect not in sizes[name]:
                        raise ValueError(f'{where} has no aspect "{aspect}"; it has {_listed(sizes[name])}')
                    if batch_size < 1:
                        raise ValueError(f'{where}, aspect "{aspect}": batch size {batch_size} must be at least 1')
        return self

    @cached_property
    def resolutions(self) -> tuple[Resolution, ...]:
        """The table's resolutions by descending nominal pixel count, the order in which a clip is offered to them."""
        custom = {name: resolution.resolve(name) for name, resolution in self.custom_resolutions.items()}
        named = {**RESOLUTIONS, **custom}
        return tuple(sorted((named[name] for name in self.buckets), key=lambda r: r.num_pixels, reverse=True))

    @cached_property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """(resolution, num_frames) in descending order; the position of a pair is its index in the coin's seed."""
        return tuple((r.name, f) for r in self.resolutions for f in sorted(self.buckets[r.name], reverse=True))

    @cached_property
    def triples(self) -> tuple[Bucket, ...]:
        """Every bucket, in the order of `pairs` and, within one, of the resolution's aspect table."""
        sizes = {resolution.name: resolution.sizes for resolution in self.resolutions}
        found = []
        for name, num_frames in self.pairs:
            keep_prob, batch_size = self.buckets[name][num_frames]
            own = self.batch_sizes.get(name, {}).get(num_frames, {})
            for aspect, size in sizes[name].items():
                found.append(Bucket(name, num_frames, aspect, *size, keep_prob, own.get(aspect, batch_size)))
        return tuple(found)

    @property
    def num_buckets(self) -> int:
        """Number of (resolution, num_frames, aspect) triples; the stride between the seeds of two rows."""
        return len(self.triples)

    def row_seeds(self, seed: int, epoch: int, num_rows: int) -> Int64:
        """Seed of every row in one epoch: seed + epoch + row * num_buckets (Open-Sora 1.1).

        Returns:
            (num_rows,) int64.
        """
        return seed + epoch + np.arange(num_rows, dtype=np.int64) * self.num_buckets


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(str(key) for key in keys)


def _check_entry(where: str, num_frames: int, keep_prob: float, batch_size: int | None) -> None:
    if num_frames < 1:
        raise ValueError(f"{where}: the frame count must be at least 1 (1 is the image bucket)")
    if not 0.0 <= keep_prob <= 1.0:
        raise ValueError(f"{where}: keep probability {keep_prob} is outside 0 to 1")
    if batch_size is None and keep_prob > 0.0:
        raise ValueError(f"{where}: a batch size is missing; only a barrier (keep probability 0) goes without one")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"{where}: batch size {batch_size} must be at least 1")


def choose_bucket(table: BucketTable, num_frames: int, height: int, width: int, seed: int) -> Bucket | None:
    """The bucket of one clip, or None where no bucket takes it: the rule as a sentence per line.

    Args:
        table: Buckets of the stage.
        num_frames: Source frames of the clip; 1 is an image.
        height: In pixels, after rotation.
        width: In pixels, after rotation.
        seed: The row's seed in this epoch (`BucketTable.row_seeds`).
    """
    for resolution in table.resolutions:
        if height * width < MIN_PIXEL_SHARE * resolution.num_pixels:
            continue
        frame_counts = sorted(table.buckets[resolution.name], reverse=True)
        if num_frames == 1:
            fitting = [f for f in frame_counts if f == 1]
        else:
            fitting = [f for f in frame_counts if f != 1 and num_frames > f * table.frame_interval]
        if not fitting:
            continue
        pair = (resolution.name, fitting[0])
        keep_prob = table.buckets[resolution.name][fitting[0]][0]
        coin = np.random.default_rng(seed + table.pairs.index(pair)).random()
        if keep_prob == 1.0 or coin < keep_prob:
            aspect = nearest_aspect(resolution, height, width)
            return next(b for b in table.triples if (b.resolution, b.num_frames, b.aspect) == (*pair, aspect))
    return None


@dataclass(frozen=True)
class BucketChoice:
    """Chosen buckets of N clips.

    Attributes:
        table: The table that `index` points into.
        index: (N,) int32 position in `table.triples`; -1 where no bucket takes the clip.
    """

    table: BucketTable
    index: NDArray[np.int32]

    def bucket(self, row: int) -> Bucket | None:
        """The bucket of one clip, or None."""
        index = int(self.index[row])
        return None if index < 0 else self.table.triples[index]

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """(N,) True where a bucket takes the clip."""
        return self.index >= 0

    @property
    def sizes(self) -> NDArray[np.int32]:
        """(N, 3) int32 (num_frames, height, width) of the batch; zeros where no bucket takes the clip."""
        shapes = [(b.num_frames, b.height, b.width) for b in self.table.triples]
        return np.array([*shapes, (0, 0, 0)], dtype=np.int32)[self.index]


def choose_buckets(
    table: BucketTable,
    num_frames: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    seeds: ArrayLike,
    *,
    uniform: UniformDraws = first_uniform,
) -> BucketChoice:
    """`choose_bucket` for N clips at once, equal to it row by row.

    Args:
        table: Buckets of the stage.
        num_frames: (N,) source frames per clip; 1 is an image.
        height: (N,) in pixels, after rotation.
        width: (N,) in pixels, after rotation.
        seeds: (N,) the rows' seeds in this epoch, in [0, 2**64 - number of pairs).
        uniform: The coin of a seed; Open-Sora 1.1's unless another is given.

    Raises:
        ValueError: Arrays of different lengths, values that are no integers, or negative ones.
    """
    columns = {"num_frames": num_frames, "height": height, "width": width, "seeds": seeds}
    arrays = [_column(name, values) for name, values in columns.items()]
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise ValueError(f"num_frames, height, width and seeds differ in length: {sorted(lengths)}")
    if len(arrays[3]) and int(arrays[3].max()) >= 2**64 - len(table.pairs):
        raise ValueError("seeds must stay below 2**64 minus the number of (resolution, frames) pairs")
    offers = _offers(table)
    index = np.full(len(arrays[0]), -1, dtype=np.int32)
    for start in range(0, len(index), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        _choose_chunk(offers, _Chunk(*(array[rows].astype(np.uint64) for array in arrays)), uniform, index[rows])
    return BucketChoice(table, index)


def _column(name: str, values: ArrayLike) -> NDArray[np.integer]:
    column = np.asarray(values)
    if column.ndim != 1 or (column.size and column.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be one dimension of integers, got {column.dtype} with shape {column.shape}")
    if column.dtype.kind == "i" and column.size and int(column.min()) < 0:
        raise ValueError(f"{name} holds a negative number ({int(column.min())})")
    return column


class _Aspects:
    """Aspect keys of one resolution, to be found by height / width.

    Args:
        ratios: Of the keys, in the order of the resolution's table.
    """

    def __init__(self, ratios: list[float]) -> None:
        self._table = np.array(ratios)
        # Equal ratios keep the table's order, so the first of them is found.
        self._ascending, self._index = np.unique(self._table, return_index=True)

    def nearest(self, ratio: NDArray[np.float64]) -> Int64:
        """(n,) position of the nearest key in the table; the first of two that are equally near."""
        last = len(self._ascending) - 1
        above = np.clip(np.searchsorted(self._ascending, ratio), min(1, last), last)
        below = np.maximum(above - 1, 0)
        above_index, below_index = self._index[above], self._index[below]
        to_above, to_below = np.abs(self._ascending[above] - ratio), np.abs(self._ascending[below] - ratio)
        nearest: Int64 = np.where(
            (to_below < to_above) | ((to_below == to_above) & (below_index < above_index)), below_index, above_index
        )
        extreme = np.flatnonzero(~(ratio < _EXTREME_RATIO))
        nearest[extreme] = np.abs(self._table - ratio[extreme, None]).argmin(axis=1)
        return nearest


@dataclass(frozen=True)
class _Offer:
    """One resolution as arrays.

    Attributes:
        min_pixels: Least height * width of a clip.
        thresholds: (F,) ascending source frames that each video frame count needs more than.
        pairs: (F + 1,) pair index by the number of thresholds passed; -1 for none.
        image_pair: Pair index of the image bucket, or -1.
        keep_prob: (P,) by pair index.
        first_bucket: (P,) index of a pair's first triple, by pair index.
        aspects: The resolution's aspect keys.
    """

    min_pixels: float
    thresholds: NDArray[np.uint64]
    pairs: Int64
    image_pair: int
    keep_prob: NDArray[np.float64]
    first_bucket: Int64
    aspects: _Aspects


def _offers(table: BucketTable) -> list[_Offer]:
    sizes = {resolution.name: resolution.sizes for resolution in table.resolutions}
    index_of = {pair: index for index, pair in enumerate(table.pairs)}
    keep_prob = np.array([table.buckets[name][num_frames][0] for name, num_frames in table.pairs])
    first_bucket = np.cumsum([0, *(len(sizes[name]) for name, _ in table.pairs)])[:-1]
    offers = []
    for resolution in table.resolutions:
        videos = sorted(f for f in table.buckets[resolution.name] if f != 1)
        offers.append(
            _Offer(
                min_pixels=MIN_PIXEL_SHARE * resolution.num_pixels,
                thresholds=np.array([f * table.frame_interval for f in videos], dtype=np.uint64),
                pairs=np.array([-1, *(index_of[resolution.name, f] for f in videos)], dtype=np.int64),
                image_pair=index_of.get((resolution.name, 1), -1),
                keep_prob=keep_prob,
                first_bucket=first_bucket,
                aspects=_Aspects([float(aspect) for aspect in resolution.sizes]),
            )
        )
    return offers


class _Chunk(NamedTuple):
    """Some rows of the clips, (n,) each."""

    num_frames: NDArray[np.uint64]
    height: NDArray[np.uint64]
    width: NDArray[np.uint64]
    seeds: NDArray[np.uint64]


def _choose_chunk(offers: list[_Offer], clips: _Chunk, uniform: UniformDraws, index: NDArray[np.int32]) -> None:
    """Writes the chosen triples into `index` (n,), which comes in as -1."""
    num_pixels = clips.height.astype(np.float64) * clips.width
    open_rows = np.arange(len(index))
    for offer in offers:
        rows = open_rows[num_pixels[open_rows] >= offer.min_pixels]
        frames = clips.num_frames[rows]
        pair = offer.pairs[np.searchsorted(offer.thresholds, frames, side="left")]
        pair[frames == 1] = offer.image_pair
        rows, pair = rows[pair >= 0], pair[pair >= 0]
        kept = _keep(offer.keep_prob[pair], clips.seeds[rows], pair, uniform)
        rows, pair = rows[kept], pair[kept]
        index[rows] = offer.first_bucket[pair] + offer.aspects.nearest(clips.height[rows] / clips.width[rows])
        open_rows = open_rows[index[open_rows] < 0]


def _keep(
    keep_prob: NDArray[np.float64], seeds: NDArray[np.uint64], pair: Int64, uniform: UniformDraws
) -> NDArray[np.bool_]:
    """(n,) whether each row's coin keeps it; certain outcomes toss no coin."""
    kept = keep_prob >= 1.0
    uncertain = np.flatnonzero((keep_prob > 0.0) & ~kept)
    coins = uniform(seeds[uncertain] + pair[uncertain].astype(np.uint64))
    kept[uncertain] = coins < keep_prob[uncertain]
    return kept


def describe_buckets(table: BucketTable) -> str:
    """The pairs that can hold clips, for messages: "480p x 16 frames, 144p x 1 frame"."""
    return ", ".join(
        f"{name} x {num_frames} {'frame' if num_frames == 1 else 'frames'}"
        for name, num_frames in table.pairs
        if table.buckets[name][num_frames][0] > 0.0
    )
