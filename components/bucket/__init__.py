"""Bucket: kept clips become a plan for every training stage, and everything the plans need is encoded once.

The published prefix holds `plan-<stage>.safetensors` and `eval-<stage>.safetensors` (`components.plan_file`), the two
frozen encoders, and `index.parquet`, which names every latent and every caption's features with the SHA-256 of its
bytes. The tensors themselves lie in a place that all runs share (`components.shared_tensors`), so a run encodes only
what no run before it did; which part of that place holds which tensor is no property of the dataset and does not enter
its digest.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, tables
from components.bucket.encode import Window, encode_captions, encode_windows, encoding_digest, unique_windows
from components.bucket.encoders import EncoderSources, make_autoencoder, make_text_encoder
from components.bucket.plan import plan_evaluation, plan_training
from components.config import BucketConfig, StagePlanConfig
from components.errors import KinoflowError
from components.kept_clips import Clips
from components.leakage import check_leakage
from components.plan_file import PlanFile, held_out_plan, training_plan
from components.shards import Rows
from components.shared_tensors import (
    ANNOTATION,
    INDEX_FILE,
    Entry,
    SharedTensors,
    is_readable,
    publish_locations,
    write_index,
)
from components.takedown import ANNOTATION as TOMBSTONES
from components.takedown import Filed, beside, identity, in_force, meets

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


def bucket(config: BucketConfig, clips: str, objects: str, latents: str, out: str) -> BucketReport:
    """Plan every stage and encode every window and caption that a plan names and that was not encoded before.

    Args:
        config: Stages, encoders and limits.
        clips: URI prefix that curation published.
        objects: URI prefix of the source files.
        latents: URI prefix of latents and text features; runs share it.
        out: URI prefix of the result; left as it is when it was made from the same things already.

    Raises:
        KinoflowError: No clip was kept, no clip fits a stage, a size does not suit the autoencoder, an encoder folder
            cannot be read, or a source is missing or damaged.
    """
    check_config(config)
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        sources = EncoderSources.open(config, Path(scratch))
        kept, without = _kept_clips(clips, in_force(beside(objects)), Path(scratch))
        inputs = {"clips": manifest.load(clips).digest, **sources.digests, **identity(without)}
        found = manifest.reusable(out, KIND, config=config, inputs=inputs)
        if found is None or not is_readable(out, found, latents, Path(scratch) / "found"):
            making = _Making(config, kept, sources, objects=objects, latents=latents, out=out)
            with manifest.publish(out, KIND, config=config, inputs=inputs) as publication:
                facts = making.fill(publication.directory, Path(scratch))
                publication.facts.update(facts.model_dump(mode="json"))
                told = {"clips": clips, ANNOTATION: making.locations, TOMBSTONES: beside(objects)}
                publication.annotations.update(told)
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


def _kept_clips(clips: str, filed: Sequence[Filed], directory: Path) -> tuple[pl.DataFrame, list[str]]:
    """Kept clips that nobody took down, and the ids of those that were taken down after they were kept."""
    manifest.fetch(clips, directory, [CLIPS_TABLE], kind=CLIPS_KIND)
    table = tables.read(directory / CLIPS_TABLE, tables.CLIPS)
    kept = table.filter(pl.col("outcome") == "kept")
    is_taken = meets(kept, [each.tombstone.rules for each in filed])
    taken, kept = kept.filter(is_taken)["clip_id"].to_list(), kept.filter(~is_taken)
    if taken and not len(kept):
        raise KinoflowError(f"Every kept clip of {clips} is taken down; curate other videos.")
    if not len(kept):
        raise KinoflowError(f"{clips} keeps none of its {len(table)} clips; loosen the curation rules or add videos.")
    if not (kept["split"] == "train").any():
        raise KinoflowError(
            f"{clips} holds out all of its {len(kept)} kept clips for evaluation; lower eval_share or add videos."
        )
    check_leakage(kept)
    return kept, taken


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


class _Making:
    """One dataset in the making.

    Attributes:
        locations: URI of what says where its tensors lie, once it is filled.
    """

    def __init__(
        self, config: BucketConfig, kept: pl.DataFrame, sources: EncoderSources, *, objects: str, latents: str, out: str
    ) -> None:
        self.locations = ""
        self._config, self._kept, self._sources = config, kept, sources
        self._objects, self._latents, self._out = objects, latents, out

    def fill(self, directory: Path, scratch: Path) -> DatasetFacts:
        """Write plans, encoders and index into `directory`, tensors and their locations to the shared place."""
        config, kept = self._config, self._kept
        splits = [kept.filter(pl.col("split") == split) for split in ("train", "eval")]
        sides = [Clips.of(split, config.seed, config.draws) for split in splits]
        plans = {stage.name: plan_stage(config, stage, *sides) for stage in config.stages}
        for name, (plan, held_out) in plans.items():
            plan.save(directory / training_plan(name))
            held_out.save(directory / held_out_plan(name))
        intervals = [(part.windows(), part.frame_interval) for pair in plans.values() for part in pair]
        windows = unique_windows(intervals, kept)
        autoencoder = make_autoencoder(self._sources.autoencoder, config, windows, self._objects)
        autoencoder.save(directory / AUTOENCODER_FOLDER)
        text_encoder = make_text_encoder(self._sources.text_encoder, config, _captions(splits[0]))
        text_encoder.save(directory / TEXT_ENCODER_FOLDER)
        latents, features = (
            SharedTensors(self._latents, encoding_digest(encoder.digest), scratch)
            for encoder in (autoencoder, text_encoder)
        )
        psnr_db = encode_windows(windows, self._objects, autoencoder, latents, config.shard_size_bytes)
        text_keys = encode_captions(_captions(kept), text_encoder, features, config.shard_size_bytes)
        self._write_index(directory / INDEX_FILE, windows, latents, text_keys, features)
        return DatasetFacts(
            stages={name: _summary(plan, held_out, len(splits[0])) for name, (plan, held_out) in plans.items()},
            train_clips=len(splits[0]),
            eval_clips=len(splits[1]),
            latents=len(windows),
            captions=len(text_keys),
            latent_channels=autoencoder.latent_channels,
            caption_channels=text_encoder.caption_channels,
            model_max_length=text_encoder.model_max_length,
            autoencoder_psnr_db=psnr_db,
            autoencoder_digest=autoencoder.digest,
            text_encoder_digest=text_encoder.digest,
        )

    def _write_index(
        self,
        index: Path,
        windows: Sequence[Window],
        latents: SharedTensors,
        text_keys: Sequence[str],
        features: SharedTensors,
    ) -> None:
        entries = [Entry(window.key, window.shared_key, "latents") for window in windows]
        parts: list[Rows] = []
        shards: list[str] = []
        for shared, own in ((latents, entries), (features, [Entry(key, key, "text") for key in text_keys])):
            rows, names = shared.rows([entry.shared_key for entry in own])
            rows["shard"] += len(shards)
            parts.append(rows)
            shards += names
        entries += [Entry(key, key, "text") for key in text_keys]
        rows = np.concatenate(parts)
        write_index(index, entries, rows)
        self.locations = publish_locations(self._out, self._latents, entries, rows, shards, index)


def _captions(clips: pl.DataFrame) -> list[str]:
    return [caption or "" for caption in clips["caption"]]


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
