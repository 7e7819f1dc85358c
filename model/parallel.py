"""What is wrapped around a finished network from outside: recomputation, compilation, data parallelism.

The network holds no rank, mesh or environment variable. A launcher (torchrun, Kubeflow Trainer) starts one process
per rank and sets torch's usual variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.stdit2 import STDiT2

Strategy = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together, and the device it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: saves, logs, reports."""
        return self.rank == 0


@contextmanager
def joined_ranks(strategy: Strategy) -> Iterator[Ranks]:
    """Join the process group the launcher prepared (nccl on GPUs, gloo on CPUs) while the body runs.

    Raises:
        ValueError: if a strategy for several processes is chosen but no launcher started this one, or the reverse.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if strategy == "none":
        if launched > 1:
            raise ValueError(f"{launched} processes were launched but parallel is 'none'; choose 'ddp' or 'fsdp'")
        yield Ranks(device=_device(0))
        return
    if "RANK" not in os.environ:
        raise ValueError(f"parallel is {strategy!r}, which needs a launcher; start it with torchrun, or choose 'none'")
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Let torch use only algorithms that give the same bits every time, while the body runs.

    Uninitialised memory is not filled: that costs time and only matters to code that reads it.
    """
    # cuBLAS reads it when its first handle is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def parallelize(
    network: STDiT2,
    ranks: Ranks,
    strategy: Strategy = "none",
    *,
    activation_checkpointing: bool = False,
    compile_blocks: bool = False,
) -> nn.Module:
    """Put the network on this rank's device and wrap it; call the result, keep `network` for names and saving.

    Args:
        network: holds the same weights on every rank; its parameters are replaced by shards under "fsdp".
        ranks: as given by `joined_ranks`.
        strategy: replicate ("ddp") or shard ("fsdp", torch's `fully_shard`, one unit per block).
        activation_checkpointing: recompute each block in the backward pass.
        compile_blocks: compile each block with torch.compile, once per shape.
    """
    network.to(ranks.device)
    network.set_activation_checkpointing(activation_checkpointing)
    if compile_blocks:
        for block in network.blocks:
            block.compile()
    if strategy == "fsdp":
        from torch.distributed.fsdp import fully_shard  # two seconds that only sharded runs need to spend

        for block in network.blocks:
            fully_shard(block)
        fully_shard(network)
    if strategy == "ddp":
        # single frames do not use the temporal queries and keys
        return DistributedDataParallel(network, find_unused_parameters=True)
    return network


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank, whatever share of it this rank holds; all ranks must call it together."""
    value = tensor.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def load_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter or state tensor, of which this rank may hold a share."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.copy_(value)


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


def whole_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather every tensor of a mapping, as copies on the CPU that later steps do not change."""
    return {name: gathered(tensor).to("cpu", copy=True) for name, tensor in tensors.items()}
