"""What a preset asks for, before anything runs: batch sizes, time, memory, money and storage of every stage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from components.errors import KinoflowError
from model.batch_sizes import (
    Choice,
    choose_batch_sizes,
    kept_buckets,
    listed_sizes,
    max_over_mean,
    outermost,
    step_seconds,
    table_entries,
)
from model.buckets import Bucket
from model.cost import (
    ASSUMED_MFU,
    GIB,
    GPUS,
    CostModel,
    Line,
    Workload,
    analytic_costs,
    checkpoint_bytes,
    fit_costs,
)
from model.geometry import latent_size
from pipelines.config import RunConfig, StageConfig, preset_values

BYTES_PER_VALUE = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class PlanOptions:
    """Where and how a plan is made.

    Attributes:
        probe: run training steps on this machine instead of reading a data sheet.
        gpu: name in `model.cost.GPUS`.
        memory_gib: of one device; the GPU's own when absent.
        gpus: ranks.
        price_per_gpu_hour: in whatever money.
        mfu: share of the GPU's peak that is assumed without a probe.
        step_s: step time wanted of every bucket; what fills the memory, or the listed mean, when absent.
        caption_tokens: text tokens of a caption; the longest when absent.
        clips: kept clips of the data set, for the storage of latents.
    """

    probe: bool = False
    gpu: str | None = None
    memory_gib: float | None = None
    gpus: int = 1
    price_per_gpu_hour: float | None = None
    mfu: float = ASSUMED_MFU
    step_s: float | None = None
    caption_tokens: int | None = None
    clips: int | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown GPU."""
        if self.gpu is not None and self.gpu not in GPUS:
            raise KinoflowError(f"There is no GPU {self.gpu!r} in the table; choose one of {', '.join(GPUS)}.")
        if self.gpu is not None and self.probe:
            raise KinoflowError("--probe measures this machine and --gpu asks for another; give one of them.")


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        cost: predicts steps; in TFLOP instead of seconds where no device is known.
        choice: the planned batch sizes.
        worst_error: largest relative error of a predicted step time at the planned sizes; None without a probe.
    """

    stage: StageConfig
    cost: CostModel
    listed: Mapping[Bucket, int]
    choice: Choice
    worst_error: float | None = None

    def steps(self, sizes: Mapping[Bucket, int]) -> dict[Bucket, float]:
        """Step cost of every bucket."""
        return step_seconds(self.cost, sizes)

    def mean_step(self, sizes: Mapping[Bucket, int]) -> float:
        """Mean step cost, every bucket alike."""
        return statistics.fmean(self.steps(sizes).values())

    def imbalance(self, sizes: Mapping[Bucket, int]) -> float:
        """Longest over mean step."""
        return max_over_mean(self.steps(sizes).values())

    def samples(self, sizes: Mapping[Bucket, int], gpus: int) -> float:
        """Samples seen in the whole stage, every bucket giving equally many batches."""
        return statistics.fmean(sizes.values()) * self.stage.steps * gpus

    def latent_bytes(self) -> float:
        """Mean size of one stored latent."""
        channels = self.cost.workload.network.in_channels
        values = sum(math.prod(latent_size(b.num_frames, b.height, b.width)) * n for b, n in self.listed.items())
        return BYTES_PER_VALUE * channels * values / sum(self.listed.values())


@dataclass(frozen=True)
class RunPlan:
    """All stages of a run.

    Attributes:
        device: in words.
        in_seconds: whether costs are seconds, not TFLOP.
    """

    config: RunConfig
    options: PlanOptions
    device: str
    in_seconds: bool
    stages: tuple[StagePlan, ...]

    def gpu_hours(self, stage: StagePlan, sizes: Mapping[Bucket, int]) -> float:
        """Device hours of a stage if ranks never wait for each other."""
        return stage.mean_step(sizes) * stage.stage.steps * self.options.gpus / 3600

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint."""
        return checkpoint_bytes(self.config.trained_network())

    @property
    def checkpoints_kept(self) -> int:
        """Checkpoints there are when the last stage ends."""
        training = self.config.training
        made = (math.ceil(stage.steps / training.checkpoint_every) for stage in self.config.stages)
        return sum(min(training.keep_checkpoints, count) for count in made)

    def latents_bytes(self) -> float:
        """Latents of all stages: no more than there are samples, nor (where clips are known) crops of clips."""
        total = 0.0
        for stage in self.stages:
            samples = stage.samples(stage.listed, self.options.gpus)
            if self.options.clips is not None and self.config.crops_per_clip is not None:
                samples = min(samples, self.options.clips * self.config.crops_per_clip)
            total += samples * stage.latent_bytes()
        return total

    def text_bytes(self) -> float | None:
        """Text features of all clips, one caption each; None where their number is not known."""
        if self.options.clips is None:
            return None
        workload = self.stages[0].cost.workload
        return BYTES_PER_VALUE * self.options.clips * workload.text_tokens * workload.network.caption_channels


def make_plan(config: RunConfig, options: PlanOptions, say: Say = lambda text: None) -> RunPlan:
    """Plan every stage of a run.

    Args:
        config: the run.
        options: device and wishes.
        say: told what is being probed.

    Raises:
        KinoflowError: a bucket does not fit the memory even with one sample.
    """
    if options.probe:
        return _probed_plan(config, options, say)
    device = GPUS[options.gpu] if options.gpu else None
    memory = _memory_bytes(options, device.memory_bytes if device else None)
    shards = options.gpus if config.training.parallel == "fsdp" else 1
    stages = []
    for stage in config.stages:
        workload = _workload(config, stage, options)
        if device is not None:
            cost = analytic_costs(workload, device, mfu=options.mfu, shards=shards)
        else:
            cost = CostModel(workload, any_time=Line(0.0, 1e-12), any_memory=Line(0.0, 1.0))
        stages.append(_plan_stage(stage, cost, options, memory))
    words = f"{options.gpus} x {device.name}, {options.mfu:.0%} of its peak assumed" if device else "no device named"
    return RunPlan(config, options, words, device is not None, tuple(stages))


def _workload(config: RunConfig, stage: StageConfig, options: PlanOptions) -> Workload:
    network = config.trained_network()
    tokens = options.caption_tokens or network.model_max_length
    if tokens > network.model_max_length:
        raise KinoflowError(f"A caption has at most {network.model_max_length} tokens here; {tokens} were asked for.")
    return Workload(network, tokens, stage.activation_checkpointing, config.training.precision)


def _memory_bytes(options: PlanOptions, own: int | None) -> int | None:
    return own if options.memory_gib is None else round(options.memory_gib * GIB)


def _plan_stage(stage: StageConfig, cost: CostModel, options: PlanOptions, memory: int | None) -> StagePlan:
    try:
        choice = choose_batch_sizes(cost, stage.buckets, memory_bytes=memory, step_s=options.step_s)
    except ValueError as error:
        raise KinoflowError(f"Stage {stage.name!r}: {error}.") from error
    return StagePlan(stage, cost, listed_sizes(stage.buckets), choice)


def _probed_plan(config: RunConfig, options: PlanOptions, say: Say) -> RunPlan:
    """Measure small batches, plan, measure the planned ones, plan again."""
    import torch

    from model.probe import MEMORY_SOURCES, Case, measure, probe_trainer, small_cases

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    memory = _memory_bytes(options, own)
    stages = []
    for stage in config.stages:
        workload = _workload(config, stage, options)
        trainer = probe_trainer(
            workload, diffusion=config.diffusion, optimizer=stage.optimizer, masks=stage.masks, device=device,
            compile_blocks=config.training.compile,
        )  # fmt: skip
        cases = small_cases(stage.buckets)
        say(f"{stage.name}: probing {len(cases)} small batches")
        measured = measure(trainer, cases, workload)
        planned = _plan_stage(stage, fit_costs(workload, measured), options, memory)
        shapes = [bucket for group in kept_buckets(stage.buckets).values() for bucket in outermost(group)]
        chosen = [Case(bucket, planned.choice.batch_sizes[bucket]) for bucket in shapes]
        say(f"{stage.name}: probing the {len(chosen)} planned ones")
        again = measure(trainer, chosen, workload)
        errors = [abs(planned.cost.seconds(m.bucket, m.batch_size) / m.seconds - 1) for m in again if m.fits]
        refined = _plan_stage(stage, fit_costs(workload, [*measured, *again]), options, memory)
        stages.append(replace(refined, worst_error=max(errors, default=None)))
        del trainer
    name = torch.cuda.get_device_name(device) if own else f"this processor, {torch.get_num_threads()} threads"
    words = f"{name}, measured; memory is the {MEMORY_SOURCES[device.type]}"
    return RunPlan(config, options, words, in_seconds=True, stages=tuple(stages))


class _WithoutAnchors(yaml.SafeDumper):
    """Writes parts that several places share out in full."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


def planned_preset(values: Mapping[str, Any], plan: RunPlan) -> dict[str, Any]:
    """A preset's own values with the planned batch sizes in place of the listed ones, under a name of its own."""
    changed: dict[str, Any] = yaml.safe_load(_yaml(values))
    changed["preset"] = f"{plan.config.preset}-planned"
    for entry, stage in zip(changed["stages"], plan.stages, strict=True):
        table = entry["buckets"]
        shared, exceptions = table_entries(stage.choice.batch_sizes)
        for (resolution, num_frames), size in shared.items():
            table["buckets"][resolution][num_frames] = [table["buckets"][resolution][num_frames][0], size]
        table.pop("batch_sizes", None)
        if exceptions:
            table["batch_sizes"] = exceptions
    return changed


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.dump(dict(values), Dumper=_WithoutAnchors, sort_keys=False, default_flow_style=None, width=120)


def write_planned(plan: RunPlan, preset: str, overrides: dict[str, Any], path: Path) -> None:
    """Write the preset with the planned batch sizes as a YAML file that `kinoflow run --preset` takes.

    Raises:
        KinoflowError: the name ends in neither .yaml nor .yml.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise KinoflowError(f"--write {path}: give a name that ends in .yaml.")
    values = planned_preset(preset_values(preset, overrides), plan)
    head = f"# Batch sizes planned on: {plan.device}.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + _yaml(values), encoding="utf-8")
