"""STDiT2-XL/2 at the batch shapes of an Open-Sora 1.1 stage, trained on one device by the trainer itself.

A step here is all of it: noise, forward, backward, clipping, AdamW, moving average. Latents and text are random. The
planner's predictions, from small batches of the same shapes, are compared with what is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
import yaml

from model.batch_sizes import kept_buckets, squarest
from model.buckets import Bucket
from model.config import STDiT2Config
from model.cost import GIB, Measurement, Workload, fit_costs
from model.diffusion_config import IDDPMConfig
from model.metrics import model_flops_utilisation, training_flops
from model.optimizer_config import OptimizerConfig
from model.probe import Case, measure, probe_trainer, small_cases
from tests.benchmarks.buckets import PRESETS, stage_table
from tests.benchmarks.measuring import Figure, Settings, by_turns, matmul
from tests.benchmarks.planner import prediction_errors


def run(settings: Settings) -> list[Figure]:
    """Step time, rates, share of a matmul's speed and peak memory, shape by shape."""
    preset = yaml.safe_load((PRESETS / "opensora-v1.1.yaml").read_text(encoding="utf-8"))
    stage = next(stage for stage in preset["stages"] if stage["name"] == settings.stage)
    config, device = STDiT2Config.model_validate(preset["network"]), torch.device(settings.device)
    shapes = squarest_buckets(settings.stage)
    probes, side = small_cases(stage_table(settings.stage)), 8192
    if settings.toy:
        small = {"hidden_size": 48, "depth": 1, "num_heads": 4, "caption_channels": 8, "model_max_length": 6}
        config, side = config.model_copy(update=small), 64
        shapes = [shape._replace(height=32, width=32, batch_size=3) for shape in shapes[-2:]]
        probes = [Case(shape, size) for shape in shapes for size in (1, 2)]
    peak = by_turns({"matmul": lambda: matmul(side, torch.bfloat16, device, times=10)}, settings, "matmul")
    peak_flops_per_s = 10 * 2 * side**3 / statistics.median(peak.seconds["matmul"])
    workload = Workload(config, config.model_max_length, stage["activation_checkpointing"])
    trainer = probe_trainer(
        workload,
        diffusion=IDDPMConfig(),
        optimizer=OptimizerConfig.model_validate(stage["optimizer"]),
        device=device,
        compile_blocks=settings.compiled,
    )
    listed = [Case(shape, shape.batch_size or 1) for shape in shapes]
    measured = measure(trainer, [*probes, *listed], workload, rounds=settings.rounds)
    probed, measured = measured[: len(probes)], measured[len(probes) :]
    return [
        Figure(f"{side}-square bf16 matmul", peak_flops_per_s / 1e12, "TFLOP/s"),
        *(figure for m in measured for figure in shape_figures(workload, m, peak_flops_per_s, settings)),
        *_predictions(workload, probed, measured),
    ]


def _predictions(workload: Workload, probed: Sequence[Measurement], measured: Sequence[Measurement]) -> list[Figure]:
    if not any(m.fits for m in probed):
        return []
    return prediction_errors("listed batch sizes from small ones", fit_costs(workload, probed), measured)


def squarest_buckets(stage: str) -> list[Bucket]:
    """One bucket for each (resolution, frames) that keeps clips, squarest aspect."""
    return [squarest(buckets) for buckets in kept_buckets(stage_table(stage)).values()]


def shape_figures(
    workload: Workload, measured: Measurement, peak_flops_per_s: float, settings: Settings
) -> list[Figure]:
    """The figures of one batch shape; a single one where it does not fit the memory."""
    shape, batch_size, seconds = measured.bucket, measured.batch_size, measured.seconds
    size = (shape.num_frames, shape.height, shape.width)
    name = f"{shape.resolution} {batch_size} x {shape.num_frames} x {shape.height} x {shape.width}"
    if measured.peak_bytes is None:
        return [Figure(f"{name}: does not fit into memory", float("nan"), "s")]
    flops = batch_size * training_flops(workload.network, *size, workload.text_tokens)
    figures = [
        Figure(f"{name}: step", seconds, "s"),
        Figure(f"{name}: samples", batch_size / seconds, "1/s"),
        Figure(f"{name}: tokens", batch_size * workload.tokens(shape) / seconds, "1/s"),
        Figure(f"{name}: step over the matmul, FLOP/s", model_flops_utilisation(flops, seconds, peak_flops_per_s)),
    ]
    if settings.device == "cuda":
        figures.append(Figure(f"{name}: peak memory", measured.peak_bytes / GIB, "GiB"))
    return figures
