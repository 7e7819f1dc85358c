"""Chooses the batch size of every bucket: steps that take equally long, in the memory there is. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from model.buckets import Bucket, BucketTable
from model.cost import GIB, RESERVED_SHARE, CostModel, Pair, pair_of

MAX_BATCH_SIZE = 4096
SEARCHED_SHARE = 0.85
"""How far the common step time may leave the wanted one (by this factor either way) for a better balance."""
SEARCH_POINTS = 160
DISTANCE_WEIGHT = 0.05
"""How much balance (max/mean) is given up to come nearer to the wanted step time, per unit of its logarithm."""


@dataclass(frozen=True)
class Choice:
    """Batch sizes and what they were chosen for.

    Attributes:
        batch_sizes: for every (resolution, num_frames) that keeps clips.
        step_s: the common step time aimed at.
        imbalance: predicted longest over mean step time, every aspect counted.
        bound_by_memory: pairs whose step is shorter than aimed at because no more fits.
    """

    batch_sizes: Mapping[Pair, int]
    step_s: float
    imbalance: float
    bound_by_memory: tuple[Pair, ...]


def kept_buckets(table: BucketTable) -> dict[Pair, list[Bucket]]:
    """The buckets that can hold clips, all aspects of a (resolution, num_frames) together."""
    groups: dict[Pair, list[Bucket]] = {}
    for bucket in table.triples:
        if bucket.keep_prob > 0:
            groups.setdefault(pair_of(bucket), []).append(bucket)
    return groups


def squarest(buckets: list[Bucket]) -> Bucket:
    """The bucket whose sides differ least; the first of several."""
    return min(buckets, key=lambda b: max(b.height, b.width) / min(b.height, b.width))


def listed_sizes(table: BucketTable) -> dict[Pair, int]:
    """The batch sizes in the table."""
    return {pair: buckets[0].batch_size or 1 for pair, buckets in kept_buckets(table).items()}


def step_seconds(model: CostModel, table: BucketTable, batch_sizes: Mapping[Pair, int]) -> dict[Bucket, float]:
    """Predicted step time of every bucket that can hold clips."""
    groups = kept_buckets(table)
    return {bucket: model.seconds(bucket, batch_sizes[pair]) for pair, group in groups.items() for bucket in group}


def max_over_mean(seconds: Collection[float]) -> float:
    """The imbalance of step times: how many times the mean the longest takes."""
    return max(seconds) * len(seconds) / sum(seconds)


def choose_batch_sizes(
    model: CostModel, table: BucketTable, *, memory_bytes: int | None = None, step_s: float | None = None
) -> Choice:
    """Batch sizes with equal step times.

    The step time aimed at is `step_s`; else what fills the memory; else, without a limit, the mean of the listed
    batch sizes. It is moved by up to 15 % where whole samples then balance better.

    Args:
        model: predicts time and memory.
        table: buckets of the stage.
        memory_bytes: of the device, of which `RESERVED_SHARE` is left alone.
        step_s: wanted seconds of a step.

    Raises:
        ValueError: a bucket does not fit even with one sample, with the numbers.
    """
    groups = kept_buckets(table)
    most = _largest_sizes(model, groups, memory_bytes)
    steps = {pair: _PairSteps.of(model, buckets, most[pair]) for pair, buckets in groups.items()}
    shortest = max(step.mean(1) for step in steps.values())
    longest = min(step.mean(step.most) for step in steps.values())
    if step_s is not None:
        wanted = step_s
    elif memory_bytes is not None:
        wanted = longest
    else:
        wanted = sum(steps[pair].mean(size) for pair, size in listed_sizes(table).items()) / len(steps)
    wanted = max(min(wanted, longest), shortest)
    tried = []
    for point in range(-SEARCH_POINTS, SEARCH_POINTS + 1):
        target = wanted * SEARCHED_SHARE ** (point / SEARCH_POINTS)
        sizes = {pair: step.nearest_size(target) for pair, step in steps.items()}
        unequal = max_over_mean([s for pair, step in steps.items() for s in step.seconds(sizes[pair])])
        tried.append((unequal + DISTANCE_WEIGHT * abs(math.log(target / wanted)), target, unequal, sizes))
    _, target, unequal, sizes = min(tried, key=lambda choice: choice[0])
    bound = [pair for pair, step in steps.items() if sizes[pair] == step.most and step.mean(step.most + 1) <= target]
    return Choice(sizes, target, unequal, tuple(bound))


@dataclass(frozen=True)
class _PairSteps:
    """Step times of one (resolution, num_frames).

    Attributes:
        fixed_s: of a step, however many samples.
        sample_s: of one more sample, for each aspect.
        most: samples that fit.
    """

    fixed_s: float
    sample_s: tuple[float, ...]
    most: int

    @classmethod
    def of(cls, model: CostModel, buckets: list[Bucket], most: int) -> _PairSteps:
        fixed = model.seconds(buckets[0], 0)
        return cls(fixed, tuple(model.seconds(bucket, 1) - fixed for bucket in buckets), most)

    def seconds(self, batch_size: int) -> list[float]:
        return [self.fixed_s + batch_size * sample for sample in self.sample_s]

    def mean(self, batch_size: int) -> float:
        return self.fixed_s + batch_size * sum(self.sample_s) / len(self.sample_s)

    def nearest_size(self, target_s: float) -> int:
        """The batch size whose mean step time is nearest to the target, in ratio."""
        one_more = self.mean(1) - self.fixed_s
        fewer = int((target_s - self.fixed_s) / one_more) if one_more > 0 else self.most
        candidates = {min(max(size, 1), self.most) for size in (fewer, fewer + 1)}
        return min(candidates, key=lambda size: abs(math.log(self.mean(size) / target_s)))


def _largest_sizes(model: CostModel, groups: Mapping[Pair, list[Bucket]], memory_bytes: int | None) -> dict[Pair, int]:
    """The most samples of each pair that fit, whatever the aspect."""
    if memory_bytes is None and not model.too_large:
        return dict.fromkeys(groups, MAX_BATCH_SIZE)
    limit = math.inf if memory_bytes is None else memory_bytes * (1 - RESERVED_SHARE)
    largest, faults = {}, []
    for pair, buckets in groups.items():
        widest = max(buckets, key=model.workload.activation_bytes)
        low, high = 0, MAX_BATCH_SIZE
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if model.peak_bytes(widest, middle) <= limit else (low, middle - 1)
        largest[pair] = low
        if low == 0:
            needed = model.peak_bytes(widest, 1)
            amount = f"{needed / GIB:.1f} GiB" if math.isfinite(needed) else "more than the device has"
            tokens = model.workload.tokens(widest)
            frames = "1 frame" if pair[1] == 1 else f"{pair[1]} frames"
            faults.append(f"{pair[0]} x {frames} ({widest.height}x{widest.width}, {tokens} tokens): {amount}")
    if faults:
        there = f"{limit / GIB:.1f} GiB can be used" if math.isfinite(limit) else "the device"
        raise ValueError(
            f"{len(faults)} of {len(groups)} buckets do not fit with a single sample ({there}): {'; '.join(faults)}; "
            "use activation checkpointing, shard over more GPUs, or leave them out"
        )
    return largest
