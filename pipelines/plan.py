"""What a preset asks for, before anything runs: tokens, batch and arithmetic of every bucket of every stage."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from model.buckets import Bucket
from model.geometry import forward_flops, num_tokens
from pipelines.config import RunConfig, StageConfig

BACKWARD_COST = 2  # in forward passes
RECOMPUTE_COST = 1  # one more forward with activation checkpointing


@dataclass(frozen=True)
class BucketCost:
    """One (resolution, num_frames) of one stage at its squarest size.

    Attributes:
        size: (num_frames, height, width) in pixels.
        tokens: of one sample.
        batch_size: samples per batch and rank; None for a barrier.
        forward_flops: of one sample, with a caption of full length.
    """

    stage: str
    resolution: str
    size: tuple[int, int, int]
    keep_prob: float
    batch_size: int | None
    tokens: int
    forward_flops: int


def bucket_costs(config: RunConfig, stage: StageConfig) -> list[BucketCost]:
    """Every (resolution, num_frames) pair of a stage, in the order in which clips are offered to them."""
    network = config.trained_network()
    squarest: dict[tuple[str, int], Bucket] = {}
    for triple in stage.buckets.triples:
        pair = (triple.resolution, triple.num_frames)
        kept = squarest.setdefault(pair, triple)
        if _elongation(triple.height, triple.width) < _elongation(kept.height, kept.width):
            squarest[pair] = triple
    return [
        BucketCost(
            stage=stage.name,
            resolution=bucket.resolution,
            size=(bucket.num_frames, bucket.height, bucket.width),
            keep_prob=bucket.keep_prob,
            batch_size=bucket.batch_size,
            tokens=num_tokens(bucket.num_frames, bucket.height, bucket.width, patch_size=network.patch_size),
            forward_flops=forward_flops(
                network, bucket.num_frames, bucket.height, bucket.width, network.model_max_length
            ),
        )
        for bucket in squarest.values()
    ]


def _elongation(height: int, width: int) -> float:
    return max(height, width) / min(height, width)


def training_flops(cost: BucketCost, *, activation_checkpointing: bool) -> int:
    """Operations of one training step on one rank: forward, backward, and the recomputed forward if there is one."""
    passes = 1 + BACKWARD_COST + (RECOMPUTE_COST if activation_checkpointing else 0)
    return passes * cost.forward_flops * (cost.batch_size or 0)


def print_plan(config: RunConfig, console: Console) -> None:
    """A table per stage, and the totals of the run.

    `share` is a bucket's part of the stage's arithmetic if every bucket gave equally many batches; how many it
    really gives depends on the clips. The totals rest on the same mean.
    """
    console.print(f"[b]{config.preset}[/]: {config.description}")
    total = 0.0
    for stage in config.stages:
        costs = bucket_costs(config, stage)
        steps = [training_flops(cost, activation_checkpointing=stage.activation_checkpointing) for cost in costs]
        filled = [flops for flops in steps if flops]
        mean = sum(filled) / len(filled)
        total += mean * stage.steps
        console.print(_table(stage, costs, steps))
        console.print(
            f"{stage.steps} steps x {mean / 1e12:.3g} TFLOP = {mean * stage.steps / 1e15:.3g} PFLOP per rank\n"
        )
    steps_total = sum(stage.steps for stage in config.stages)
    console.print(f"total: {steps_total} steps, {total / 1e15:.3g} PFLOP per rank; network {_network(config)}")
    if not config.trainable_here:
        console.print("This preset is checked and planned only; training it takes a cluster.")


def _table(stage: StageConfig, costs: list[BucketCost], steps: list[int]) -> Table:
    table = Table(title=f"{stage.name}: {stage.steps} steps", title_justify="left", box=None)
    for name in ("resolution", "frames", "size", "keep", "batch", "tokens", "forward GFLOP", "step TFLOP", "share"):
        table.add_column(name, justify="left" if name == "resolution" else "right")
    for cost, flops in zip(costs, steps, strict=True):
        num_frames, height, width = cost.size
        barrier = cost.batch_size is None
        table.add_row(
            cost.resolution, str(num_frames), f"{height}x{width}", f"{cost.keep_prob:g}",
            "-" if barrier else str(cost.batch_size), str(cost.tokens), f"{cost.forward_flops / 1e9:.4g}",
            "barrier" if barrier else f"{flops / 1e12:.3g}", "" if barrier else f"{flops / sum(steps):.1%}",
        )  # fmt: skip
    return table


def _network(config: RunConfig) -> str:
    network = config.network
    return f"{network.depth} blocks of width {network.hidden_size}, {network.num_heads} heads"
