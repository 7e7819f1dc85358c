"""A whole run in one file: what `kinoflow run --preset NAME` reads, checks and hands to every stage."""

from __future__ import annotations

from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from components import layout
from components.config import (
    BucketConfig,
    CurateConfig,
    Draws,
    EvaluateConfig,
    IngestConfig,
    OptimizerConfig,
    PromotionGate,
    Section,
    StagePlanConfig,
    TrainConfig,
    parse,
)
from components.errors import KinoflowError
from model.buckets import BucketTable
from model.config import STDiT2Config
from model.diffusion_config import DiffusionConfig, IDDPMConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.mask_config import MaskRatios
from model.sentinel_config import SentinelConfig
from pipelines.cluster import Cluster

RUN_CONFIG = "config.json"
"""In the local folder of a run: everything that decided it."""
RESERVED_NAMES = {"ingest", "shots", "curate", "bucket", "evaluate", layout.GRIDS, layout.COMPARISON, "used-by"}


class StageConfig(Section):
    """One of the chained training stages."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    steps: int = Field(gt=0, description="Optimizer steps.")
    buckets: BucketTable
    optimizer: OptimizerConfig = OptimizerConfig()
    masks: MaskRatios | None = None
    activation_checkpointing: bool = False
    carry_optimizer: bool = True
    gate: PromotionGate | None = None


class TrainingDefaults(Section):
    """What all stages share."""

    ema_decay: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    parallel: Literal["none", "ddp", "fsdp", "colossalai"] = "none"
    sequence_parallel: int = Field(1, ge=1, description="Ranks that share the tokens of one batch, under ddp or fsdp.")
    processes: int | None = Field(None, ge=1, description="Ranks of each machine; one for each GPU when absent.")
    colossalai_plugin: Literal["ddp", "zero1"] = Field("zero1", description="What colossalai shards.")
    batches_per_step: int = Field(1, ge=1, description="Of the plan; the number of ranks must divide it.")
    checkpoint_every: int = Field(500, ge=1)
    log_every: int = Field(10, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    sentinel: SentinelConfig = SentinelConfig()
    read_ahead_bytes: int = Field(256 << 20, ge=1 << 20)


class DemoData(Section):
    """Source videos made on the spot, with known truth; only for runs that are given no videos."""

    num_videos: int = Field(ge=1)
    num_images: int = Field(ge=0)
    seed: int = 0
    folder: str = Field("data", description="Where they are kept, below the project's folder.")


class RunConfig(Section):
    """Everything that decides the result of a run."""

    preset: str
    description: str
    seed: int = 42
    trainable_here: bool = Field(True, description="False for presets that are validated and planned only.")
    num_threads: int | None = Field(None, ge=1)
    demo_data: DemoData | None = None
    ingest: IngestConfig = IngestConfig()
    curate: CurateConfig = CurateConfig()
    curate_parts: int = Field(
        1, ge=1, le=1000, description="Tasks of the graph that share the files to curate; the result is the same."
    )
    autoencoder_folder: str | None = None
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text_encoder_folder: str | None = None
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    crops_per_clip: int | None = 2
    cost_group: int | None = Field(None, ge=1)
    draws: Draws = "opensora-1.1"
    eval_batches_per_bucket: int = Field(2, ge=1)
    network: STDiT2Config = STDiT2Config()
    diffusion: DiffusionConfig = IDDPMConfig()
    training: TrainingDefaults = TrainingDefaults()
    start_from: str | None = Field(
        None, description="What the first stage starts from: URI of a checkpoint or of imported weights."
    )
    stages: tuple[StageConfig, ...] = Field(min_length=3, max_length=3)
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: Cluster | None = Field(None, description="Where pods of the graph run; changes no result.")

    @model_validator(mode="after")
    def _checks(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or RESERVED_NAMES & set(names):
            reserved = ", ".join(sorted(RESERVED_NAMES))
            raise ValueError(f"stage names must differ and be none of {reserved}; got {', '.join(names)}")
        self.bucket_config()
        for stage in self.stages:
            self.train_config(stage.name)
        return self

    def _encoder_widths(self) -> dict[str, int]:
        """Options of the network that the encoders decide; those given as folders tell theirs when they are loaded."""
        widths: dict[str, int] = {}
        if self.autoencoder_folder is None:
            widths["in_channels"] = self.autoencoder.latent_channels
        if self.text_encoder_folder is None:
            widths["caption_channels"] = self.text_encoder.hidden_size
            widths["model_max_length"] = self.text_encoder.model_max_length
        return widths

    def trained_network(self) -> STDiT2Config:
        """The network with the widths that its encoders decide.

        Raises:
            ValueError: the preset states another width itself.
        """
        widths = self._encoder_widths()
        for name, width in widths.items():
            stated = getattr(self.network, name)
            if stated not in (width, STDiT2Config.model_fields[name].default):
                raise ValueError(f"network.{name} is {stated}, but the encoders make it {width}; leave it out")
        return STDiT2Config.model_validate({**self.network.model_dump(), **widths})

    def bucket_config(self) -> BucketConfig:
        """What the `bucket` component is told."""
        plans = tuple(StagePlanConfig(name=s.name, buckets=s.buckets, steps=s.steps) for s in self.stages)
        return BucketConfig(
            seed=self.seed,
            stages=plans,
            autoencoder_folder=self.autoencoder_folder,
            autoencoder=self.autoencoder,
            text_encoder_folder=self.text_encoder_folder,
            text_encoder=self.text_encoder,
            crops_per_clip=self.crops_per_clip,
            batches_per_step=self.training.batches_per_step,
            cost_group=self.cost_group,
            draws=self.draws,
            eval_batches_per_bucket=self.eval_batches_per_bucket,
        )

    def train_config(self, name: str) -> TrainConfig:
        """What the `train` component is told for the stage of that name."""
        stage = next(stage for stage in self.stages if stage.name == name)
        return TrainConfig(
            **self.training.model_dump(),
            name=stage.name,
            steps=stage.steps,
            seed=self.seed,
            network=self.trained_network(),
            diffusion=self.diffusion,
            optimizer=stage.optimizer,
            masks=stage.masks,
            activation_checkpointing=stage.activation_checkpointing,
            start_from=self.start_from if stage is self.stages[0] else None,
            carry_optimizer=stage.carry_optimizer,
            gate=stage.gate,
            num_threads=self.num_threads,
        )

    def evaluate_config(self) -> EvaluateConfig:
        """What the `evaluate` component is told."""
        if self.evaluate.num_threads is not None:
            return self.evaluate
        return self.evaluate.model_copy(update={"num_threads": self.num_threads})

    def component_configs(self) -> dict[str, Section]:
        """Every component's config by the name of the prefix it writes below the run's root, in graph order."""
        trains = {stage.name: self.train_config(stage.name) for stage in self.stages}
        before = {"ingest": self.ingest, "curate": self.curate, "bucket": self.bucket_config()}
        return {**before, **trains, "evaluate": self.evaluate_config()}

    def nodes(self) -> list[str]:
        """Names of the graph's tasks in order: what each calls the prefix it writes."""
        names = list(self.component_configs())
        if self.curate_parts > 1:
            parts = (layout.part_folder(part, self.curate_parts) for part in range(self.curate_parts))
            names[names.index("curate") : names.index("curate")] = parts
        return names


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("pipelines") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_run_config(preset: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a preset by name, or a YAML file by path, and apply dotted overrides such as `stages.0.steps`.

    Raises:
        KinoflowError: unknown preset or key, or a value that breaks a rule.
    """
    return parse(RunConfig, preset_values(preset, overrides), f"preset {preset}")


def preset_values(preset: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `load_run_config` checks: the values that the file itself names, with the overrides applied.

    Raises:
        KinoflowError: unknown preset, or a file that is no mapping.
    """
    path = Path(preset)
    if preset in preset_names():
        text = (resources.files("pipelines") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise KinoflowError(
            f"There is no preset {preset!r}; choose one of {', '.join(preset_names())}, or give a YAML file."
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KinoflowError(f"The preset {preset} is not valid YAML: {error}.") from error
    if not isinstance(data, dict):
        raise KinoflowError(f"The preset {preset} must be a mapping of keys to values.")
    values: dict[str, Any] = _unshared(data)
    for key, value in (overrides or {}).items():
        override(values, key, deepcopy(value))
    return values


def _unshared(value: Any) -> Any:
    """A copy in which no two places are one object: YAML's anchors make such, and an override would change all."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def override(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one value inside nested mappings and lists; a missing mapping on the way is made.

    Raises:
        KinoflowError: there is no such place.
    """
    *parents, last = dotted.split(".")
    here: Any = data
    for part in parents:
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise KinoflowError(f"override {dotted}: {part!r} is not an index of a list of {len(here)}.")
            here = here[int(part)]
        elif isinstance(here, dict):
            here = here.setdefault(_key(here, part), {})
        else:
            raise KinoflowError(f"override {dotted}: there is nothing below {part!r}.")
    if isinstance(here, dict):
        here[_key(here, last)] = value
    elif isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise KinoflowError(f"override {dotted}: there is no {last!r}.")


def _key(mapping: dict[Any, Any], part: str) -> Any:
    """Frame counts of a bucket table are whole numbers in YAML, text in a dotted override."""
    return int(part) if part.isdigit() and int(part) in mapping else part
