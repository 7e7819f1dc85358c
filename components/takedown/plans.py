"""Plans without what is taken down: the rows go, every batch keeps its place.

A batch of which nothing is left is stood in for by the next batch of its bucket that has rows (by the first one again
after the last), or of any bucket where its own has none. So a place in the plan stays one integer, the order is the
same for any number of ranks, and a step costs what it was planned to. A held-out plan loses such a batch instead: no
clip may count twice in a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.errors import KinoflowError
from components.plan_file import PlanFile
from components.texts import ranges

Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """What a plan still holds, as positions in it.

    Attributes:
        batch: (batches,) the batch that each one is read from: itself, or its stand-in.
        rows: (rows,) rows of these batches, one after another.
        sizes: (batches,) how many.
    """

    batch: Int64
    rows: Int64
    sizes: Int64

    @classmethod
    def of(cls, plan: PlanFile, is_taken: Mask) -> Kept:
        """Rows of clips that are not taken, with stand-ins for batches that hold no others.

        Args:
            plan: Of a training stage.
            is_taken: (n,) of `plan.clips`.

        Raises:
            KinoflowError: Nothing is left.
        """
        stays = ~is_taken[plan.clip]
        offsets = np.concatenate(([0], np.cumsum(stays, dtype=np.int64)))[plan.offsets]
        sizes = np.diff(offsets)
        batch = _stand_ins(plan.bucket, sizes)
        rows = np.flatnonzero(stays)[ranges(offsets[:-1][batch], sizes[batch])]
        return cls(batch, rows, sizes[batch])

    @classmethod
    def all_of(cls, plan: PlanFile) -> Kept:
        """Every row."""
        return cls(np.arange(len(plan)), np.arange(plan.num_samples), np.diff(plan.offsets))

    def rows_of(self, first: int, end: int) -> Int64:
        """Rows of batches `first` to `end` (exclusive)."""
        before = int(self.sizes[:first].sum())
        return self.rows[before : before + int(self.sizes[first:end].sum())]

    def is_same(self, other: Kept, first: int, end: int) -> bool:
        """Whether batches `first` to `end` (exclusive) hold the same rows in the other one."""
        return np.array_equal(self.sizes[first:end], other.sizes[first:end]) and np.array_equal(
            self.rows_of(first, end), other.rows_of(first, end)
        )

    def plan(self, plan: PlanFile) -> PlanFile:
        """The plan cut down to this."""
        return PlanFile.build(
            [bucket.shape for bucket in plan.buckets],
            plan.clips,
            frame_interval=plan.frame_interval,
            sizes=self.sizes,
            bucket=plan.bucket[self.batch],
            epoch=plan.epoch,
            clip=plan.clip[self.rows],
            start_frame=plan.start_frame[self.rows],
        )


def without(plan: PlanFile, is_taken: Mask) -> PlanFile:
    """A training plan without some of its clips, as long as it was; the plan itself when none of them occurs.

    Args:
        plan: Of a training stage.
        is_taken: (n,) of `plan.clips`.

    Raises:
        KinoflowError: Nothing is left.
    """
    return Kept.of(plan, is_taken).plan(plan) if occurs(plan, is_taken) else plan


def held_out_without(plan: PlanFile, is_taken: Mask) -> PlanFile:
    """A held-out plan without some of its clips; a batch of which nothing is left goes with them."""
    return only(plan, ~is_taken) if occurs(plan, is_taken) else plan


def only(plan: PlanFile, is_wanted: Mask) -> PlanFile:
    """A plan of only these of its clips, in as many batches as hold any of them.

    Args:
        plan: Of any kind.
        is_wanted: (n,) of `plan.clips`.
    """
    stays = is_wanted[plan.clip]
    sizes = np.diff(np.concatenate(([0], np.cumsum(stays, dtype=np.int64)))[plan.offsets])
    batch = np.flatnonzero(sizes)
    return PlanFile.build(
        [bucket.shape for bucket in plan.buckets],
        plan.clips,
        frame_interval=plan.frame_interval,
        sizes=sizes[batch],
        bucket=plan.bucket[batch],
        epoch=plan.epoch[batch],
        clip=plan.clip[stays],
        start_frame=plan.start_frame[stays],
    )


def occurs(plan: PlanFile, is_taken: Mask) -> bool:
    """Whether the plan holds any of these clips; it may list some that it does not hold."""
    return bool(is_taken.any() and is_taken[plan.clip].any())


def _stand_ins(bucket: NDArray[np.int32], sizes: Int64) -> Int64:
    """(batches,) each batch itself, or the one that takes the place of an empty one."""
    batch = np.arange(len(sizes), dtype=np.int64)
    left = np.flatnonzero(sizes)
    if not len(left):
        raise KinoflowError("Every clip of the plan is taken down; curate and bucket again with other videos.")
    empty = np.flatnonzero(sizes == 0)
    for number in np.unique(bucket[empty]):
        own = left[bucket[left] == number]
        others = own if len(own) else left
        places = empty[bucket[empty] == number]
        batch[places] = others[np.searchsorted(others, places) % len(others)]
    return batch
