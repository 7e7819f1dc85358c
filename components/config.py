"""What each stage may be told. One home for every default; a preset only holds choices.

All classes are frozen and refuse unknown keys. Importing this module needs neither torch nor a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from components.caption_config import CaptionConfig as CaptionConfig
from components.curate_config import ClipModelConfig as ClipModelConfig
from components.curate_config import CurateConfig as CurateConfig
from components.curate_config import ShotConfig as ShotConfig
from components.errors import KinoflowError
from components.evaluate_config import EvaluateConfig as EvaluateConfig
from components.promotion_config import PromotionConfig as PromotionConfig
from components.rules_config import CurationRules as CurationRules
from components.sampling_config import SamplingConfig as SamplingConfig
from components.sampling_config import check_size
from components.section import Section as Section
from components.stage_grid_config import StageGridConfig as StageGridConfig
from model.buckets import BucketTable
from model.config import STDiT2Config
from model.diffusion_config import DiffusionConfig, IDDPMConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.mask_config import MaskRatios
from model.optimizer_config import OptimizerConfig as OptimizerConfig
from model.sentinel_config import SentinelConfig


class IngestConfig(Section):
    """How folders, prefixes, archives and lists of files become the `videos` table."""

    source_name: str = Field("local", description="Where a file comes from, unless its table or sidecar says.")
    licence: str = Field("unknown", description="Under which licence, unless its table or sidecar says.")
    attribution: str | None = Field(None, description="Whom to name, unless its table or sidecar says.")
    max_failed_share: float = Field(
        0.9, ge=0, le=1, description="The stage fails above this share of unusable files; duplicates do not count."
    )
    max_file_bytes: int = Field(
        32 << 30, ge=1, description="Larger files, archives and members of archives are refused."
    )
    max_caption_chars: int = Field(10_000, ge=1, description="Longer captions are cut, which is noted.")
    parallel_files: int = Field(8, ge=1, description="Files read or downloaded at once; changes nothing in the result.")
    download_attempts: int = Field(5, ge=1, description="How often a download is begun or gone on with.")
    download_timeout_s: float = Field(3600.0, gt=0, description="For one download with all its attempts.")


class StagePlanConfig(Section):
    """What one training stage draws from the clips."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    buckets: BucketTable
    steps: int = Field(gt=0, description="Optimizer steps.")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        for name, custom in self.buckets.custom_resolutions.items():
            for height, width in custom.sizes:
                check_size(f"stage {self.name!r}, resolution {name!r}", height, width)
        return self


Draws = Literal["opensora-1.1", "fast"]
"""What draws are made with: NumPy's generator, seeded for each, as Open-Sora 1.1 does; or SplitMix64."""


class BucketConfig(Section):
    """Plans for every stage, the two encoders, and what they encode."""

    seed: int = 42
    stages: tuple[StagePlanConfig, ...] = Field(min_length=1)
    autoencoder_folder: str | None = Field(
        None, description="URI of a diffusers AutoencoderKL folder; a small one is fitted on the data when absent."
    )
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text_encoder_folder: str | None = Field(
        None, description="URI of a transformers T5 encoder folder; a word-level one is made when absent."
    )
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    batches_per_step: int = Field(1, ge=1, description="Batches planned per optimizer step, for all ranks together.")
    cost_group: int | None = Field(
        None, ge=1, description="Batches of equal cost after one another, for as many ranks; one step's when absent."
    )
    draws: Draws = Field(
        "opensora-1.1", description="Coins and crops from NumPy's generator as in Open-Sora 1.1, or twice as fast."
    )
    crops_per_clip: int | None = Field(2, ge=1, description="Distinct temporal crops per clip; no limit when absent.")
    eval_batches_per_bucket: int = Field(2, ge=1, description="Held-out batches kept for each bucket.")
    shard_size_bytes: int = Field(64 << 20, ge=1 << 16, description="A shard is closed above this size.")


class PromotionGate(Section):
    """What a stage's result must reach on held-out clips before a later stage may start from it."""

    max_held_out_loss: float | None = Field(None, gt=0, description="Of the averaged weights; no limit when absent.")
    max_increase: float | None = Field(
        None, ge=0, description="Largest increase over the parent's loss on the same clips, as a share of it."
    )
    timesteps: int = Field(10, ge=1, description="Equidistant timesteps of the held-out loss.")
    seed: int = Field(42, description="Of the noise, the same for the stage and its parent.")


class TrainConfig(Section):
    """One training stage."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    steps: int = Field(gt=0)
    batches_per_step: int = Field(
        1, ge=1, description="Batches of the plan in one optimizer step; the number of ranks must divide it."
    )
    seed: int = 42
    network: STDiT2Config
    diffusion: DiffusionConfig = IDDPMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    masks: MaskRatios | None = Field(None, description="Mixture of frame masks; none when absent.")
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    start_from: str | None = Field(
        None, description="URI of a checkpoint or of imported weights, where no parent is given; fresh when absent."
    )
    carry_optimizer: bool = Field(True, description="Start from the parent checkpoint's optimizer state.")
    precision: Literal["fp32", "bf16"] = "bf16"
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: Literal["none", "ddp", "fsdp", "colossalai"] = "none"
    sequence_parallel: int = Field(1, ge=1, description="Ranks that share the tokens of one batch, under ddp or fsdp.")
    processes: int | None = Field(
        None, ge=1, description="Ranks a machine starts by itself where no launcher did; one for each GPU when absent."
    )
    colossalai_plugin: Literal["ddp", "zero1"] = Field("zero1", description="What colossalai shards.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads; torch's own choice when absent.")
    sentinel: SentinelConfig = SentinelConfig()
    read_ahead_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Memory of each rank for latents and text read ahead or used last."
    )
    checkpoint_every: int = Field(500, ge=1)
    log_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints of a running stage that are kept.")
    keep_every: int | None = Field(None, ge=1, description="Checkpoints of steps that this divides are kept as well.")
    gate: PromotionGate | None = Field(None, description="Stops the chain of stages after a bad one; none when absent.")
    grace_s: float = Field(25.0, gt=0, description="From SIGTERM to the end of the process, saved or not.")
    hang_timeout_s: float | None = Field(
        1800.0, gt=0, description="Without a batch or a saved file for so long the process ends; never when absent."
    )
    touched_checkpoint: Literal["refuse", "go_back", "go_on"] = Field(
        "refuse",
        description="What to do about a checkpoint that has seen clips which are taken down since: stop, train again "
        "from before it saw any, or keep what it learnt.",
    )
    store_outage_s: float = Field(900.0, ge=0, description="How long a store that refuses checkpoints is put up with.")
    peak_flops_per_s: float | None = Field(
        None,
        gt=0,
        description="Of one device, for the utilisation; timed at the start when absent.",
    )

    @model_validator(mode="after")
    def _tokens_can_be_shared(self) -> Self:
        if self.sequence_parallel > 1 and self.parallel not in ("ddp", "fsdp"):
            raise ValueError(
                f"stage {self.name!r}: sequence_parallel {self.sequence_parallel} needs parallel ddp or fsdp, "
                f"not {self.parallel}"
            )
        return self

    @model_validator(mode="after")
    def _ranks_train_together(self) -> Self:
        if (self.processes or 1) > 1 and self.parallel == "none":
            raise ValueError(f"stage {self.name!r}: {self.processes} processes need parallel ddp or fsdp, not none")
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.optimizer.warmup_steps >= self.steps and self.optimizer.warmup_steps > 0:
            raise ValueError(
                f"stage {self.name!r}: warmup_steps {self.optimizer.warmup_steps} must be below steps {self.steps}"
            )
        return self


class TrackingConfig(Section):
    """Where in MLflow a run appears; the address comes from MLFLOW_TRACKING_URI."""

    experiment: str = Field("kinoflow", min_length=1)
    run_name: str = Field("run", pattern=r"^[^'\"`\\]+$", description="Finds the pipeline's run again; no quotes.")
    dataset_digest: str = Field("", description="Of the clips table; other data are refused. Any when empty.")
    source_version: str = Field("", description="Version of the source data, as DVC names it; a tag of the runs.")


Config = TypeVar("Config", bound=BaseModel)


def parse(kind: type[Config], data: str | dict[str, Any], where: str) -> Config:
    """Validate JSON text or a mapping; `KinoflowError` names the file, the key and what is wrong with it."""
    try:
        return kind.model_validate_json(data) if isinstance(data, str) else kind.model_validate(data)
    except ValidationError as error:
        first, *others = _causes(error)
        key = "".join(f"{part}." for part in first["loc"])
        more = f" (and {len(others)} more)" if others else ""
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key; check its spelling"
        elif first["type"] != "value_error" and isinstance(first["input"], int | float | str):
            message = f"{message}, not {first['input']!r}"
        raise KinoflowError(f"{where}: {key.removesuffix('.')}: {message}{more}.".replace(": : ", ": ")) from error


def _causes(error: ValidationError) -> list[ErrorDetails]:
    """Its faults without those that only follow: a list of which one item is wrong also counts as too short."""
    faults = error.errors()
    inner = [fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))]
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inner]


def load(kind: type[Config], path: Path) -> Config:
    """Read a config from a YAML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise KinoflowError(f"Could not read the config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise KinoflowError(f"The config {path} is not valid YAML or JSON: {error}.") from error
    if not isinstance(data, dict):
        raise KinoflowError(f"The config {path} must be a mapping of keys to values.")
    return parse(kind, data, str(path))


def load_or_parse(kind: type[Config], given: str, where: str) -> Config:
    """A config from a file, or from JSON that was given itself; `where` names it in errors."""
    return parse(kind, given, where) if given.lstrip().startswith("{") else load(kind, Path(given))


def flatten(values: Mapping[str, Any], max_chars: int, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names, their values as text of at most that many characters."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, max_chars, f"{prefix}{name}.")
        else:
            text = str(value)
            flat[prefix + name] = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return flat
