"""What runs inside a pipeline task: read the stage's config, call the stage, publish its address.

The Kubeflow shells in `pipelines.ops` call `run_stage` and nothing else, so a task does the same work as
`python -m components.<stage>`. Importing this needs no kfp: it also runs in an image that holds only kfp's executor.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import logging
import os
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components import layout, manifest, store
from components.cli import LOG_FORMAT, PROGRESS_FILE_VARIABLE, report_error, user_sentence
from components.config import TrackingConfig, parse
from components.errors import KinoflowError
from components.progress import append_event
from pipelines.cluster import RUN_VARIABLE, TRAINJOB_VARIABLE, Placement
from pipelines.skipping import has_result, read_skip, skipped_result
from pipelines.waiting import wait_for_http

WAIT_VARIABLE = "KINOFLOW_WAIT_FOR"
"""Address of a tracking server that is still starting; whoever started it names it, and the first stage waits."""
TRACKING_TIMEOUT_S = 120.0
REPORTED = (
    "steps", "loss_first", "loss_last", "samples_per_s", "seconds", "restarts", "skipped_steps", "held_out_loss",
    "parent_held_out_loss",
)  # fmt: skip
NOTHING_DONE = "<!doctype html><title>left out</title><p>The run stops before this task."
Input = str | int | None
RUN_MARK = "{run}"
"""Stands for Kubeflow's id of the run in a task's inputs: a schedule starts every run with the same inputs."""


def stage_function(stage: str) -> Callable[..., Any]:
    """The function behind a stage, `components.<stage>.<stage>`, or behind `<stage>.<function>`."""
    package, _, name = stage.partition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(f"components.{package}"), name or package)
    return function


def stage_arguments(function: Callable[..., Any], where: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Turn what a task received into the arguments of a stage function.

    `config` is JSON and becomes the class that the function asks for; the fields of `TrackingConfig` together become
    its `tracking`; everything else is passed as it is.

    Raises:
        KinoflowError: the config is invalid, or an input has no place in the function's signature.
    """
    kinds = typing.get_type_hints(function)
    arguments: dict[str, Any] = dict(inputs)
    arguments["config"] = parse(kinds["config"], inputs["config"] or "", f"config of {where}")
    if "tracking" in kinds:
        chosen = {name: arguments.pop(name) for name in TrackingConfig.model_fields if name in arguments}
        arguments["tracking"] = TrackingConfig(**chosen)
    unknown = sorted(set(arguments) - set(inspect.signature(function).parameters))
    if unknown:
        raise KinoflowError(
            f"{where} does not take {', '.join(unknown)}; compile the pipeline again with this version."
        )
    return arguments


def with_run(inputs: Mapping[str, Input]) -> dict[str, Input]:
    """The inputs of a task with `{run}` replaced by the id of Kubeflow's run.

    Raises:
        KinoflowError: the pod was not told the id.
    """
    texts = {name: value for name, value in inputs.items() if name != "config" and isinstance(value, str)}
    marked = {name: value for name, value in texts.items() if RUN_MARK in value}
    run = os.environ.get(RUN_VARIABLE, "")
    if marked and not run:
        raise KinoflowError(f"{min(marked)} holds {RUN_MARK}, which only a run of Kubeflow Pipelines can fill in.")
    return {**inputs, **{name: value.replace(RUN_MARK, run) for name, value in marked.items()}}


def run_stage(
    stage: str,
    manifest_path: str,
    dataset_digest_path: str | None = None,
    report_path: str | None = None,
    metrics: dict[str, Any] | None = None,
    **inputs: str | int | None,
) -> str:
    """Run one stage as a pipeline task and return the URI of what it published.

    Args:
        stage: name of the stage and of its function in `components`, or `<stage>.<function>`.
        manifest_path: local file that receives `{"uri", "kind", "digest"}` of the result.
        dataset_digest_path: local file that receives the digest of the dataset of the result, when given.
        report_path: local file that receives the page for people, where the stage writes one.
        metrics: receives the numbers of a stage that trains, for the run's page.
        inputs: the task's parameters; see `stage_arguments`.

    A mistake the user can mend ends the process with one sentence on stderr and exit code 1.
    """
    node = str(inputs["out"]).rstrip("/").rsplit("/", 1)[-1]
    with as_task(node):
        started_s = time.monotonic()
        _tell(node=node, state="running", inputs=inputs)
        try:
            inputs = with_run(inputs)
            skip = read_skip(str(inputs["config"]))
            uri = skipped_result(stage, node, skip, str(inputs["out"])) if skip else _publish(stage, node, inputs)
            published = None if skip and not has_result(stage, skip) else manifest.load(uri)
        except Exception:
            _tell(node=node, state="failed", seconds=time.monotonic() - started_s)
            raise
        facts = {
            "uri": uri,
            "kind": published.kind if published else "",
            "digest": published.digest if published else "",
        }
        store.write_bytes(str(Path(manifest_path).resolve()), json.dumps(facts).encode())
        if dataset_digest_path is not None:
            digest = published.dataset_digest if published else ""
            store.write_bytes(str(Path(dataset_digest_path).resolve()), digest.encode())
        if report_path is not None:
            if published:
                store.download(store.join(uri, layout.PAGE), Path(report_path).resolve())
            else:
                store.write_bytes(str(Path(report_path).resolve()), NOTHING_DONE.encode())
        if metrics is not None and published:
            metrics.update(_numbers(store.join(uri.rpartition("/")[0], layout.REPORT)))
        _tell(node=node, state="done", seconds=time.monotonic() - started_s)
    # The process ends here, and would look through every object of every library again on its way out.
    gc.freeze()
    return uri


@contextmanager
def as_task(node: str) -> Iterator[None]:
    """Logging on, and mistakes as one sentence with exit code 1, around the work of a pipeline task."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    try:
        yield
    except Exception as error:
        sentence = user_sentence(error)
        report_error(sentence or f"{type(error).__name__}: {error}")
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _numbers(report: str) -> dict[str, float]:
    """What a stage's report says in numbers, for the run's page in Kubeflow."""
    told = json.loads(store.read_bytes(report))
    return {name: float(told[name]) for name in REPORTED if isinstance(told.get(name), int | float)}


def _publish(stage: str, node: str, inputs: Mapping[str, Input]) -> str:
    """Do the work here, or wait for the job that does it; returns the URI of the result."""
    function = stage_function(stage)
    arguments = stage_arguments(function, node, dict(inputs))
    if "tracking" in arguments and WAIT_VARIABLE in os.environ:
        wait_for_http(os.environ[WAIT_VARIABLE], TRACKING_TIMEOUT_S)
    out = str(arguments["out"])
    if stage == "train" and TRAINJOB_VARIABLE in os.environ:
        from pipelines.dvc import final_checkpoint
        from pipelines.trainjob_waiting import train_by_job

        train_by_job(parse(Placement, os.environ[TRAINJOB_VARIABLE], TRAINJOB_VARIABLE), **arguments)
        return final_checkpoint(out)
    return str(getattr(function(**arguments), "checkpoint", "") or out)


def _tell(**event: object) -> None:
    """Tell a parent that draws our progress, if there is one."""
    path = os.environ.get(PROGRESS_FILE_VARIABLE)
    if path:
        append_event(path, event)
