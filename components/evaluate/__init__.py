"""Evaluate: held-out loss, generated samples of every task, and what can be measured on them, for people to look at."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from components import layout, manifest, progress, store
from components.batches import BatchReader
from components.champion import challenge, measured_tags
from components.config import EvaluateConfig, TrackingConfig
from components.evaluate import page
from components.evaluate.features import Extractor, ImageModel, compared, measured_shapes
from components.evaluate.references import HeldOut, made_clips
from components.evaluate.samples import Sample, measured, scores_of
from components.evaluate.stages import compare_stages
from components.evaluate.tasks import Job, plan_jobs
from components.generation import Bundle, generate, load_bundle
from components.held_out import HeldOutLoss, held_out_losses, open_held_out, overall_loss
from components.intervals import Score, named
from components.layout import PROMOTION
from components.lineage.seen import touched_by
from components.media import Frames
from components.registry import version_tags
from components.shapes.world import parse_caption
from components.takedown import identity, kept_of, taken_down
from components.takedown.tombstones import digest_of_ids
from components.tracking import Tracker, open_tracker
from components.tracking.names import RULE, SCORES

logger = logging.getLogger(__name__)
KIND = "evaluation"
VERDICT_TIMEOUT_S = 60.0
METRICS = "metrics.json"
COMPARED = ("text_to_video", "image_to_video")
"""Tasks whose clips are compared with real ones: of the others too much is given."""


class EvaluateReport(BaseModel):
    """What an evaluation found; also the content of `metrics.json`.

    Attributes:
        held_out_loss: mean over all held-out clips, with its interval; None without any.
        held_out: the same by bucket and timestep.
        scores: by task and name of `metrics.METRICS`.
        samples: number of generated samples.
    """

    model_config = ConfigDict(frozen=True)
    checkpoint_digest: str
    stage: str
    held_out_loss: float | None
    held_out_loss_low: float | None
    held_out_loss_high: float | None
    held_out: tuple[HeldOutLoss, ...]
    scores: dict[str, dict[str, Score]]
    samples: int
    taken_down_clips: int = 0
    tombstones: tuple[str, ...] = ()


def evaluate(
    config: EvaluateConfig,
    tracking: TrackingConfig,
    *,
    checkpoint: str,
    data: str,
    clips: str,
    objects: str,
    out: str,
) -> EvaluateReport:
    """Evaluate one checkpoint and publish metrics, samples and a report.

    Args:
        config: what to generate and measure.
        tracking: where the run appears in MLflow.
        checkpoint: URI of a checkpoint prefix.
        data: URI of the bucket output it was trained on.
        clips: URI of the curate output, for held-out captions and first frames.
        objects: URI of the source videos.
        out: URI of the prefix to publish.
    """
    published = manifest.load(checkpoint)
    manifest.require_dataset(checkpoint, published, tracking.dataset_digest)
    dataset = manifest.load(data)
    inputs = {"checkpoint": published.digest, "data": dataset.digest, "clips": manifest.load(clips).digest}
    taken = taken_down(data, dataset)
    inputs |= identity(kept_of(clips, taken))
    num_seen, tombstones = touched_by(checkpoint)
    if num_seen:
        inputs["seen_and_taken_down"] = digest_of_ids(tombstones)
        told = ", ".join(sorted(tombstones))
        logger.warning("%s was trained on %d clips that are taken down since (%s).", checkpoint, num_seen, told)
    done = manifest.reusable(out, KIND, config=config, inputs=inputs)
    if done is not None:
        logger.info("evaluation at %s is up to date", out)
        return EvaluateReport.model_validate_json(store.read_bytes(store.join(out, METRICS)))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    stage = str(published.facts["stage"])
    extractor = _extractor(config)
    with (
        tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch,
        open_tracker(tracking, task="evaluate", params={"evaluate": config.model_dump(mode="json")}) as tracker,
    ):
        local = Path(scratch)
        bundle = load_bundle(checkpoint, data, use_ema=config.sampling.use_ema)

        @cache
        def held_out() -> HeldOut:
            return HeldOut(config, clips, objects, local, taken)

        jobs = plan_jobs(config, held_out)
        with manifest.publish(out, KIND, config=config, inputs=inputs) as publication:
            with open_held_out(data, stage, local / "data") as batches:
                losses, samples = _draw(config, bundle, batches, jobs)
            scores = _scores(config, samples, extractor, held_out)
            report = _report(bundle, stage, losses, scores, len(samples), tombstones, num_seen)
            _write(config, report, samples, checkpoint, publication)
            _track(tracker, config, tracking, report, publication.directory, checkpoint, published)
            _attach_curation(tracker, clips, local)
            verdict = tracker.verdict(VERDICT_TIMEOUT_S)
            publication.annotations |= {PROMOTION: verdict} if verdict else {}
        prompts = [case.request.prompt for job in jobs if job.num_frames > 1 for case in job.cases]
        compare_stages(config, tracking.run_name, prompts=prompts, checkpoint=checkpoint, out=out, tracker=tracker)
    return report


def _report(
    bundle: Bundle,
    stage: str,
    losses: list[HeldOutLoss],
    scores: dict[str, dict[str, Score]],
    num_samples: int,
    tombstones: set[str],
    num_seen: int,
) -> EvaluateReport:
    overall = overall_loss(losses)
    return EvaluateReport(
        checkpoint_digest=bundle.checkpoint_digest, stage=stage, held_out_loss=overall.mean if overall else None,
        held_out_loss_low=overall.low if overall else None, held_out_loss_high=overall.high if overall else None,
        held_out=tuple(losses), scores=scores, samples=num_samples, taken_down_clips=num_seen,
        tombstones=tuple(sorted(tombstones)),
    )  # fmt: skip


def _write(
    config: EvaluateConfig,
    report: EvaluateReport,
    samples: list[Sample],
    checkpoint: str,
    publication: manifest.Publication,
) -> None:
    page.write(
        publication.directory, samples, stage=report.stage, checkpoint_digest=report.checkpoint_digest,
        scores=report.scores, held_out=report.held_out, histories=_histories(checkpoint),
        num_saved=config.num_saved, saved_fps=config.sampling.saved_fps, taken_down_clips=report.taken_down_clips,
        tombstones=report.tombstones,
    )  # fmt: skip
    (publication.directory / METRICS).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    publication.facts = json.loads(report.model_dump_json())
    publication.annotations = {"checkpoint": checkpoint}


def _extractor(config: EvaluateConfig) -> Extractor | None:
    """What clips are compared by: a configured model, the made world's checker, or nothing."""
    if config.feature_folder is not None:
        return ImageModel(config.feature_folder)
    return measured_shapes if config.measure_shapes else None


def _draw(
    config: EvaluateConfig, bundle: Bundle, batches: BatchReader, jobs: list[Job]
) -> tuple[list[HeldOutLoss], list[Sample]]:
    total = len(batches) + sum(len(job.cases) for job in jobs)
    with progress.task("evaluate", total) as bar:
        held_out = held_out_losses(
            bundle.network, bundle.diffusion, batches, timesteps=config.timesteps, seed=config.seed,
            on_batch=lambda: bar.advance(1, "held-out loss"),
        )  # fmt: skip
        samples: list[Sample] = []

        def advance(count: int) -> None:
            bar.advance(count, job.task)

        for job in jobs:
            clips = generate(
                bundle, [case.request for case in job.cases], num_frames=job.num_frames, height=config.height,
                width=config.width, sampling=config.sampling_of(job.task), batch_size=config.batch_size,
                on_batch=advance,
            )  # fmt: skip
            samples += measured(job, clips, bundle, with_truth=config.measure_shapes)
    return held_out, samples


def _scores(
    config: EvaluateConfig, samples: list[Sample], extractor: Extractor | None, held_out: Callable[[], HeldOut]
) -> dict[str, dict[str, Score]]:
    """All scores by task, those that compare many clips with many others included."""
    scores = scores_of(samples)
    if extractor is None:
        return scores
    for task in scores:
        drawn = [sample for sample in samples if sample.task == task]
        prompts = [sample.prompt for sample in drawn]
        real = None
        if task in COMPARED:
            real = extractor(_real_clips(config, prompts, held_out))
        scores[task] |= compared(extractor, [sample.frames for sample in drawn], prompts, real)
    return scores


def _real_clips(config: EvaluateConfig, prompts: Iterable[str], held_out: Callable[[], HeldOut]) -> list[Frames]:
    """Real clips to compare with: of the made world those of the same prompts, else held-out ones."""
    if config.measure_shapes:
        scenes = [scene for prompt in prompts if (scene := parse_caption(prompt)) is not None]
        clips = made_clips(scenes, config.seed, config.num_frames, config)
    else:
        clips = held_out().clips(config.num_reference_clips, config.num_frames)
    return [clip.frames for clip in clips]


def _histories(checkpoint: str) -> dict[str, list[dict[str, float]]]:
    """Logged losses of the checkpoint's stage and of the stages before it, oldest first."""
    histories: dict[str, list[dict[str, float]]] = {}
    here: str | None = checkpoint
    while here:
        stage_prefix, _, _ = here.rstrip("/").rpartition("/")
        try:
            document = json.loads(store.read_bytes(store.join(stage_prefix, layout.REPORT)))
        except store.ObjectMissing:
            break
        histories = {document["name"]: document.get("history", [])} | histories
        here = document.get("parent_checkpoint")
    return histories


def _attach_curation(tracker: Tracker, clips: str, scratch: Path) -> None:
    """The page about the clips goes where the one about the network goes; a table of another kind has none."""
    if layout.PAGE in manifest.load(clips).files:
        store.download(store.join(clips, layout.PAGE), scratch / layout.PAGE)
        tracker.log_artifact(scratch / layout.PAGE, "curation")


def _track(
    tracker: Tracker,
    config: EvaluateConfig,
    tracking: TrackingConfig,
    report: EvaluateReport,
    folder: Path,
    checkpoint: str,
    published: manifest.Manifest,
) -> None:
    metrics = named(report.scores, "suite")
    for row in report.held_out:
        where = f"held_out/{row.bucket.replace(' ', '-')}"
        metrics |= {where: row.loss, f"{where}_low": row.low, f"{where}_high": row.high}
        for point in row.by_timestep:
            there = f"{where}/by_timestep"
            values = {there: point.mean, f"{there}_low": point.low, f"{there}_high": point.high}
            tracker.log_metrics(values, step=point.timestep)
    overall = {name: getattr(report, name) for name in ("held_out_loss", "held_out_loss_low", "held_out_loss_high")}
    metrics |= {name: value for name, value in overall.items() if value is not None}
    tracker.log_metrics(metrics, step=0)
    tracker.log_dataset("clips", published.dataset_digest, checkpoint, "evaluation")
    for name in (METRICS, layout.PAGE, page.SHEET):
        if (folder / name).exists():
            tracker.log_artifact(folder / name)
    for path in sorted((folder / page.SAMPLES).glob("*")):
        tracker.log_artifact(path, "samples")
    tags = version_tags(checkpoint, published, tracking, metrics) | measured_tags(config, published)
    if report.taken_down_clips:
        tags |= {"taken_down_clips": str(report.taken_down_clips), "tombstones": ", ".join(report.tombstones)}
    tracker.set_tags({name: value for name, value in tags.items() if name not in (SCORES, RULE)})
    tracker.register_model(config.registered_model, checkpoint, config.alias, tags, challenge(config.promotion))
    manifest.pin(checkpoint, f"models:/{config.registered_model}@{config.alias}")
