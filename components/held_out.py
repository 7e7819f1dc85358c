"""Loss on held-out clips with fixed noise, per bucket and timestep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from components import manifest
from components.batches import BatchReader
from components.intervals import Score, mean_score
from components.plan_file import PlanFile, held_out_plan
from components.shared_tensors import open_index
from components.takedown import taken_down
from components.takedown.plans import held_out_without
from model.diffusion_config import DiffusionConfig
from model.process import build_process
from model.sampling import TextConditionedDenoiser
from model.stdit2 import STDiT2

TIMESTEP_SCALE = 1000


class TimestepLoss(BaseModel):
    """Loss at one timestep, mean over clips with its 95 % interval."""

    model_config = ConfigDict(frozen=True)
    timestep: int
    mean: float
    low: float
    high: float


class HeldOutLoss(BaseModel):
    """Loss of one bucket over its held-out clips, with its 95 % interval over clips."""

    model_config = ConfigDict(frozen=True)
    bucket: str
    clips: int
    loss: float
    low: float
    high: float
    by_timestep: tuple[TimestepLoss, ...]
    by_clip: tuple[float, ...] = Field((), exclude=True, repr=False)
    """Of every clip, mean over timesteps."""


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
    losses: dict[str, list[Tensor]] = defaultdict(list)
    batches.schedule(range(len(batches)))
    for index in range(len(batches)):
        batch = batches.read(index)
        bucket = f"{batches.resolution(index)} {batch.latents.shape[2]} frames"
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        noise = torch.randn(batch.latents.shape, generator=generator)
        denoise = TextConditionedDenoiser(network, batch.text_features, batch.text_mask, **batch.clip_info)
        found = []
        for step in steps:
            timestep = torch.full((len(batch.latents),), step)
            found.append(process.training_losses(denoise, batch.latents, timestep, noise).loss)
        losses[bucket].append(torch.stack(found, dim=1).double())
        if on_batch is not None:
            on_batch()
    return [_summed_up(bucket, torch.cat(found), steps) for bucket, found in sorted(losses.items())]


def _summed_up(bucket: str, losses: Tensor, steps: list[int]) -> HeldOutLoss:
    """What is told of a bucket's losses (clips, timesteps)."""
    table = losses.numpy()
    by_clip, columns = table.mean(axis=1), [mean_score(column) for column in table.T]
    overall = mean_score(by_clip)
    return HeldOutLoss(
        bucket=bucket, clips=len(table), loss=overall.mean, low=overall.low, high=overall.high,
        by_timestep=tuple(
            TimestepLoss(timestep=step, mean=score.mean, low=score.low, high=score.high)
            for step, score in zip(steps, columns, strict=True)
        ),
        by_clip=tuple(by_clip.tolist()),
    )  # fmt: skip


def mean_held_out_loss(losses: list[HeldOutLoss]) -> float | None:
    """Mean over all clips of all buckets; None without any."""
    score = overall_loss(losses)
    return None if score is None else score.mean


def overall_loss(losses: list[HeldOutLoss]) -> Score | None:
    """Mean over all clips of all buckets with its interval; None without any."""
    values = [value for row in losses for value in row.by_clip]
    return mean_score(values) if values else None


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
