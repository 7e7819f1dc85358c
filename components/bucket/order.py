"""The order of an epoch's batches: groups of batches of equal cost, shuffled.

Ranks wait for the slowest of them at every step. With `cost_group` batches of equal cost after one another, any number
of ranks that divides it works in step, and the order itself knows nothing of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from components.texts import ranges

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """Batches with their samples.

    Attributes:
        bucket: (batches,) which bucket of the table each is of.
        sizes: (batches,) its samples.
        epoch: (batches,) the epoch it belongs to.
        is_full: (batches,) it is as large as its bucket allows.
        clip: (samples,), batch after batch.
        start_frame: (samples,).
    """

    bucket: NDArray[np.int32]
    sizes: Int64
    epoch: NDArray[np.int32]
    is_full: NDArray[np.bool_]
    clip: NDArray[np.int32]
    start_frame: NDArray[np.int32]

    @classmethod
    def none(cls) -> Batches:
        """No batch at all."""
        empty = np.zeros(0, dtype=np.int32)
        return cls(empty, empty.astype(np.int64), empty, empty.astype(np.bool_), empty, empty)

    @classmethod
    def joined(cls, parts: Sequence[Batches]) -> Batches:
        """The batches of all parts, one after another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.sizes)

    def take(self, batches: Int64) -> Batches:
        """These batches, in this order."""
        sizes = self.sizes[batches]
        samples = ranges((np.cumsum(self.sizes) - self.sizes)[batches], sizes)
        return Batches(
            self.bucket[batches],
            sizes,
            self.epoch[batches],
            self.is_full[batches],
            self.clip[samples],
            self.start_frame[samples],
        )


def arrange(
    waiting: Batches, new: Batches, costs: Int64, cost_group: int, generator: np.random.Generator
) -> tuple[Batches, Batches]:
    """Put an epoch's batches into their order.

    Full batches of one bucket form groups by themselves. What is left of every bucket, the smaller last batches with
    them, is put together by cost. Batches that fill no group wait for the next epoch and come first there.

    Args:
        waiting: Batches of earlier epochs that filled no group.
        new: Batches of this epoch, bucket after bucket.
        costs: Of one sample, by bucket.
        cost_group: Batches in a group.
        generator: Of the epoch.

    Returns:
        Whole groups of batches, and those that wait.
    """
    batches = Batches.joined([waiting, new])
    groups, later = _groups(batches, len(waiting), costs, cost_group)
    position = generator.permutation(len(groups))
    num_begun = int(np.count_nonzero(groups.min(axis=1) < len(waiting))) if len(groups) else 0
    position[:num_begun] -= len(groups)
    groups = groups[np.argsort(position)]
    if cost_group > 1:  # no rank always gets the smallest batch
        groups = generator.permuted(groups, axis=1)
    return batches.take(groups.ravel()), batches.take(later)


def _groups(batches: Batches, num_waiting: int, costs: Int64, cost_group: int) -> tuple[Int64, Int64]:
    """(groups, cost_group) batches of each group, groups by the first batch in them; and the batches in none."""
    alike = _alike(batches, num_waiting, cost_group)
    is_other = np.ones(len(batches), dtype=np.bool_)
    is_other[alike] = False
    others = np.flatnonzero(is_other)
    cost = batches.sizes[others] * costs[batches.bucket[others]]
    # The newest wait, so that none waits longer than it must; among them the cheapest.
    by_age = np.lexsort((cost, -batches.epoch[others]))
    wait, stay = np.split(by_age, [len(others) % cost_group])
    by_cost = others[stay[np.lexsort((stay, cost[stay]))]]
    groups = np.concatenate((alike, by_cost)).reshape(-1, cost_group)
    return groups[np.argsort(groups.min(axis=1))], np.sort(others[wait])


def _alike(batches: Batches, num_waiting: int, cost_group: int) -> Int64:
    """Batches that fill groups with others of their own bucket, bucket after bucket."""
    full = num_waiting + np.flatnonzero(batches.is_full[num_waiting:])
    bucket = batches.bucket[full]
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    counts = np.diff(starts, append=len(bucket))
    whole = counts // cost_group * cost_group
    alike: Int64 = full[ranges(starts, whole)]
    return alike
