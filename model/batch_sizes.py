"""Chooses the batch size of every bucket: steps that take equally long, in the memory there is. Needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.buckets import Bucket, BucketTable
from model.cost import GIB, RESERVED_SHARE, CostModel, Pair, pair_of

MAX_BATCH_SIZE = 4096
MOST_WORK = 4.0
"""How many times the arithmetic of the largest listed batch there may be in one where neither memory nor a step time is
given: short noisy probes can make a sample look free."""
SEARCHED_SHARE = 0.85
"""How far the common step time may leave the wanted one (by this factor either way) for a better balance."""
SEARCH_POINTS = 160
DISTANCE_WEIGHT = 0.05
"""How much balance (max/mean) is given up to come nearer to the wanted step time, per unit of its logarithm."""
SHARED_WITHIN = 1.05
"""How far (by this factor) a step may miss the common time for the batch size that other aspects have."""
LONGEST_SHARE = 1.1
"""Pixels over those of the squarest aspect from which the longest one is probed as well."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Batch sizes and what they were chosen for.

    Attributes:
        batch_sizes: for every bucket that keeps clips.
        step_s: the common step time aimed at.
        imbalance: predicted longest over mean step time, over all buckets.
        bound_by_memory: buckets whose step is shorter than aimed at because no more fits.
    """

    batch_sizes: Mapping[Bucket, int]
    step_s: float
    imbalance: float
    bound_by_memory: tuple[Bucket, ...]


def kept_buckets(table: BucketTable) -> dict[Pair, list[Bucket]]:
    """The buckets that can hold clips, all aspects of a (resolution, num_frames) together."""
    groups: dict[Pair, list[Bucket]] = {}
    for bucket in table.triples:
        if bucket.keep_prob > 0:
            groups.setdefault(pair_of(bucket), []).append(bucket)
    return groups


def squarest(buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose sides differ least; the first of several."""
    return min(buckets, key=lambda b: max(b.height, b.width) / min(b.height, b.width))


def outermost(buckets: Sequence[Bucket]) -> list[Bucket]:
    """Of all aspects the squarest, and the one with the most pixels where those are a tenth more."""
    square, most = squarest(buckets), max(buckets, key=lambda b: b.height * b.width)
    is_longer = most.height * most.width > LONGEST_SHARE * square.height * square.width
    return [square, most] if is_longer else [square]


def listed_sizes(table: BucketTable) -> dict[Bucket, int]:
    """The table's own batch sizes, of every bucket that can hold clips."""
    return {bucket: bucket.batch_size or 1 for group in kept_buckets(table).values() for bucket in group}


def table_entries(
    batch_sizes: Mapping[Bucket, int],
) -> tuple[dict[Pair, int], dict[str, dict[int, dict[str, int]]]]:
    """Batch sizes as a `BucketTable` lists them.

    Returns:
        The most frequent size among the aspects of each (resolution, num_frames), and the exceptions from it.
    """
    groups: dict[Pair, dict[str, int]] = {}
    for bucket, size in batch_sizes.items():
        groups.setdefault(pair_of(bucket), {})[bucket.aspect] = size
    shared = {pair: statistics.mode(of_aspects.values()) for pair, of_aspects in groups.items()}
    exceptions: dict[str, dict[int, dict[str, int]]] = {}
    for (resolution, num_frames), of_aspects in groups.items():
        own = {aspect: size for aspect, size in of_aspects.items() if size != shared[resolution, num_frames]}
        if own:
            exceptions.setdefault(resolution, {})[num_frames] = own
    return shared, exceptions


def step_seconds(model: CostModel, batch_sizes: Mapping[Bucket, int]) -> dict[Bucket, float]:
    """Predicted step time of every bucket."""
    return {bucket: model.seconds(bucket, size) for bucket, size in batch_sizes.items()}


def max_over_mean(seconds: Collection[float]) -> float:
    """The imbalance of step times: how many times the mean the longest takes."""
    return max(seconds) * len(seconds) / sum(seconds)


def choose_batch_sizes(
    model: CostModel, table: BucketTable, *, memory_bytes: int | None = None, step_s: float | None = None
) -> Choice:
    """Batch sizes with equal step times.

    The step time aimed at is `step_s`; else what fills the memory; else, without a limit, the mean of the listed
    batch sizes. It is moved by up to 15 % where whole samples then balance better. The aspects of a (resolution,
    num_frames) share a batch size where that changes little, so that tables stay short.

    Args:
        model: predicts time and memory.
        table: buckets of the stage.
        memory_bytes: of the device, of which `RESERVED_SHARE` is left alone.
        step_s: wanted seconds of a step.

    Raises:
        ValueError: a bucket does not fit even with one sample, with the numbers.
    """
    listed = listed_sizes(table)
    buckets = list(listed)
    fitting = np.array(_largest_sizes(model, buckets, memory_bytes))
    most = fitting
    if step_s is None and memory_bytes is None:
        flops = np.array([float(model.workload.flops(bucket)) for bucket in buckets])
        most_flops = MOST_WORK * (flops * list(listed.values())).max()
        most = np.minimum(fitting, np.floor(most_flops / flops).astype(np.int64))
    fixed = np.array([model.seconds(bucket, 0) for bucket in buckets])
    sample = np.array([model.seconds(bucket, 1) for bucket in buckets]) - fixed
    shortest, longest = float((fixed + sample).max()), float((fixed + most * sample).min())
    if step_s is not None:
        wanted = step_s
    elif memory_bytes is not None:
        wanted = longest
    else:
        wanted = statistics.fmean(step_seconds(model, listed).values())
    wanted = max(min(wanted, longest), shortest)
    shares = SEARCHED_SHARE ** (np.arange(-SEARCH_POINTS, SEARCH_POINTS + 1) / SEARCH_POINTS)
    targets = wanted * shares[:, None]
    sizes = _nearest_sizes(targets, fixed, sample, most)
    for group in _positions_by_pair(buckets):
        shared = np.minimum(np.sort(sizes[:, group])[:, (len(group) - 1) // 2, None], most[group])
        missed = np.abs(np.log((fixed[group] + shared * sample[group]) / targets))
        sizes[:, group] = np.where(missed < math.log(SHARED_WITHIN), shared, sizes[:, group])
    seconds = fixed + sizes * sample
    unequal = seconds.max(axis=1) / seconds.mean(axis=1)
    best = int(np.argmin(unequal + DISTANCE_WEIGHT * np.abs(np.log(shares))))
    target = wanted * float(shares[best])
    bound = (sizes[best] == fitting) & (fitting < MAX_BATCH_SIZE) & (seconds[best] + sample <= target)
    return Choice(
        dict(zip(buckets, sizes[best].tolist(), strict=True)),
        target,
        float(unequal[best]),
        tuple(bucket for bucket, is_bound in zip(buckets, bound, strict=True) if is_bound),
    )


def _positions_by_pair(buckets: Sequence[Bucket]) -> list[list[int]]:
    positions: dict[Pair, list[int]] = {}
    for i, bucket in enumerate(buckets):
        positions.setdefault(pair_of(bucket), []).append(i)
    return list(positions.values())


def _nearest_sizes(target: Float64, fixed: Float64, sample: Float64, most: NDArray[np.int64]) -> NDArray[np.int64]:
    """The batch sizes whose step times are nearest to each target, in ratio.

    Args:
        target: (targets, 1) seconds.
        fixed: (buckets,) seconds of a step, however many samples.
        sample: (buckets,) seconds of one more sample.
        most: (buckets,) samples that fit.

    Returns:
        (targets, buckets).
    """
    exact = np.full(np.broadcast_shapes(target.shape, fixed.shape), float(MAX_BATCH_SIZE))
    np.divide(target - fixed, sample, out=exact, where=sample > 0)
    fewer = np.clip(np.floor(exact), 1, most).astype(np.int64)
    more = np.minimum(fewer + 1, most)
    too_short, too_long = (np.abs(np.log((fixed + sizes * sample) / target)) for sizes in (fewer, more))
    nearest: NDArray[np.int64] = np.where(too_long < too_short, more, fewer)
    return nearest


def _largest_sizes(model: CostModel, buckets: Sequence[Bucket], memory_bytes: int | None) -> list[int]:
    """The most samples of each bucket that fit."""
    if memory_bytes is None and not model.too_large:
        return [MAX_BATCH_SIZE] * len(buckets)
    limit = math.inf if memory_bytes is None else memory_bytes * (1 - RESERVED_SHARE)
    largest = []
    for bucket in buckets:
        low, high = 0, MAX_BATCH_SIZE
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if model.peak_bytes(bucket, middle) <= limit else (low, middle - 1)
        largest.append(low)
    if 0 in largest:
        too_large = [bucket for bucket, size in zip(buckets, largest, strict=True) if size == 0]
        raise ValueError(_refusal(model, too_large, len(buckets), limit))
    return largest


def _refusal(model: CostModel, too_large: Sequence[Bucket], num_buckets: int, limit_bytes: float) -> str:
    """Why there is no batch size, with the largest aspect of every (resolution, num_frames)."""
    faults = []
    for positions in _positions_by_pair(too_large):
        bucket = max((too_large[i] for i in positions), key=model.workload.activation_bytes)
        needed = model.peak_bytes(bucket, 1)
        amount = f"{needed / GIB:.1f} GiB" if math.isfinite(needed) else "more than the device has"
        frames = "1 frame" if bucket.num_frames == 1 else f"{bucket.num_frames} frames"
        size = f"{bucket.height}x{bucket.width}, {model.workload.tokens(bucket)} tokens"
        faults.append(f"{bucket.resolution} x {frames} ({size}): {amount}")
    there = f"{limit_bytes / GIB:.1f} GiB can be used" if math.isfinite(limit_bytes) else "the device"
    return (
        f"{len(too_large)} of {num_buckets} buckets do not fit with a single sample ({there}): {'; '.join(faults)}; "
        "use activation checkpointing, shard over more GPUs, or leave them out"
    )
