"""The order in which Open-Sora 1.1's batch sampler visits a data set, reproduced exactly.

Runs of the released training code can be replayed with it. Its own quirks come along: with `drop_last` the tail of
every bucket is lost, without it a bucket is padded from its own start and the last batches may repeat or be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from model.buckets import BucketChoice, BucketTable, choose_buckets


@dataclass(frozen=True)
class ReferenceBatch:
    """Rows that one rank loads in one step, and the (num_frames, height, width) they are brought to."""

    rows: tuple[int, ...]
    num_frames: int
    height: int
    width: int

    @property
    def sample_keys(self) -> list[str]:
        """What the released sampler emits: "row-frames-height-width" per sample."""
        return [f"{row}-{self.num_frames}-{self.height}-{self.width}" for row in self.rows]


def choose_epoch_buckets(
    table: BucketTable,
    num_frames: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    *,
    seed: int,
    epoch: int = 0,
) -> BucketChoice:
    """Every row's bucket in one epoch.

    Args:
        table: Buckets of the stage.
        num_frames: (N,) source frames per row.
        height: (N,) in pixels.
        width: (N,) in pixels.
        seed: Seed of the run.
        epoch: From 0.
    """
    row_seeds = table.row_seeds(seed, epoch, int(np.size(num_frames)))
    return choose_buckets(table, num_frames, height, width, row_seeds)


def count_reference_batches(choice: BucketChoice) -> int:
    """Full batches over all buckets: what the released code divides by the world size to get steps per epoch."""
    return sum(len(rows) // _batch_size(choice, index) for index, rows in _rows_by_bucket(choice).items())


def reference_batches(
    choice: BucketChoice,
    *,
    seed: int,
    epoch: int = 0,
    rank: int = 0,
    num_replicas: int = 1,
    shuffle: bool = True,
    drop_last: bool = True,
    last_micro_batch_access_index: int = 0,
) -> Iterator[ReferenceBatch]:
    """Batches of one rank in one epoch, in the released sampler's order.

    Args:
        choice: The epoch's buckets (`choose_epoch_buckets` with the same seed and epoch).
        seed: Seed of the run; the shuffles use a torch generator seeded with seed + epoch.
        epoch: From 0.
        rank: This replica, in [0, num_replicas).
        num_replicas: Size of the data-parallel group.
        shuffle: Shuffle the rows within each bucket, then the order of batches.
        drop_last: Cut incomplete batches (before shuffling) and incomplete steps; otherwise pad both from their start.
        last_micro_batch_access_index: Where a saved sampler state stood: steps done * replicas at that time.
            The number of replicas may differ from then; the position is rounded down to a whole step.

    Raises:
        ValueError: `rank` outside [0, num_replicas) or a negative position.
    """
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank {rank} is outside 0 to {num_replicas - 1}")
    if last_micro_batch_access_index < 0:
        raise ValueError(f"last_micro_batch_access_index {last_micro_batch_access_index} is negative")
    generator = torch.Generator().manual_seed(seed + epoch)
    rows_by_bucket = _whole_batches(choice, generator, shuffle=shuffle, drop_last=drop_last)
    accesses = _access_order(choice, rows_by_bucket, generator, shuffle=shuffle)
    accesses = _whole_steps(accesses, num_replicas, drop_last=drop_last)
    num_steps = len(accesses) // num_replicas
    first_step = last_micro_batch_access_index // num_replicas
    consumed = dict.fromkeys(rows_by_bucket, 0)
    # Every access advances its bucket, whichever rank it belongs to: ranks sharing a bucket get disjoint rows.
    for position, index in enumerate(accesses[: num_steps * num_replicas]):
        start = consumed[index]
        consumed[index] += _batch_size(choice, index)
        if position >= first_step * num_replicas and position % num_replicas == rank:
            bucket = choice.table.triples[index]
            rows = tuple(rows_by_bucket[index][start : consumed[index]])
            yield ReferenceBatch(rows, bucket.num_frames, bucket.height, bucket.width)


def _rows_by_bucket(choice: BucketChoice) -> dict[int, list[int]]:
    """Rows of every bucket, buckets in order of first appearance."""
    rows_by_bucket: dict[int, list[int]] = {}
    for row, index in enumerate(choice.index.tolist()):
        if index >= 0:
            rows_by_bucket.setdefault(index, []).append(row)
    return rows_by_bucket


def _batch_size(choice: BucketChoice, index: int) -> int:
    batch_size = choice.table.triples[index].batch_size
    if batch_size is None:
        raise ValueError("a barrier bucket was chosen; choices must come from the same bucket table")
    return batch_size


def _whole_batches(
    choice: BucketChoice, generator: torch.Generator, *, shuffle: bool, drop_last: bool
) -> dict[int, list[int]]:
    rows_by_bucket = _rows_by_bucket(choice)
    for index, rows in rows_by_bucket.items():
        remainder = len(rows) % _batch_size(choice, index)
        if remainder and drop_last:
            rows = rows[:-remainder]
        elif remainder:
            rows = rows + rows[: _batch_size(choice, index) - remainder]
        rows_by_bucket[index] = _shuffled(rows, generator) if shuffle else rows
    return rows_by_bucket


def _access_order(
    choice: BucketChoice, rows_by_bucket: dict[int, list[int]], generator: torch.Generator, *, shuffle: bool
) -> list[int]:
    """One entry per batch: the bucket it is taken from."""
    accesses = [index for index, rows in rows_by_bucket.items() for _ in range(len(rows) // _batch_size(choice, index))]
    return _shuffled(accesses, generator) if shuffle else accesses


def _whole_steps(accesses: list[int], num_replicas: int, *, drop_last: bool) -> list[int]:
    remainder = len(accesses) % num_replicas
    if not remainder:
        return accesses
    return accesses[:-remainder] if drop_last else accesses + accesses[: num_replicas - remainder]


def _shuffled(values: list[int], generator: torch.Generator) -> list[int]:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]
