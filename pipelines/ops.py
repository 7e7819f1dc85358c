"""The Kubeflow shells: one per stage, or per part of one, no logic, nothing installed at run time.

Each body is one import and one call, because Kubeflow ships a function's source on its own. A task receives text
only: the stage's config as JSON, and URIs. It returns the URI of what it published and leaves a small manifest
(`{"uri", "kind", "digest"}`) as its artifact; videos, latents and weights never pass through Kubeflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Metrics, Model, Output, OutputPath, PipelineTaskFinalStatus

IMAGE = "kinoflow-python:0.1.0"


def configure(
    compiled: str,
    preset: str,
    overrides: str,
    start_at: str,
    stop_after: str,
    from_run: str,
    ingest: OutputPath(str),  # type: ignore[valid-type]
    curate: OutputPath(str),  # type: ignore[valid-type]
    bucket: OutputPath(str),  # type: ignore[valid-type]
    stage_1: OutputPath(str),  # type: ignore[valid-type]
    stage_2: OutputPath(str),  # type: ignore[valid-type]
    stage_3: OutputPath(str),  # type: ignore[valid-type]
    evaluate: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Check what a person filled in, and say what every task is told: its config as JSON, or that it is skipped.

    Args:
        compiled: RunConfig of the preset that the graph was made from, as JSON.
        preset: name of that one, or of another that comes with the image.
        overrides: YAML or JSON of dotted keys and values.
        start_at: first part of the chain that works.
        stop_after: last part of the chain that works.
        from_run: URI of the run whose results are taken before `start_at`.
        ingest: its config.
        curate: its config.
        bucket: its config.
        stage_1: config of the first training stage.
        stage_2: config of the second.
        stage_3: config of the third.
        evaluate: its config.
    """
    from pipelines.configure import write_configs

    return write_configs(
        [ingest, curate, bucket, stage_1, stage_2, stage_3, evaluate], compiled=compiled, preset=preset,
        overrides=overrides, start_at=start_at, stop_after=stop_after, from_run=from_run,
    )  # fmt: skip


def outcome(status: PipelineTaskFinalStatus, root: str, run_name: str, experiment: str) -> None:
    """Write down how the run ended, whatever happened: at its root and in MLflow.

    Args:
        status: how Kubeflow saw the rest of the graph end.
        root: URI of the run.
        run_name: Name of the whole run in MLflow.
        experiment: MLflow experiment.
    """
    from pipelines.outcome import record_as_task

    return record_as_task(
        state=status.state, message=status.error_message or "", root=root, run_name=run_name, experiment=experiment
    )


def ingest(config: str, source: str, objects: str, out: str, manifest: Output[Dataset]) -> str:
    """Copy the sources into the object store; one row per file, ingested or rejected with a reason.

    Args:
        config: IngestConfig as JSON.
        source: Folder, s3:// prefix, or table of videos and images.
        objects: URI prefix that holds the files under their content hash.
        out: URI prefix of the videos table.
        manifest: Address and digest of the result.
    """
    from pipelines.shell import run_stage

    return run_stage("ingest", manifest.path, config=config, source=source, objects=objects, out=out)


def curate(config: str, videos: str, objects: str, out: str, manifest: Output[Dataset], report: Output[HTML]) -> str:
    """Cut sources into shots, score, caption and filter them; one row per clip, kept or dropped with a reason.

    Args:
        config: CurateConfig as JSON.
        videos: URI prefix of the videos table.
        objects: URI prefix that holds the files.
        out: URI prefix of the clips table.
        manifest: Address and digest of the result.
        report: The ledger as a page.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "curate", manifest.path, report_path=report.path, config=config, videos=videos, objects=objects, out=out
    )


def curate_part(
    config: str, videos: str, objects: str, part: int, parts: int, out: str, manifest: Output[Dataset]
) -> str:
    """Cut one part of the sources into shots and score them; `merge` decides about the shots of all parts.

    Args:
        config: CurateConfig as JSON.
        videos: URI prefix of the videos table.
        objects: URI prefix that holds the files.
        part: Which part, from 0.
        parts: How many there are.
        out: URI prefix of the table of shots.
        manifest: Address and digest of the result.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "curate.curate_part", manifest.path, config=config, videos=videos, objects=objects, part=part, parts=parts,
        out=out,
    )  # fmt: skip


def merge(
    config: str,
    videos: str,
    objects: str,
    shots: str,
    parts: int,
    out: str,
    manifest: Output[Dataset],
    report: Output[HTML],
) -> str:
    """Caption and filter the shots of all parts; one row per clip, kept or dropped with a reason.

    Args:
        config: CurateConfig as JSON.
        videos: URI prefix of the videos table.
        objects: URI prefix that holds the files.
        shots: URI prefix below which all parts lie.
        parts: How many there are.
        out: URI prefix of the clips table.
        manifest: Address and digest of the result.
        report: The ledger as a page.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "curate.merge", manifest.path, report_path=report.path, config=config, videos=videos, objects=objects,
        shots=shots, parts=parts, out=out,
    )  # fmt: skip


def bucket(
    config: str,
    clips: str,
    objects: str,
    latents: str,
    out: str,
    manifest: Output[Dataset],
    dataset_digest: OutputPath(str),  # type: ignore[valid-type]
) -> str:
    """Plan the batches of every training stage and encode what they need: latents and text features.

    Args:
        config: BucketConfig as JSON.
        clips: URI prefix of the clips table.
        objects: URI prefix that holds the files.
        latents: URI prefix of latents and text features; runs share it.
        out: URI prefix of plans, encoders and index.
        manifest: Address and digest of the result.
        dataset_digest: What the tasks that read the result are told to expect.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "bucket", manifest.path, dataset_digest, config=config, clips=clips, objects=objects, latents=latents, out=out
    )  # fmt: skip


def train(
    config: str,
    experiment: str,
    run_name: str,
    dataset_digest: str,
    source_version: str,
    data: str,
    out: str,
    manifest: Output[Model],
    metrics: Output[Metrics],
    parent: Optional[str] = None,  # noqa: UP045 - Kubeflow reads this annotation
) -> str:
    """Run one training stage from a parent checkpoint, or from fresh weights.

    Args:
        config: TrainConfig as JSON.
        experiment: MLflow experiment.
        run_name: Name of the whole run in MLflow.
        dataset_digest: Of the clips that the run is to read; others are refused.
        source_version: Of the source data, recorded with the run.
        data: URI prefix of plans and index.
        parent: URI of the checkpoint to start from.
        out: URI prefix of this stage's checkpoints.
        manifest: Address and digest of the final checkpoint.
        metrics: What the run's page shows of it.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "train", manifest.path, metrics=metrics.metadata, config=config, experiment=experiment, run_name=run_name,
        dataset_digest=dataset_digest, source_version=source_version, data=data, parent=parent, out=out,
    )  # fmt: skip


def evaluate(
    config: str,
    experiment: str,
    run_name: str,
    dataset_digest: str,
    source_version: str,
    checkpoint: str,
    data: str,
    clips: str,
    objects: str,
    out: str,
    manifest: Output[Artifact],
    report: Output[HTML],
) -> str:
    """Measure the final checkpoint on held-out clips, generate samples, register the model.

    Args:
        config: EvaluateConfig as JSON.
        experiment: MLflow experiment.
        run_name: Name of the whole run in MLflow.
        dataset_digest: Of the clips that the run is to read; others are refused.
        source_version: Of the source data, recorded with the run.
        checkpoint: URI of the checkpoint.
        data: URI prefix of plans, encoders and index.
        clips: URI prefix of the clips table.
        objects: URI prefix that holds the files.
        out: URI prefix of metrics, report and samples.
        manifest: Address and digest of the result.
        report: What people look at.
    """
    from pipelines.shell import run_stage

    return run_stage(
        "evaluate", manifest.path, report_path=report.path, config=config, experiment=experiment, run_name=run_name,
        dataset_digest=dataset_digest, source_version=source_version, checkpoint=checkpoint, data=data, clips=clips,
        objects=objects, out=out,
    )  # fmt: skip


STAGES = (ingest, curate, bucket, train, evaluate)
PARTS_OF_CURATE = (curate_part, merge)
"""Together they do what `curate` does, on several machines."""
AROUND = (configure, outcome)
"""The first task and the last one."""


@dataclass(frozen=True)
class Ops:
    """The components, each bound to its image."""

    configure: Any
    ingest: Any
    curate: Any
    curate_part: Any
    merge: Any
    bucket: Any
    train: Any
    evaluate: Any
    outcome: Any


def make_ops(image: str = IMAGE, images: Mapping[str, str] | None = None) -> Ops:
    """Kubeflow components; name images by digest, Kubeflow's cache compares the text.

    Args:
        image: of every component that `images` does not name.
        images: of single components, by name.
    """
    made = {}
    for stage in (*STAGES, *PARTS_OF_CURATE, *AROUND):
        shell = dsl.component(base_image=(images or {}).get(stage.__name__, image), install_kfp_package=False)
        made[stage.__name__] = shell(stage)
    return Ops(**made)
