"""STDiT2-XL/2 at the batch shapes of an Open-Sora 1.1 stage, trained on one device by the trainer itself.

A step here is all of it: noise, forward, backward, clipping, AdamW, moving average. Latents and text are random.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import yaml

from model.batch import Batch
from model.buckets import Bucket
from model.config import STDiT2Config
from model.diffusion_config import IDDPMConfig
from model.geometry import latent_size
from model.metrics import LogPoint, model_flops_utilisation
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks, parallelize
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions
from tests.benchmarks.buckets import PRESETS, stage_table
from tests.benchmarks.measuring import Figure, Settings, by_turns, matmul

WARM_UP_STEPS = 3


class _EnoughStepsError(Exception):
    """Ends the trainer's loop from within."""


def run(settings: Settings) -> list[Figure]:
    """Step time, rates, share of a matmul's speed and peak memory, shape by shape."""
    preset = yaml.safe_load((PRESETS / "opensora-v1.1.yaml").read_text(encoding="utf-8"))
    stage = next(stage for stage in preset["stages"] if stage["name"] == settings.stage)
    config, device = STDiT2Config.model_validate(preset["network"]), torch.device(settings.device)
    shapes, side = list(squarest_buckets(settings.stage)), 8192
    if settings.toy:
        small = {"hidden_size": 48, "depth": 1, "num_heads": 4, "caption_channels": 8, "model_max_length": 6}
        config, side = config.model_copy(update=small), 64
        shapes = [shape._replace(height=32, width=32, batch_size=1) for shape in shapes[-2:]]
    peak = by_turns({"matmul": lambda: matmul(side, torch.bfloat16, device, times=10)}, settings, "matmul")
    peak_flops_per_s = 10 * 2 * side**3 / statistics.median(peak.seconds["matmul"])
    figures = [Figure(f"{side}-square bf16 matmul", peak_flops_per_s / 1e12, "TFLOP/s")]
    trainer = make_trainer(config, stage, settings)
    for shape in shapes:
        figures += measure_shape(trainer, shape, peak_flops_per_s, settings)
    return figures


def squarest_buckets(stage: str) -> Iterator[Bucket]:
    """One bucket for each (resolution, frames) that keeps clips, squarest aspect."""
    kept = [bucket for bucket in stage_table(stage).triples if bucket.keep_prob > 0]
    for _, buckets in itertools.groupby(kept, key=lambda bucket: (bucket.resolution, bucket.num_frames)):
        yield min(buckets, key=lambda bucket: abs(float(bucket.aspect) - 1))


def make_trainer(config: STDiT2Config, stage: dict[str, Any], settings: Settings) -> Trainer:
    """The trainer as the stage sets it up, with fresh weights; it never ends by itself."""
    ranks = Ranks(device=torch.device(settings.device))
    with ranks.device:
        network = STDiT2(config)
    network.initialize(torch.Generator(ranks.device).manual_seed(0))
    model = parallelize(
        network,
        ranks,
        activation_checkpointing=stage["activation_checkpointing"],
        compile_blocks=settings.compiled,
    )
    options = TrainerOptions(
        stage=stage["name"],
        steps=1_000_000,
        seed=0,
        optimizer=OptimizerConfig.model_validate(stage["optimizer"]),
        diffusion=IDDPMConfig(),
        precision="bf16",
        log_every=1,
        save_every=1_000_000,
    )
    return Trainer(network, options, model=model, ranks=ranks)


def measure_shape(trainer: Trainer, shape: Bucket, peak_flops_per_s: float, settings: Settings) -> list[Figure]:
    """The figures of one batch shape; a single one where it does not fit the memory."""
    batch_size = shape.batch_size or 1
    name = f"{shape.resolution} {batch_size} x {shape.num_frames} x {shape.height} x {shape.width}"
    on_gpu = trainer.ranks.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        points = train(trainer, random_batch(trainer.network.config, shape, batch_size), settings.rounds)
    except torch.OutOfMemoryError:
        trainer.network.zero_grad(set_to_none=True)
        return [Figure(f"{name}: does not fit into memory", float("nan"), "s")]
    seconds = statistics.median(point.seconds for point in points)
    share = model_flops_utilisation(points[0].flops, seconds, peak_flops_per_s)
    figures = [
        Figure(f"{name}: step", seconds, "s", min(p.seconds for p in points), max(p.seconds for p in points)),
        Figure(f"{name}: samples", batch_size / seconds, "1/s"),
        Figure(f"{name}: tokens", points[0].tokens / seconds, "1/s"),
        Figure(f"{name}: step over the matmul, FLOP/s", share),
    ]
    if on_gpu:
        figures.append(Figure(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB"))
    return figures


def train(trainer: Trainer, batch: Batch, steps: int) -> list[LogPoint]:
    """Train some steps on one batch; the log points of those after the warm-up."""
    points: list[LogPoint] = []

    def next_batch(_: int) -> Batch:
        if len(points) == WARM_UP_STEPS + steps:
            raise _EnoughStepsError
        return batch

    with suppress(_EnoughStepsError):
        trainer.fit(next_batch, log=points.append, save=lambda _: None)
    return points[WARM_UP_STEPS:]


def random_batch(config: STDiT2Config, shape: Bucket, batch_size: int) -> Batch:
    """Random latents and full-length text of one shape, in the host's memory like real ones."""
    size = latent_size(shape.num_frames, shape.height, shape.width)
    return Batch(
        latents=torch.randn(batch_size, config.in_channels, *size),
        text_features=torch.randn(batch_size, config.model_max_length, config.caption_channels),
        text_mask=torch.ones(batch_size, config.model_max_length, dtype=torch.int64),
        num_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        fps=torch.full((batch_size,), 24.0),
    )
