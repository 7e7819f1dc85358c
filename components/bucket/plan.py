"""The plan of a training stage as data: which clips, at which size, in which batch, in which order.

A plan is a pure function of (clips, bucket table, seed, group size) and a place in it is one integer, the number of
batches consumed; ranks only decide who takes which batch (rank r of R takes batch i * R + r at step i), so a plan for
more ranks begins with the plan for fewer. Unlike Open-Sora 1.1's sampler no bucket loses its remainder: every clip that
the table takes in an epoch is in exactly one batch of it, and the last batch of a bucket may be smaller.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from components.bucket.order import Batches, arrange
from components.errors import KinoflowError
from components.kept_clips import SEED_BITS, Clips, hash_text
from components.plan_file import PlanFile, Shape
from model.buckets import BucketTable, UniformDraws, choose_buckets, describe_buckets
from model.geometry import num_tokens

MAX_EMPTY_EPOCHS = 1000
_CHUNK_ROWS = 1 << 16
"""Rows handled at once: their intermediate arrays stay in the processor's cache."""
_COIN_STREAM, _CROP_STREAM, _PLACE_STREAM = (stream << (SEED_BITS + 1) for stream in range(3))

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


def plan_training(
    clips: Clips,
    table: BucketTable,
    *,
    stage: str,
    seed: int,
    num_batches: int,
    crops_per_clip: int | None,
    cost_group: int = 1,
) -> PlanFile:
    """Batches of whole epochs until there are `num_batches`; the last epoch is cut there.

    Args:
        clips: Training clips.
        table: Buckets of the stage.
        stage: Its name, for messages.
        seed: Of the choice of buckets and of every shuffle.
        num_batches: Steps * batches of a step.
        crops_per_clip: Distinct temporal crops a clip may have at one length; no limit when None.
        cost_group: Batches of equal cost after one another. Those of an epoch that fill no group, fewer than this
            many, come first in the next epoch.

    Raises:
        KinoflowError: No clip fits any bucket, or no batch is asked for.
    """
    if num_batches < 1:
        raise KinoflowError(f"Stage {stage!r} plans no batch; give it at least one step and one rank.")
    costs = np.array([num_tokens(b.num_frames, b.height, b.width) for b in table.triples], dtype=np.int64)
    parts: list[Batches] = []
    waiting = Batches.none()
    planned, epoch, empty_epochs = 0, 0, 0
    while planned < num_batches:
        generator = np.random.default_rng(hash_text(f"{seed}/epoch {epoch}"))
        new = _plan_epoch(clips, table, generator, epoch=epoch, crops_per_clip=crops_per_clip)
        part, waiting = arrange(waiting, new, costs, cost_group, generator)
        parts.append(part)
        planned += len(part)
        empty_epochs = 0 if len(new) else empty_epochs + 1
        if empty_epochs == 1:
            _check_some_fit(clips, table, stage)
        if empty_epochs == MAX_EMPTY_EPOCHS:
            raise KinoflowError(
                f"Stage {stage!r}: no clip was kept in {MAX_EMPTY_EPOCHS} epochs in a row; "
                "raise the keep probabilities of its buckets."
            )
        epoch += 1
    excess = planned - num_batches
    parts[-1] = parts[-1].take(np.arange(len(parts[-1]) - excess)) if excess else parts[-1]
    return _plan(clips, table, Batches.joined(parts))


def plan_evaluation(clips: Clips, table: BucketTable, *, batches_per_bucket: int) -> PlanFile:
    """Held-out batches for every bucket that a held-out clip fits, coins aside, each clip's middle as its crop.

    A clip is offered to every resolution of the table on its own, so that each has a held-out loss however small its
    keep probability is.

    Args:
        clips: Held-out clips.
        table: Buckets of the stage.
        batches_per_bucket: At most this many full batches of one bucket.

    Returns:
        Batches by bucket; none when no clip fits.
    """
    triple_of = {triple[:3]: index for index, triple in enumerate(table.triples)}
    rows: list[Int64] = []
    triples: list[Int64] = []
    for resolution in (r for r in table.resolutions if table.buckets[r.name]):
        alone = _certain(table, {resolution.name})
        choice = choose_buckets(alone, *clips.sizes, np.zeros(len(clips), dtype=np.int64))
        chosen = np.flatnonzero(choice.chosen)
        index = np.array([triple_of[triple[:3]] for triple in alone.triples], dtype=np.int64)
        rows.append(chosen)
        triples.append(index[choice.index[chosen]])
    row, triple = np.concatenate(rows), np.concatenate(triples)
    order = np.argsort(triple, kind="stable")
    row, triple = row[order], triple[order]
    within = _position_in_group(triple) < _batch_sizes(table)[triple] * batches_per_bucket
    held_out, bucket = row[within].astype(np.int32), triple[within].astype(np.int32)
    middle = _possible_starts(clips, table, held_out, bucket) // 2
    return _plan(clips, table, _cut(table, held_out, bucket, middle, epoch=0))


def _plan_epoch(
    clips: Clips, table: BucketTable, generator: np.random.Generator, *, epoch: int, crops_per_clip: int | None
) -> Batches:
    """Every clip that the table takes in this epoch, bucket after bucket, shuffled within each."""
    coins = clips.seeds + np.uint64(_COIN_STREAM + epoch * len(table.pairs))
    index = choose_buckets(table, *clips.sizes, coins, uniform=clips.uniform).index
    del coins
    row = generator.permutation(np.flatnonzero(index >= 0).astype(np.int32))
    narrow = np.int16 if len(table.triples) < 1 << 15 else np.int32  # 16 bits are sorted by radix
    row = row[np.argsort(index[row].astype(narrow), kind="stable")]
    triple = index[row]
    del index
    span = _possible_starts(clips, table, row, triple)
    start_frame = _crop_starts(clips.seeds[row], span, epoch, crops_per_clip, clips.uniform)
    return _cut(table, row, triple, start_frame, epoch=epoch)


def _crop_starts(
    seeds: NDArray[np.uint64], span: Int32, epoch: int, crops_per_clip: int | None, uniform: UniformDraws
) -> Int32:
    """First frame of each window: one of the clip's crops, drawn anew every epoch.

    The crops of a clip lie in equal parts of its possible starts, one at a random place in each part.

    Args:
        seeds: (n,) of the clips.
        span: (n,) number of possible starts, at least 1.
        epoch: From 0.
        crops_per_clip: Parts; with None every start is possible in every epoch.
        uniform: Draws from seeds.
    """
    starts = np.zeros(len(span), dtype=np.int32)
    free = np.flatnonzero(span > 1)
    for first in range(0, len(free), _CHUNK_ROWS):
        rows = free[first : first + _CHUNK_ROWS]
        draw = uniform(seeds[rows] + np.uint64(_CROP_STREAM + epoch))
        if crops_per_clip is not None:
            part = np.floor(draw * crops_per_clip)
            place = uniform(seeds[rows] + np.uint64(_PLACE_STREAM) + part.astype(np.uint64))
            draw = (part + place) / crops_per_clip
        starts[rows] = np.minimum((draw * span[rows]).astype(np.int32), span[rows] - 1)
    return starts


def _possible_starts(clips: Clips, table: BucketTable, row: Int32, triple: Int32) -> Int32:
    """(n,) number of possible first frames of the window that each clip's bucket needs; 1 for images.

    Open-Sora 1.1 draws from 0 .. num_frames - window - 1, so the very last start is not used.
    """
    window = np.array([b.num_frames * table.frame_interval for b in table.triples], dtype=np.int32)[triple]
    starts: Int32 = np.maximum(clips.sizes[0][row] - window, 1)
    return starts


def _batch_sizes(table: BucketTable) -> Int64:
    return np.array([triple.batch_size or 1 for triple in table.triples], dtype=np.int64)


def _position_in_group(groups: NDArray[np.integer]) -> Int64:
    """(n,) 0, 1, 2, ... within each run of equal values."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    position: Int64 = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return position


def _cut(table: BucketTable, row: Int32, triple: Int32, start_frame: Int32, *, epoch: int) -> Batches:
    """Batches of samples that come bucket after bucket; the last batch of a bucket may be smaller."""
    batch_sizes = _batch_sizes(table)
    counts = np.bincount(triple, minlength=len(batch_sizes))
    num_batches = -(-counts // batch_sizes)
    bucket = np.repeat(np.arange(len(counts), dtype=np.int32), num_batches)
    sizes = batch_sizes[bucket]
    last = np.cumsum(num_batches)[num_batches > 0] - 1
    sizes[last] -= (num_batches * batch_sizes - counts)[num_batches > 0]
    return Batches(
        bucket=bucket,
        sizes=sizes,
        epoch=np.full(len(bucket), epoch, dtype=np.int32),
        is_full=sizes == batch_sizes[bucket],
        clip=row,
        start_frame=start_frame,
    )


def _plan(clips: Clips, table: BucketTable, batches: Batches) -> PlanFile:
    return PlanFile.build(
        [Shape(*triple[:5]) for triple in table.triples],
        clips.told,
        frame_interval=table.frame_interval,
        sizes=batches.sizes,
        bucket=batches.bucket,
        epoch=batches.epoch,
        clip=batches.clip,
        start_frame=batches.start_frame,
    )


def _certain(table: BucketTable, resolutions: Collection[str]) -> BucketTable:
    """These resolutions of the table, with every keep probability above 0 raised to 1."""
    buckets = {
        name: {f: (1.0 if keep_prob > 0.0 else 0.0, batch_size) for f, (keep_prob, batch_size) in rows.items()}
        for name, rows in table.buckets.items()
        if name in resolutions
    }
    return BucketTable(
        buckets=buckets,
        frame_interval=table.frame_interval,
        custom_resolutions=table.custom_resolutions,
        batch_sizes={name: own for name, own in table.batch_sizes.items() if name in resolutions},
    )


def _check_some_fit(clips: Clips, table: BucketTable, stage: str) -> None:
    choice = choose_buckets(_certain(table, table.buckets), *clips.sizes, np.zeros(len(clips), dtype=np.int64))
    if choice.chosen.any():
        return
    num_frames, height, width = clips.sizes
    largest, longest = int(np.argmax(height.astype(np.int64) * width)), int(np.argmax(num_frames))
    raise KinoflowError(
        f"Stage {stage!r}: none of the {len(num_frames)} training clips fits a bucket ({describe_buckets(table)}). "
        f"The largest clip is {height[largest]}x{width[largest]} with {num_frames[largest]} frames, the longest has "
        f"{num_frames[longest]}; a bucket of f frames needs more than f x {table.frame_interval} frames and "
        "80 % of its resolution's pixels."
    )
