"""Bucket: kept clips become a plan for every training stage, and everything the plans need is encoded once.

The published prefix holds `plan-<stage>.safetensors` and `eval-<stage>.safetensors` (`components.plan_file`), the
shards of latents and text features (`components.shards`), and the two frozen encoders they were made with.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, tables
from components.bucket.clips import Clips
from components.bucket.encode import encode_captions, encode_windows, unique_windows
from components.bucket.encoders import EncoderSources, make_autoencoder, make_text_encoder
from components.bucket.plan import plan_evaluation, plan_training
from components.config import BucketConfig, StagePlanConfig
from components.errors import KinoflowError
from components.plan_file import PlanFile, held_out_plan, training_plan
from components.shards import ShardWriter

logger = logging.getLogger(__name__)

KIND = "dataset"
CLIPS_KIND = "clips"
CLIPS_TABLE = "clips.parquet"
AUTOENCODER_FOLDER = "autoencoder"
TEXT_ENCODER_FOLDER = "text_encoder"


class StageSummary(BaseModel):
    """What one stage will see; `clips_used + clips_unused` is the number of training clips."""

    model_config = ConfigDict(frozen=True)
    batches: int
    samples: int
    epochs: int
    clips_used: int
    clips_unused: int
    eval_batches: int
    eval_samples: int
    samples_per_bucket: dict[str, int]
    eval_samples_per_bucket: dict[str, int]


class DatasetFacts(BaseModel):
    """Facts stored with the plans and shards."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    stages: dict[str, StageSummary]
    train_clips: int
    eval_clips: int
    latents: int
    captions: int
    latent_channels: int
    caption_channels: int
    model_max_length: int
    autoencoder_psnr_db: float | None
    autoencoder_digest: str
    text_encoder_digest: str


class BucketReport(DatasetFacts):
    """What was planned and encoded, and the digest of the manifest that vouches for it."""

    manifest_digest: str


def bucket(config: BucketConfig, clips: str, objects: str, out: str) -> BucketReport:
    """Plan every stage and encode every window and caption that a plan names.

    Args:
        config: Stages, encoders and limits.
        clips: URI prefix that curation published.
        objects: URI prefix of the source files.
        out: URI prefix of the result; left as it is when it was made from the same things already.

    Raises:
        KinoflowError: No clip was kept, no clip fits a stage, a size does not suit the autoencoder, an encoder folder
            cannot be read, or a source is missing or damaged.
    """
    check_config(config)
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        sources = EncoderSources.open(config, Path(scratch))
        inputs = {"clips": manifest.load(clips).digest, **sources.digests}
        found = manifest.reusable(out, KIND, config=config, inputs=inputs)
        if found is None:
            table = _kept_clips(clips, Path(scratch))
            with manifest.publish(out, KIND, config=config, inputs=inputs) as publication:
                facts = _make(config, table, objects, sources, publication.directory)
                publication.facts.update(facts.model_dump(mode="json"))
                publication.annotations["clips"] = clips
            found = publication.manifest
            assert found is not None
    logger.info("planned %d stages into %s", len(config.stages), out)
    return BucketReport.model_validate({**found.facts, "manifest_digest": found.digest})


def check_config(config: BucketConfig) -> None:
    """Refuse what cannot work before any work is done.

    Raises:
        KinoflowError: Two stages share a name.
    """
    repeated = [name for name, count in Counter(stage.name for stage in config.stages).items() if count > 1]
    if repeated:
        raise KinoflowError(f"Two stages are called {repeated[0]!r}; give every stage a name of its own.")


def _kept_clips(clips: str, directory: Path) -> pl.DataFrame:
    manifest.fetch(clips, directory, [CLIPS_TABLE], kind=CLIPS_KIND)
    table = tables.read(directory / CLIPS_TABLE, tables.CLIPS)
    kept = table.filter(pl.col("outcome") == "kept")
    if not len(kept):
        raise KinoflowError(f"{clips} keeps none of its {len(table)} clips; loosen the curation rules or add videos.")
    if not (kept["split"] == "train").any():
        raise KinoflowError(
            f"{clips} holds out all of its {len(kept)} kept clips for evaluation; lower eval_share or add videos."
        )
    return kept


def plan_stage(
    config: BucketConfig, stage: StagePlanConfig, train: Clips, held_out: Clips
) -> tuple[PlanFile, PlanFile]:
    """Training plan and held-out plan of one stage.

    Args:
        config: Seed, batches of a step and limits.
        stage: Its bucket table and steps.
        train: Kept clips to train on.
        held_out: Kept clips to evaluate on.
    """
    plan = plan_training(
        train,
        stage.buckets,
        stage=stage.name,
        seed=config.seed,
        num_batches=stage.steps * config.batches_per_step,
        crops_per_clip=config.crops_per_clip,
        cost_group=config.cost_group or config.batches_per_step,
    )
    return plan, plan_evaluation(held_out, stage.buckets, batches_per_bucket=config.eval_batches_per_bucket)


def _make(
    config: BucketConfig, kept: pl.DataFrame, objects: str, sources: EncoderSources, directory: Path
) -> DatasetFacts:
    """Fill `directory` with plans, encoders and shards."""
    sides = [Clips.of(kept.filter(pl.col("split") == split), config.seed, config.draws) for split in ("train", "eval")]
    plans = {stage.name: plan_stage(config, stage, *sides) for stage in config.stages}
    for name, (plan, held_out) in plans.items():
        plan.save(directory / training_plan(name))
        held_out.save(directory / held_out_plan(name))
    intervals = [(part.windows(), part.frame_interval) for pair in plans.values() for part in pair]
    windows = unique_windows(intervals, kept)
    captions = [caption or "" for caption in kept["caption"]]
    train_captions = [caption or "" for caption in kept.filter(pl.col("split") == "train")["caption"]]
    autoencoder = make_autoencoder(sources.autoencoder, config, windows, objects)
    autoencoder.save(directory / AUTOENCODER_FOLDER)
    text_encoder = make_text_encoder(sources.text_encoder, config, train_captions)
    text_encoder.save(directory / TEXT_ENCODER_FOLDER)
    with ShardWriter(directory, config.shard_size_bytes) as shards:
        psnr_db = encode_windows(windows, objects, autoencoder, shards)
        num_captions = encode_captions(captions, text_encoder, shards)
    train_clips = int((kept["split"] == "train").sum())
    return DatasetFacts(
        stages={name: _summary(plan, held_out, train_clips) for name, (plan, held_out) in plans.items()},
        train_clips=train_clips,
        eval_clips=len(kept) - train_clips,
        latents=len(windows),
        captions=num_captions,
        latent_channels=autoencoder.latent_channels,
        caption_channels=text_encoder.caption_channels,
        model_max_length=text_encoder.model_max_length,
        autoencoder_psnr_db=psnr_db,
        autoencoder_digest=autoencoder.digest,
        text_encoder_digest=text_encoder.digest,
    )


def _summary(plan: PlanFile, held_out: PlanFile, train_clips: int) -> StageSummary:
    return StageSummary(
        batches=len(plan),
        samples=plan.num_samples,
        epochs=plan.num_epochs,
        clips_used=plan.num_clips,
        clips_unused=train_clips - plan.num_clips,
        eval_batches=len(held_out),
        eval_samples=held_out.num_samples,
        samples_per_bucket=plan.samples_per_bucket,
        eval_samples_per_bucket=held_out.samples_per_bucket,
    )
