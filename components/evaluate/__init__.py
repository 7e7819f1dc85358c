"""Evaluate: held-out loss, generated samples, and what can be measured on them, for people to look at."""

from __future__ import annotations

import base64
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, JsonValue

from components import layout, manifest, progress, store, video
from components.batches import BatchReader
from components.champion import challenge, measured_tags
from components.config import EvaluateConfig, TrackingConfig
from components.evaluate import truth
from components.evaluate.pictures import Sample, contact_sheet, plot_held_out, plot_losses
from components.evaluate.stages import compare_stages
from components.evaluate.tasks import Job, plan_jobs
from components.generation import Bundle, generate, load_bundle, to_frames, to_pixels
from components.held_out import (
    HeldOutLoss,
    held_out_losses,
    mean_held_out_loss,
    open_held_out,
    timesteps_of,
)
from components.layout import PROMOTION
from components.lineage.seen import touched_by
from components.registry import version_tags
from components.takedown import identity, kept_of, taken_down
from components.takedown.tombstones import digest_of_ids
from components.tracking import Tracker, open_tracker
from components.tracking.names import RULE, SCORES

logger = logging.getLogger(__name__)
KIND = "evaluation"
VERDICT_TIMEOUT_S = 60.0
METRICS, REPORT, SHEET = "metrics.json", layout.PAGE, "contact_sheet.png"


class EvaluateReport(BaseModel):
    """What an evaluation found; also the content of `metrics.json`."""

    model_config = ConfigDict(frozen=True)
    checkpoint_digest: str
    stage: str
    held_out_loss: float | None
    held_out: tuple[HeldOutLoss, ...]
    truth: dict[str, dict[str, float]]
    first_frame: dict[str, float] | None
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
    with (
        tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch,
        open_tracker(tracking, task="evaluate", params={"evaluate": config.model_dump(mode="json")}) as tracker,
    ):
        local = Path(scratch)
        with manifest.publish(out, KIND, config=config, inputs=inputs) as publication:
            bundle = load_bundle(checkpoint, data, use_ema=config.sampling.use_ema)
            jobs = plan_jobs(config, clips=clips, objects=objects, taken=taken, scratch=local)
            with open_held_out(data, stage, local / "data") as batches:
                samples, measured = _measure(config, bundle, batches, stage, jobs)
            seen = {"taken_down_clips": num_seen, "tombstones": tuple(sorted(tombstones))}
            report = measured.model_copy(update=seen)
            folder = publication.directory
            _write(folder, config, report, samples, histories=_histories(checkpoint))
            (folder / METRICS).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
            publication.facts = json.loads(report.model_dump_json())
            publication.annotations = {"checkpoint": checkpoint}
            _track(tracker, config, tracking, report, folder, checkpoint, published)
            _attach_curation(tracker, clips, local)
            verdict = tracker.verdict(VERDICT_TIMEOUT_S)
            publication.annotations |= {PROMOTION: verdict} if verdict else {}
        prompts = [request.prompt for job in jobs if job.num_frames > 1 for request in job.requests]
        compare_stages(config, tracking.run_name, prompts=prompts, checkpoint=checkpoint, out=out, tracker=tracker)
    return report


def _measure(
    config: EvaluateConfig, bundle: Bundle, batches: BatchReader, stage: str, jobs: list[Job]
) -> tuple[list[Sample], EvaluateReport]:
    total = len(batches) + sum(len(job.requests) for job in jobs)
    with progress.task("evaluate", total) as bar:
        held_out = held_out_losses(
            bundle.network, bundle.diffusion, batches, timesteps=config.timesteps, seed=config.seed,
            on_batch=lambda: bar.advance(1, "held-out loss"),
        )  # fmt: skip
        samples: list[Sample] = []

        def advance(count: int) -> None:
            bar.advance(count, job.task)

        for job in jobs:
            frames = generate(
                bundle, job.requests, num_frames=job.num_frames, height=config.height, width=config.width,
                sampling=config.sampling, batch_size=config.batch_size,
                on_batch=advance,
            )  # fmt: skip
            samples += [job.sample(index, clip, judged=config.measure_shapes) for index, clip in enumerate(frames)]
    report = EvaluateReport(
        checkpoint_digest=bundle.checkpoint_digest,
        stage=stage,
        held_out_loss=mean_held_out_loss(held_out),
        held_out=tuple(held_out),
        truth=truth.summarise(samples),
        first_frame=_first_frame(bundle, samples),
        samples=len(samples),
    )
    return samples, report


def _first_frame(bundle: Bundle, samples: list[Sample]) -> dict[str, float] | None:
    given = [sample for sample in samples if sample.reference is not None]
    if not given:
        return None
    references = np.stack([sample.reference for sample in given if sample.reference is not None])
    rebuilt = to_frames(bundle.autoencoder.decode(bundle.autoencoder.encode(to_pixels(references)[None])))[0]
    return truth.first_frame_fidelity(given, rebuilt)


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


def _write(
    folder: Path,
    config: EvaluateConfig,
    report: EvaluateReport,
    samples: list[Sample],
    histories: dict[str, list[dict[str, float]]],
) -> None:
    saved: dict[str, list[dict[str, JsonValue]]] = {}
    shown: list[Sample] = []
    counts: dict[str, int] = {}
    for sample in samples:
        index = counts[sample.task] = counts.get(sample.task, 0) + 1
        if index > config.num_saved:
            continue
        shown.append(sample)
        path = _save(sample, folder / "samples", index, config.sampling.saved_fps)
        entry: dict[str, JsonValue] = {
            "prompt": sample.prompt, "seed": sample.seed, "is_video": len(sample.frames) > 1,
            "verdict": dict(sample.verdict) if sample.verdict else None,
            "data": base64.b64encode(path.read_bytes()).decode(),
        }  # fmt: skip
        saved.setdefault(sample.task, []).append(entry)
    if shown:
        contact_sheet(list(_interleaved(shown)), folder / SHEET)
    steps = [float(step) for step in timesteps_of(config.timesteps)]
    curves = {row.bucket: list(row.by_timestep) for row in report.held_out}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        title="Kinoflow evaluation",
        checkpoint=report.stage,
        checkpoint_digest=report.checkpoint_digest,
        taken_down_clips=report.taken_down_clips,
        tombstones=report.tombstones,
        truth=report.truth,
        truth_names=truth.NAMES,
        first_frame=report.first_frame,
        held_out=report.held_out,
        held_out_plot=base64.b64encode(plot_held_out(curves, steps)).decode() if curves else None,
        loss_plot=base64.b64encode(plot_losses(histories)).decode(),
        samples_by_task=saved,
    )
    (folder / REPORT).write_text(page, encoding="utf-8")


def _interleaved(samples: list[Sample]) -> Iterator[Sample]:
    """At most eight rows of each task, tasks one after the other, so that the sheet fits a page."""
    seen: dict[str, int] = {}
    for sample in samples:
        seen[sample.task] = seen.get(sample.task, 0) + 1
        if seen[sample.task] <= 8:
            yield sample


def _save(sample: Sample, folder: Path, index: int, fps: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{sample.task}-{index:02d}"
    if len(sample.frames) == 1:
        path = folder / f"{name}.png"
        video.write_image(path, sample.frames[0])
    else:
        path = folder / f"{name}.mp4"
        video.write_video(path, sample.frames, fps)
    return path


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
    metrics = {f"held_out/{row.bucket.replace(' ', '-')}": row.loss for row in report.held_out}
    if report.held_out_loss is not None:
        metrics["held_out_loss"] = report.held_out_loss
    for task, row in report.truth.items():
        metrics |= {f"truth/{task}/{name}": value for name, value in row.items()}
    if report.first_frame:
        metrics |= {f"first_frame/{name}": value for name, value in report.first_frame.items()}
    tracker.log_metrics(metrics, step=0)
    tracker.log_dataset("clips", published.dataset_digest, checkpoint, "evaluation")
    for name in (METRICS, REPORT, SHEET):
        if (folder / name).exists():
            tracker.log_artifact(folder / name)
    for path in sorted((folder / "samples").glob("*")):
        tracker.log_artifact(path, "samples")
    tags = version_tags(checkpoint, published, tracking, metrics) | measured_tags(config, published)
    if report.taken_down_clips:
        tags |= {"taken_down_clips": str(report.taken_down_clips), "tombstones": ", ".join(report.tombstones)}
    tracker.set_tags({name: value for name, value in tags.items() if name not in (SCORES, RULE)})
    tracker.register_model(config.registered_model, checkpoint, config.alias, tags, challenge(config.promotion))
    manifest.pin(checkpoint, f"models:/{config.registered_model}@{config.alias}")
