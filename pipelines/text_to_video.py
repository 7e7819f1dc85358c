"""The pipeline on one screen: videos in, three chained training stages, an evaluated checkpoint out."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from components import layout, store
from pipelines.cluster import Cluster
from pipelines.config import RunConfig
from pipelines.ops import IMAGE, Ops, make_ops

NAME = "text-to-video"
URI = "Output"  # Kubeflow's name for what a component returns


def build_pipeline(
    config: RunConfig, image: str = IMAGE, cluster: Cluster | None = None, data_image: str | None = None
) -> Callable[..., Any]:
    """The graph of one validated configuration, which a run may change in single values.

    Args:
        config: everything that decides the result.
        image: of all tasks.
        cluster: where pods find addresses and credentials; the environment of the runner when absent.
        data_image: of the tasks that need no network; `image` when absent.
    """
    ops = make_ops(image, dict.fromkeys(_without_torch(config), data_image) if data_image else None)
    if cluster:
        cluster.check_ranks(config.training)
    chain = _Chain(ops, config)

    def text_to_video(
        source: str,
        root: str = "s3://kinoflow/runs/{run}",
        objects: str = "s3://kinoflow/objects",
        latents: str = "s3://kinoflow/latents",
        run_name: str = "{run}",
        experiment: str = "kinoflow",
        source_version: str = "",
        preset: str = config.preset,
        overrides: str = "",
        start_at: str = "",
        stop_after: str = "",
        from_run: str = "",
    ) -> None:
        """Turn raw videos into an evaluated text-to-video checkpoint.

        1. configure: checks what was filled in. 2. ingest: sources into the object store. 3. curate: shots, scores,
        captions; by several tasks and a merge where there are many files. 4. bucket: batches, latents.
        5.-7. train: three stages, each from its parent's checkpoint. 8. evaluate: held-out loss and samples.
        Whatever happens, outcome writes down how it ended.

        Args:
            source: Folder, s3:// prefix, or table of videos and images.
            root: URI prefix of this run, without a slash at its end; every node writes below it; {run} is its id.
            objects: URI prefix that holds source files under their content hash; runs may share it.
            latents: URI prefix that holds latents and text features; runs may share it.
            run_name: Name of the run in MLflow; {run} is Kubeflow's id of it.
            experiment: MLflow experiment.
            source_version: Version of the source data (for example its DVC hash), recorded with every run.
            preset: Name of the preset this version was made from, or of another with the same stages.
            overrides: Single values to change, as YAML or JSON, for example {stages.0.steps: 500, seed: 7}.
            start_at: First part that works (ingest, curate, bucket, a stage, evaluate); all when empty.
            stop_after: Last part that works; all when empty.
            from_run: URI of the run whose results are taken before start_at; this run's own when empty.
        """
        end = ops.outcome(root=root, run_name=run_name, experiment=experiment).set_display_name("outcome")
        around = [end]
        with dsl.ExitHandler(exit_task=end, name="run"):
            settings = ops.configure(
                compiled=config.model_dump_json(exclude={"cluster"}), preset=preset, overrides=overrides,
                start_at=start_at, stop_after=stop_after, from_run=from_run,
            )  # fmt: skip
            around.append(settings)
            tracking = {"experiment": experiment, "run_name": run_name, "source_version": source_version}
            tasks, computing = chain.add(settings.outputs, source, root, objects, latents, tracking)
        for task in [*around, *tasks]:
            # Stages skip work that is already published; Kubeflow's own cache cannot see what lies in the store.
            task.set_caching_options(False)
            if cluster:
                cluster.equip(task, image, computes=task in computing)

    pipeline: Callable[..., Any] = dsl.pipeline(name=NAME, description=f"{config.preset}: {config.description}")(
        text_to_video
    )
    return pipeline


def _without_torch(config: RunConfig) -> tuple[str, ...]:
    """Tasks that the image without torch can do."""
    return ("ingest",) if config.curate.needs_torch else ("ingest", "curate", "curate_part", "merge")


class _Chain:
    """The tasks from videos to an evaluated checkpoint."""

    def __init__(self, ops: Ops, config: RunConfig) -> None:
        self._ops, self._config = ops, config

    def add(
        self, settings: Mapping[str, Any], source: str, root: str, objects: str, latents: str, tracking: dict[str, Any]
    ) -> tuple[list[Any], list[Any]]:
        """Add all tasks; returns them, and which of them compute with the network or the encoders."""
        ops, config = self._ops, self._config
        videos = ops.ingest(config=settings["ingest"], source=source, objects=objects, out=f"{root}/ingest")
        *shots, clips = self._curation(settings["curate"], videos=videos.outputs[URI], objects=objects, root=root)
        data = ops.bucket(
            config=settings["bucket"], clips=clips.outputs[URI], objects=objects, latents=latents,
            out=f"{root}/bucket",
        )  # fmt: skip
        tracking |= {"dataset_digest": data.outputs["dataset_digest"]}
        computing: list[Any] = [data]
        parent: dict[str, Any] = {}
        for number, stage in enumerate(config.stages, 1):
            checkpoint = ops.train(
                config=settings[f"stage_{number}"],
                data=data.outputs[URI],
                out=f"{root}/{stage.name}",
                **tracking,
                **parent,
            ).set_display_name(f"train {stage.name}")
            parent = {"parent": checkpoint.outputs[URI]}
            computing.append(checkpoint)
        evaluation = ops.evaluate(
            config=settings["evaluate"],
            checkpoint=checkpoint.outputs[URI],
            data=data.outputs[URI],
            clips=clips.outputs[URI],
            objects=objects,
            out=f"{root}/evaluate",
            **tracking,
        )
        computing.append(evaluation)
        return [videos, *shots, clips, *computing], computing

    def _curation(self, settings: Any, *, videos: Any, objects: str, root: str) -> list[Any]:
        """Tasks that end in the clips table: one, or one for each part of the files and one that merges them."""
        sources = {"config": settings, "videos": videos, "objects": objects}
        ops, parts = self._ops, self._config.curate_parts
        if parts == 1:
            return [ops.curate(**sources, out=f"{root}/curate")]
        shots = [
            ops.curate_part(
                **sources, part=part, parts=parts, out=f"{root}/shots/{layout.part_folder(part, parts)}"
            ).set_display_name(f"curate {part + 1} of {parts}")
            for part in range(parts)
        ]
        return [*shots, ops.merge(**sources, shots=f"{root}/shots", parts=parts, out=f"{root}/curate").after(*shots)]


def compile_pipeline(
    config: RunConfig,
    path: Path,
    image: str = IMAGE,
    cluster: Cluster | None = None,
    data_image: str | None = None,
) -> None:
    """Write the graph as the YAML that Kubeflow Pipelines and the local runner read."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        compiled = Path(scratch) / "graph.yaml"
        pipeline = build_pipeline(config, image, cluster, data_image)
        compiler.Compiler().compile(pipeline_func=pipeline, package_path=str(compiled))
        store.upload(compiled, str(path))
