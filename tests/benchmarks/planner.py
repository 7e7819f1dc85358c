"""How equally long training steps are, with the listed batch sizes and with planned ones, and how well foretold.

Every stage of the demo preset is planned as `kinoflow plan demo --probe` does: small batches are probed, batch sizes
chosen. Then every bucket, each aspect of it, is trained a few steps at both sizes, all of them by turns. On a GPU the
network benchmark compares predictions for XL/2 (`tests.benchmarks.stage_shapes`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from model.batch_sizes import choose_batch_sizes, listed_sizes, max_over_mean
from model.buckets import Bucket
from model.cost import CostModel, Measurement, Workload, fit_costs
from model.probe import Case, measure, probe_trainer, small_cases
from pipelines.config import RunConfig, StageConfig, load_run_config
from tests.benchmarks.measuring import Figure, Settings

CAPTION_TOKENS = 10  # of the demo's captions, mostly


def run(settings: Settings) -> list[Figure]:
    """The demo's stages, one after another."""
    config = load_run_config("smoke" if settings.toy else "demo")
    stages = config.stages[:1] if settings.toy else config.stages
    return [figure for stage in stages for figure in measure_stage(config, stage, settings)]


def measure_stage(config: RunConfig, stage: StageConfig, settings: Settings) -> list[Figure]:
    """Imbalance with listed and planned batch sizes, and errors of the predictions."""
    tokens = min(CAPTION_TOKENS, config.trained_network().model_max_length)
    workload = Workload(
        config.trained_network(), tokens, stage.activation_checkpointing, precision=config.training.precision
    )
    trainer = probe_trainer(workload, diffusion=config.diffusion, optimizer=stage.optimizer, masks=stage.masks)
    clock = time.process_time if settings.cpu_time else time.perf_counter
    probed = measure(trainer, small_cases(stage.buckets), workload, rounds=settings.rounds, clock=clock)
    cost = fit_costs(workload, probed)
    first = choose_batch_sizes(cost, stage.buckets)
    again = measure(trainer, _cases(first.batch_sizes), workload, rounds=settings.rounds, clock=clock)
    planned = choose_batch_sizes(fit_costs(workload, [*probed, *again]), stage.buckets)
    listed = listed_sizes(stage.buckets)
    cases = [*_cases(listed), *_cases(planned.batch_sizes)]
    measured = measure(trainer, cases, workload, rounds=settings.rounds, clock=clock)
    before, after = measured[: len(listed)], measured[len(listed) :]
    sizes = ", ".join(
        f"{bucket.num_frames} x {bucket.height} x {bucket.width}: {listed[bucket]} -> {size}"
        for bucket, size in planned.batch_sizes.items()
    )
    return [
        _imbalance(f"{stage.name}: longest over mean step, listed", before),
        _imbalance(f"{stage.name}: longest over mean step, planned ({sizes})", after),
        Figure(f"{stage.name}: longest over mean step, planned, as predicted", planned.imbalance),
        *prediction_errors(stage.name, cost, again),
    ]


def _cases(sizes: Mapping[Bucket, int]) -> list[Case]:
    return [Case(bucket, size) for bucket, size in sizes.items()]


def _imbalance(name: str, measured: Sequence[Measurement]) -> Figure:
    return Figure(name, max_over_mean([m.seconds for m in measured]))


def prediction_errors(name: str, cost: CostModel, measured: Sequence[Measurement]) -> list[Figure]:
    """Predicted over measured step time and peak memory: medians and extremes over the shapes."""
    fitting = [m for m in measured if m.fits]
    times = [cost.seconds(m.bucket, m.batch_size) / m.seconds for m in fitting]
    peaks = [cost.peak_bytes(m.bucket, m.batch_size) / (m.peak_bytes or 1) for m in fitting]
    return [
        Figure(f"{name}: {what}, predicted over measured", statistics.median(ratios), low=min(ratios), high=max(ratios))
        for what, ratios in (("step time", times), ("peak memory", peaks))
        if ratios
    ]
