"""Who trains together: this process, the others, and the few numbers they exchange.

A launcher (torchrun, Kubeflow Trainer) starts one process per rank and sets torch's usual variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Strategy = Literal["none", "ddp", "fsdp", "colossalai"]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together, and the device it computes on.

    Ranks with the same `data_rank` are consecutive; they hold parts of the same batch's tokens.

    Attributes:
        sequence_parallel: ranks that share one batch; 1 = every rank has its own.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sequence_parallel: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: saves, logs, reports."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which of the batches that are trained on at the same time is this rank's."""
        return self.rank // self.sequence_parallel

    @property
    def data_ranks(self) -> int:
        """How many batches are trained on at the same time."""
        return self.world_size // self.sequence_parallel


@contextmanager
def joined_ranks(strategy: Strategy, sequence_parallel: int = 1) -> Iterator[Ranks]:
    """Join the process group the launcher prepared (nccl on GPUs, gloo on CPUs) while the body runs.

    Args:
        strategy: what `parallelize` will be asked for.
        sequence_parallel: ranks that share the tokens of one batch.

    Raises:
        ValueError: if strategy, number of launched processes and `sequence_parallel` do not fit together.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if sequence_parallel > 1 and strategy not in ("ddp", "fsdp"):
        raise ValueError(
            f"sequence_parallel is {sequence_parallel} and parallel {strategy!r}; "
            "tokens are shared under 'ddp' and 'fsdp' only, choose one of these"
        )
    if strategy == "none":
        if launched > 1:
            raise ValueError(f"{launched} processes were launched but parallel is 'none'; choose 'ddp' or 'fsdp'")
        yield Ranks(device=_device(0))
        return
    if "RANK" not in os.environ:
        raise ValueError(
            f"parallel is {strategy!r}, which needs a launcher; start it with torchrun, set processes, or choose 'none'"
        )
    if launched % sequence_parallel:
        raise ValueError(
            f"{launched} processes cannot form groups of sequence_parallel {sequence_parallel}; "
            f"launch a multiple of {sequence_parallel}"
        )
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, sequence_parallel)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a small tensor over all ranks, on each of them."""
    if ranks.world_size > 1:
        dist.all_reduce(values, dist.ReduceOp.SUM)
        values = values / ranks.world_size
    return values


def agreed(value: int, ranks: Ranks) -> int:
    """The first rank's whole number, on every rank."""
    if ranks.world_size == 1:
        return value
    shared = torch.tensor([value], dtype=torch.int64, device=ranks.device)
    dist.broadcast(shared, src=0)
    return int(shared.item())
