"""Loss on held-out clips with fixed noise, per bucket and timestep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from components import manifest
from components.batches import BatchReader
from components.plan_file import PlanFile, held_out_plan
from components.shared_tensors import open_index
from components.takedown import taken_down
from components.takedown.plans import held_out_without
from model.diffusion_config import DiffusionConfig
from model.process import build_process
from model.sampling import TextConditionedDenoiser
from model.stdit2 import STDiT2

TIMESTEP_SCALE = 1000


class HeldOutLoss(BaseModel):
    """Loss of one bucket over its held-out clips."""

    model_config = ConfigDict(frozen=True)
    bucket: str
    clips: int
    loss: float
    by_timestep: tuple[float, ...]


def timesteps_of(count: int) -> list[int]:
    """Equidistant timesteps, the middles of `count` equal parts of 0..1000."""
    return [int((index + 0.5) * TIMESTEP_SCALE / count) for index in range(count)]


@torch.no_grad()
def held_out_losses(
    network: STDiT2,
    diffusion: DiffusionConfig,
    batches: BatchReader,
    *,
    timesteps: int,
    seed: int,
    on_batch: Callable[[], None] | None = None,
) -> list[HeldOutLoss]:
    """Average the training loss over held-out batches.

    Args:
        network: in evaluation mode.
        diffusion: the process it was trained with.
        batches: of the evaluation plan.
        timesteps: how many equidistant timesteps.
        seed: of the noise, which is the same for every checkpoint evaluated with it.
        on_batch: called after each batch.
    """
    process = build_process(diffusion)
    steps = timesteps_of(timesteps)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(steps))
    clips: dict[str, int] = defaultdict(int)
    batches.schedule(range(len(batches)))
    for index in range(len(batches)):
        batch = batches.read(index)
        bucket = f"{batches.resolution(index)} {batch.latents.shape[2]} frames"
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        noise = torch.randn(batch.latents.shape, generator=generator)
        denoise = TextConditionedDenoiser(network, batch.text_features, batch.text_mask, **batch.clip_info)
        for place, step in enumerate(steps):
            timestep = torch.full((len(batch.latents),), step)
            loss = process.training_losses(denoise, batch.latents, timestep, noise).loss
            sums[bucket][place] += float(loss.sum())
        clips[bucket] += len(batch.latents)
        if on_batch is not None:
            on_batch()
    return [
        HeldOutLoss(
            bucket=bucket,
            clips=clips[bucket],
            loss=sum(values) / len(values) / clips[bucket],
            by_timestep=tuple(value / clips[bucket] for value in values),
        )
        for bucket, values in sorted(sums.items())
    ]


def mean_held_out_loss(losses: list[HeldOutLoss]) -> float | None:
    """Mean over all clips of all buckets; None without any."""
    clips = sum(row.clips for row in losses)
    return sum(row.loss * row.clips for row in losses) / clips if clips else None


def open_held_out(data: str, stage: str, folder: Path) -> BatchReader:
    """The held-out batches of a stage, without clips that are taken down.

    Args:
        data: URI of the bucket output.
        stage: whose evaluation plan to read.
        folder: for local copies of the plan and of where its tensors lie.
    """
    name = held_out_plan(stage)
    dataset = manifest.fetch(data, folder, [name], kind="dataset")
    plan, taken = PlanFile.open(folder / name), taken_down(data, dataset)
    if taken:
        plan = held_out_without(plan, taken.mask(plan))
    return BatchReader(open_index(data, folder), plan)
