"""A finished network, wrapped for the ranks that train it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.optimizer_config import OptimizerConfig
from model.parallel.booster import BoosterModel, BoosterPlugin, BoosterUpdates
from model.parallel.ranks import Ranks, Strategy
from model.parallel.updates import Updates
from model.stdit2 import STDiT2


def parallelize(
    network: STDiT2,
    ranks: Ranks,
    strategy: Strategy = "none",
    *,
    activation_checkpointing: bool = False,
    compile_blocks: bool = False,
    booster_plugin: BoosterPlugin = "zero1",
) -> nn.Module:
    """Put the network on this rank's device and wrap it; call the result, keep `network` for names and saving.

    Args:
        network: holds the same weights on every rank; its parameters are replaced by shards under "fsdp".
        ranks: as given by `joined_ranks`; with `sequence_parallel` above 1, the ranks of a group must be called
            with the same inputs, and each gets the whole output.
        strategy: replicate ("ddp"), shard ("fsdp", torch's `fully_shard`, one unit per block) over all ranks, or
            leave it to ColossalAI's Booster ("colossalai").
        activation_checkpointing: recompute each block in the backward pass.
        compile_blocks: compile each block with torch.compile, once per shape.
        booster_plugin: which of Booster's plugins.

    Raises:
        ValueError: if Booster is asked for and cannot work here.
    """
    network.to(ranks.device)
    network.set_activation_checkpointing(activation_checkpointing)
    if ranks.sequence_parallel > 1:
        from torch.distributed.device_mesh import init_device_mesh

        from model.parallel.sequence import share_tokens

        sizes = (ranks.data_ranks, ranks.sequence_parallel)
        mesh = init_device_mesh(ranks.device.type, sizes, mesh_dim_names=("data", "sequence"))
        share_tokens(network, mesh.get_group("sequence"))
    if compile_blocks:
        if network.text_layout == "auto":
            network.text_layout = "padded"  # packed, every row of caption lengths would compile anew
        for block in network.blocks:
            block.compile()
    if strategy == "fsdp":
        from torch.distributed.fsdp import fully_shard  # two seconds that only sharded runs need to spend

        for block in network.blocks:
            fully_shard(block)
        fully_shard(network)
    if strategy == "colossalai":
        return BoosterModel(network, booster_plugin)
    if strategy == "ddp":
        # single frames do not use the temporal queries and keys
        return DistributedDataParallel(network, find_unused_parameters=True)
    return network


def updates_of(model: nn.Module, trainable: Mapping[str, nn.Parameter], settings: OptimizerConfig) -> Updates:
    """The updates of a network that `parallelize` wrapped.

    Args:
        model: as `parallelize` returned it.
        trainable: the parameters that move, by name.
        settings: of AdamW and of clipping.
    """
    kind = BoosterUpdates if isinstance(model, BoosterModel) else Updates
    return kind(model, trainable, settings)


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
