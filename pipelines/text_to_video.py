"""The pipeline on one screen: videos in, three chained training stages, an evaluated checkpoint out."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from components import layout, store
from pipelines.cluster import Cluster
from pipelines.config import RunConfig
from pipelines.ops import IMAGE, Ops, make_ops

NAME = "text-to-video"
URI = "Output"  # Kubeflow's name for what a component returns


def build_pipeline(config: RunConfig, image: str = IMAGE, cluster: Cluster | None = None) -> Callable[..., Any]:
    """The graph of one validated configuration; its settings are constants in the compiled file.

    Args:
        config: everything that decides the result.
        image: of all tasks.
        cluster: where pods find addresses and credentials; the environment of the runner when absent.
    """
    ops = make_ops(image)
    if cluster:
        cluster.check_ranks(config.training)

    def text_to_video(
        source: str,
        root: str,
        objects: str,
        latents: str,
        run_name: str,
        experiment: str = "kinoflow",
        source_version: str = "",
    ) -> None:
        """Turn raw videos into an evaluated text-to-video checkpoint.

        1. ingest: sources into the object store. 2. curate: shots, scores, captions; by several tasks and a merge
        where there are many files. 3. bucket: batches, latents.
        4.-6. train: three stages, each from its parent's checkpoint. 7. evaluate: held-out loss and samples.

        Args:
            source: Folder, s3:// prefix, or table of videos and images.
            root: URI prefix of this run, without a slash at its end; every node writes below it.
            objects: URI prefix that holds source files under their content hash; runs may share it.
            latents: URI prefix that holds latents and text features; runs may share it.
            run_name: Name of the run in MLflow.
            experiment: MLflow experiment.
            source_version: Version of the source data (for example its DVC hash), recorded with every run.
        """
        videos = ops.ingest(
            config=config.ingest.model_dump_json(), source=source, objects=objects, out=f"{root}/ingest"
        )
        *shots, clips = _curation(ops, config, videos=videos.outputs[URI], objects=objects, root=root)
        data = ops.bucket(
            config=config.bucket_config().model_dump_json(),
            clips=clips.outputs[URI],
            objects=objects,
            latents=latents,
            out=f"{root}/bucket",
        )
        tracking = {"experiment": experiment, "run_name": run_name, "source_version": source_version}
        tracking |= {"dataset_digest": data.outputs["dataset_digest"]}
        computing: list[Any] = [data]
        parent: dict[str, Any] = {}
        for stage in config.stages:
            checkpoint = ops.train(
                config=config.train_config(stage.name).model_dump_json(),
                data=data.outputs[URI],
                out=f"{root}/{stage.name}",
                **tracking,
                **parent,
            ).set_display_name(f"train {stage.name}")
            parent = {"parent": checkpoint.outputs[URI]}
            computing.append(checkpoint)
        evaluation = ops.evaluate(
            config=config.evaluate_config().model_dump_json(),
            checkpoint=checkpoint.outputs[URI],
            data=data.outputs[URI],
            clips=clips.outputs[URI],
            objects=objects,
            out=f"{root}/evaluate",
            **tracking,
        )
        computing.append(evaluation)
        for task in [videos, *shots, clips, *computing]:
            # Stages skip work that is already published; Kubeflow's own cache cannot see what lies in the store.
            task.set_caching_options(False)
            if cluster:
                cluster.equip(task, image, computes=task in computing)

    pipeline: Callable[..., Any] = dsl.pipeline(name=NAME, description=f"{config.preset}: {config.description}")(
        text_to_video
    )
    return pipeline


def _curation(ops: Ops, config: RunConfig, *, videos: Any, objects: str, root: str) -> list[Any]:
    """Tasks that end in the clips table: one, or one for each part of the files and one that merges them."""
    sources = {"config": config.curate.model_dump_json(), "videos": videos, "objects": objects}
    parts = config.curate_parts
    if parts == 1:
        return [ops.curate(**sources, out=f"{root}/curate")]
    shots = [
        ops.curate_part(
            **sources, part=part, parts=parts, out=f"{root}/shots/{layout.part_folder(part, parts)}"
        ).set_display_name(f"curate {part + 1} of {parts}")
        for part in range(parts)
    ]
    return [*shots, ops.merge(**sources, shots=f"{root}/shots", parts=parts, out=f"{root}/curate").after(*shots)]


def compile_pipeline(config: RunConfig, path: Path, image: str = IMAGE, cluster: Cluster | None = None) -> None:
    """Write the graph as the YAML that Kubeflow Pipelines and the local runner read."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        compiled = Path(scratch) / "graph.yaml"
        compiler.Compiler().compile(pipeline_func=build_pipeline(config, image, cluster), package_path=str(compiled))
        store.upload(compiled, str(path))
