"""The plan of a training stage as data: which clips, at which size, in which batch, in which order.

A plan is a pure function of (clips, bucket table, seed); ranks only decide who takes which batch (rank r of R takes
batch i * R + r at step i), so a plan for more ranks begins with the plan for fewer. Unlike Open-Sora 1.1's sampler no
bucket loses its remainder: every clip that the table takes in an epoch is in exactly one batch of it, and the last
batch of a bucket may be smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components import tables
from components.errors import KinoflowError
from model.buckets import BucketTable, choose_buckets, describe_buckets
from model.pcg64 import first_uniform

IMAGE_FPS = 120.0
"""Frame rate told to the network for still images (Open-Sora 1.1)."""

DEFAULT_FPS = 24.0
"""Frame rate of videos whose container names none (Open-Sora 1.1)."""

MAX_EMPTY_EPOCHS = 1000
_SEED_BITS = 61
"""Bits of a clip's seed; the bits above separate its streams of draws, and leave room for offsets within one."""
_COIN_STREAM, _CROP_STREAM, _PLACE_STREAM = (stream << (_SEED_BITS + 1) for stream in range(3))

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """The columns of kept clips that planning needs.

    Attributes:
        table: One row per clip with clip_id, num_frames, fps and text_key.
        sizes: (num_frames, height, width) of every clip, three arrays (N,).
        seeds: (N,) uint64, a pure function of (seed, clip id): what happens to a clip does not depend on the others.
    """

    table: pl.DataFrame
    sizes: tuple[Int64, Int64, Int64]
    seeds: NDArray[np.uint64]

    @classmethod
    def of(cls, table: pl.DataFrame, seed: int) -> Clips:
        """Clips of a table with the columns of `tables.CLIPS`, ordered by clip id."""
        table = table.sort("clip_id")
        num_frames, height, width = (
            table[name].to_numpy().astype(np.int64) for name in ("num_frames", "height", "width")
        )
        captions = [text_key(caption or "") for caption in table["caption"]]
        seeds = np.array([_hash(f"{seed}/{clip_id}") for clip_id in table["clip_id"]], dtype=np.uint64)
        columns = table.select("clip_id", "num_frames", "fps").with_columns(
            text_key=pl.Series(captions, dtype=pl.String)
        )
        return cls(columns, (num_frames, height, width), seeds)


@dataclass(frozen=True)
class _Samples:
    """Planned samples, all arrays (n,): clip and triple by position, place in the plan, window and epoch."""

    row: Int64
    triple: Int64
    batch: Int64
    slot: Int64
    start_frame: Int64
    epoch: Int64


def plan_training(
    clips: Clips, table: BucketTable, *, stage: str, seed: int, num_batches: int, crops_per_clip: int | None
) -> pl.DataFrame:
    """Batches of whole epochs until there are `num_batches`; the last epoch is cut there.

    Args:
        clips: Training clips.
        table: Buckets of the stage.
        stage: Its name, for messages.
        seed: Of the choice of buckets and of every shuffle.
        num_batches: Steps * ranks.
        crops_per_clip: Distinct temporal crops a clip may have at one length; no limit when None.

    Returns:
        Rows of `tables.PLAN` sorted by (batch, slot).

    Raises:
        KinoflowError: No clip fits any bucket, or no batch is asked for.
    """
    if num_batches < 1:
        raise KinoflowError(f"Stage {stage!r} plans no batch; give it at least one step and one rank.")
    _check_some_fit(clips, table, stage)
    epochs: list[_Samples] = []
    planned, epoch, empty_epochs = 0, 0, 0
    while planned < num_batches:
        samples = _plan_epoch(clips, table, seed=seed, epoch=epoch, crops_per_clip=crops_per_clip)
        epochs.append(replace(samples, batch=samples.batch + planned))
        planned += int(samples.batch[-1]) + 1 if len(samples.batch) else 0
        empty_epochs = 0 if len(samples.batch) else empty_epochs + 1
        if empty_epochs == MAX_EMPTY_EPOCHS:
            raise KinoflowError(
                f"Stage {stage!r}: no clip was kept in {MAX_EMPTY_EPOCHS} epochs in a row; "
                "raise the keep probabilities of its buckets."
            )
        epoch += 1
    joined = {field.name: np.concatenate([getattr(part, field.name) for part in epochs]) for field in fields(_Samples)}
    return _rows(clips, table, _Samples(**joined)).filter(pl.col("batch") < num_batches)


def plan_evaluation(clips: Clips, table: BucketTable, *, batches_per_bucket: int) -> pl.DataFrame:
    """Held-out batches for every bucket that a held-out clip fits, coins aside, each clip's middle as its crop.

    A clip is offered to every resolution of the table on its own, so that each has a held-out loss however small its
    keep probability is.

    Args:
        clips: Held-out clips.
        table: Buckets of the stage.
        batches_per_bucket: At most this many full batches of one bucket.

    Returns:
        Rows of `tables.PLAN` sorted by (batch, slot); empty when no clip fits.
    """
    triple_of = {triple[:3]: index for index, triple in enumerate(table.triples)}
    rows: list[Int64] = []
    triples: list[Int64] = []
    for resolution in (r for r in table.resolutions if table.buckets[r.name]):
        alone = _certain(table, {resolution.name})
        choice = choose_buckets(alone, *clips.sizes, np.zeros(len(clips.seeds), dtype=np.int64))
        chosen = np.flatnonzero(choice.chosen)
        index = np.array([triple_of[triple[:3]] for triple in alone.triples], dtype=np.int64)
        rows.append(chosen)
        triples.append(index[choice.index[chosen]])
    row, triple = np.concatenate(rows), np.concatenate(triples)
    order = np.argsort(triple, kind="stable")
    row, triple = row[order], triple[order]
    position = _position_in_group(triple)
    within = position < _batch_sizes(table)[triple] * batches_per_bucket
    row, triple, position = row[within], triple[within], position[within]
    batch, slot = _batches(table, triple, position)
    span = _possible_starts(clips, table, row, triple)
    return _rows(clips, table, _Samples(row, triple, batch, slot, span // 2, np.zeros_like(row)))


def _plan_epoch(clips: Clips, table: BucketTable, *, seed: int, epoch: int, crops_per_clip: int | None) -> _Samples:
    coins = clips.seeds + np.uint64(_COIN_STREAM + epoch * len(table.pairs))
    choice = choose_buckets(table, *clips.sizes, coins)
    generator = np.random.default_rng(_hash(f"{seed}/epoch {epoch}"))
    row = generator.permutation(np.flatnonzero(choice.chosen))
    row = row[np.argsort(choice.index[row], kind="stable")]
    triple = choice.index[row].astype(np.int64)
    batch, slot = _batches(table, triple, _position_in_group(triple))
    batch = generator.permutation(int(batch[-1]) + 1 if len(batch) else 0)[batch]
    order = np.lexsort((slot, batch))
    row, triple, batch, slot = row[order], triple[order], batch[order], slot[order]
    span = _possible_starts(clips, table, row, triple)
    start_frame = _crop_starts(clips.seeds[row], span, epoch, crops_per_clip)
    return _Samples(row, triple, batch, slot, start_frame, np.full_like(row, epoch))


def _crop_starts(seeds: NDArray[np.uint64], span: Int64, epoch: int, crops_per_clip: int | None) -> Int64:
    """First frame of each window: one of the clip's crops, drawn anew every epoch.

    The crops of a clip lie in equal parts of its possible starts, one at a random place in each part.

    Args:
        seeds: (n,) of the clips.
        span: (n,) number of possible starts, at least 1.
        epoch: From 0.
        crops_per_clip: Parts; with None every start is possible in every epoch.
    """
    draw = first_uniform(seeds + np.uint64(_CROP_STREAM + epoch))
    if crops_per_clip is None:
        return (draw * span).astype(np.int64)
    part = np.floor(draw * crops_per_clip)
    place = first_uniform(seeds + np.uint64(_PLACE_STREAM) + part.astype(np.uint64))
    return np.minimum(((part + place) / crops_per_clip * span).astype(np.int64), span - 1)


def _possible_starts(clips: Clips, table: BucketTable, row: Int64, triple: Int64) -> Int64:
    """(n,) number of possible first frames of the window that each clip's bucket needs; 1 for images.

    Open-Sora 1.1 draws from 0 .. num_frames - window - 1, so the very last start is not used.
    """
    window = np.array([b.num_frames * table.frame_interval for b in table.triples], dtype=np.int64)[triple]
    starts: Int64 = np.maximum(clips.sizes[0][row] - window, 1)
    return starts


def _batch_sizes(table: BucketTable) -> Int64:
    return np.array([triple.batch_size or 1 for triple in table.triples], dtype=np.int64)


def _position_in_group(groups: Int64) -> Int64:
    """(n,) 0, 1, 2, ... within each run of equal values."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    position: Int64 = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return position


def _batches(table: BucketTable, triple: Int64, position: Int64) -> tuple[Int64, Int64]:
    """(batch, slot) of samples that are grouped by bucket; batches are numbered in that order."""
    batch_size = _batch_sizes(table)[triple]
    slot = position % batch_size
    return np.cumsum(slot == 0) - 1, slot


def _rows(clips: Clips, table: BucketTable, samples: _Samples) -> pl.DataFrame:
    """Rows of `tables.PLAN`, in the order of the samples."""
    buckets = pl.DataFrame(
        [b[:5] for b in table.triples], schema=["resolution", "num_frames", "aspect", "height", "width"], orient="row"
    )
    own_fps = pl.col("fps").fill_nan(None).fill_null(DEFAULT_FPS)
    sources = clips.table.select(
        "clip_id",
        pl.when(pl.col("num_frames") == 1).then(IMAGE_FPS).otherwise(own_fps).alias("fps"),
        "text_key",
    )
    columns = {name: getattr(samples, name) for name in ("batch", "slot", "epoch", "start_frame")}
    parts = [pl.DataFrame(columns), sources[samples.row], buckets[samples.triple]]
    joined = pl.concat(parts, how="horizontal").with_columns(_latent_key(table.frame_interval))
    return joined.select(pl.col(name).cast(kind) for name, kind in tables.PLAN.items())


def _latent_key(frame_interval: int) -> pl.Expr:
    """Everything that shapes a latent: equal keys, equal latents, over stages and epochs alike."""
    interval = pl.when(pl.col("num_frames") == 1).then(1).otherwise(frame_interval)
    place = "{}@{}+{}/{}x{}x{}"
    return pl.format(
        place, "clip_id", "start_frame", pl.col("num_frames") * interval, "num_frames", "height", "width"
    ).alias("latent_key")


def text_key(caption: str) -> str:
    """Key of a caption's features: clips with the same words share them."""
    return f"text:{hashlib.sha256(caption.encode()).hexdigest()[:32]}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> (64 - _SEED_BITS)


def _certain(table: BucketTable, resolutions: Collection[str]) -> BucketTable:
    """These resolutions of the table, with every keep probability above 0 raised to 1."""
    buckets = {
        name: {f: (1.0 if keep_prob > 0.0 else 0.0, batch_size) for f, (keep_prob, batch_size) in rows.items()}
        for name, rows in table.buckets.items()
        if name in resolutions
    }
    return BucketTable(
        buckets=buckets, frame_interval=table.frame_interval, custom_resolutions=table.custom_resolutions
    )


def _check_some_fit(clips: Clips, table: BucketTable, stage: str) -> None:
    choice = choose_buckets(_certain(table, table.buckets), *clips.sizes, np.zeros(len(clips.seeds), dtype=np.int64))
    if choice.chosen.any():
        return
    num_frames, height, width = clips.sizes
    largest, longest = int(np.argmax(height * width)), int(np.argmax(num_frames))
    raise KinoflowError(
        f"Stage {stage!r}: none of the {len(num_frames)} training clips fits a bucket ({describe_buckets(table)}). "
        f"The largest clip is {height[largest]}x{width[largest]} with {num_frames[largest]} frames, the longest has "
        f"{num_frames[longest]}; a bucket of f frames needs more than f x {table.frame_interval} frames and "
        "80 % of its resolution's pixels."
    )
