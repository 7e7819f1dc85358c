"""Bringing the graph to Kubeflow Pipelines: registered as a version, started, scheduled and followed."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from components import store
from components.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PREEMPTED
from components.errors import KinoflowError
from pipelines.cluster import Cluster
from pipelines.config import RunConfig
from pipelines.configure import configure
from pipelines.following import follow, task_names
from pipelines.kubeflow import Kubeflow, KubeflowAway, KubeflowError, kubeflow_cron, public
from pipelines.shell import RUN_MARK

EXIT_CANCELED = 3
EXIT_UNKNOWN = EXIT_PREEMPTED
"""The server is away and the run's outcome unknown: following again may tell (EX_TEMPFAIL of sysexits.h)."""
ENDINGS = {"succeeded": 0, "failed": EXIT_FAILED, "canceled": EXIT_CANCELED}
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST_CHARS = 12
PARTIAL = ("start_at", "stop_after", "from_run")
"""Inputs that only runs of a part of the chain have."""


@dataclass(frozen=True)
class Submission:
    """What to run on a cluster and where its parts go.

    Attributes:
        source: s3:// prefix or table of videos.
        name: of the run, in Kubeflow, in the store and in MLflow.
        base: URI below which `runs/<name>`, `objects` and `latents` lie, unless they are given themselves.
        experiment: of Kubeflow and of MLflow.
        pipeline: name of the pipeline in Kubeflow; every change of the graph becomes a version of it.
        service_account: the pods run as; the server's default when empty.
        recurring: it is started by a schedule, again and again.
        data_image: of the tasks that need no network; `image` when empty.
        start_at, stop_after: parts of the chain; the whole chain when empty.
        from_run: URI of the run whose results are taken before `start_at`.
    """

    config: RunConfig
    image: str
    cluster: Cluster
    source: str
    name: str
    base: str
    root: str = ""
    objects: str = ""
    latents: str = ""
    experiment: str = "kinoflow"
    source_version: str = ""
    pipeline: str = "kinoflow"
    service_account: str = ""
    recurring: bool = False
    data_image: str = ""
    start_at: str = ""
    stop_after: str = ""
    from_run: str = ""

    def arguments(self) -> dict[str, str]:
        """The graph's inputs; every run of a schedule fills in its own id."""
        name = f"{self.name}-{RUN_MARK}" if self.recurring else self.name
        return {
            "source": self.source,
            "root": self.root or store.join(self.base, "runs", name),
            "objects": self.objects or store.join(self.base, "objects"),
            "latents": self.latents or store.join(self.base, "latents"),
            "run_name": name,
            "experiment": self.experiment,
            "source_version": self.source_version,
            **{name: getattr(self, name) for name in PARTIAL if getattr(self, name)},
        }

    def check(self) -> None:
        """Find mistakes before anything is asked of the cluster.

        Raises:
            KinoflowError: a name that cannot be used, or a place that pods do not see.
        """
        if not RUN_NAME.fullmatch(self.name):
            raise KinoflowError(
                f"The run name {self.name!r} cannot be used; take small letters, digits, '.', '_' and '-', at most 63."
            )
        if not self.source:
            raise KinoflowError("No videos are named; give --videos s3://bucket/prefix, or the s3:// URI of a table.")
        for name in ("source", "root", "objects", "latents"):
            uri = self.arguments()[name]
            if not store.is_s3(uri):
                option = "videos" if name == "source" else name
                raise KinoflowError(f"--{option} {uri}: pods do not see this machine; give an s3:// URI.")
            store.split_s3(uri)
        given = {name: getattr(self, name) for name in PARTIAL}
        configure(self.config.model_dump_json(exclude={"cluster"}), preset="", overrides="", **given)
        if self.recurring and RUN_MARK not in self.arguments()["root"]:
            raise KinoflowError(
                f"--root {self.root}: every run of a schedule needs a place of its own; write {RUN_MARK} in it, "
                "which becomes the run's id."
            )


@dataclass(frozen=True)
class Registered:
    """A version of the pipeline at the server."""

    pipeline_id: str
    version_id: str
    graph: dict[str, Any]


def register(kubeflow: Kubeflow, submission: Submission, console: Console) -> Registered:
    """Compile the graph and make it a version of the pipeline, unless these very bytes are one already."""
    from pipelines.text_to_video import compile_pipeline

    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        path = Path(scratch) / "pipeline.yaml"
        compile_pipeline(submission.config, path, submission.image, submission.cluster, submission.data_image or None)
        content = path.read_bytes()
        version = f"{Path(submission.config.preset).stem}-{hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]}"
        pipeline_id = kubeflow.pipeline(submission.pipeline, "Kinoflow: raw videos to an evaluated checkpoint.")
        version_id, uploaded = kubeflow.version(pipeline_id, version, path)
    say(console, f"pipeline  {submission.pipeline}, {'new' if uploaded else 'known'} version {version}")
    say(console, f"          {kubeflow.settings.ui()}/#/pipelines/details/{pipeline_id}/version/{version_id}")
    return Registered(pipeline_id, version_id, next(yaml.safe_load_all(content)))


def start(kubeflow: Kubeflow, submission: Submission, registered: Registered, console: Console) -> str:
    """Start one run; returns its id."""
    from kfp_server_api import V2beta1Run

    experiment_id = kubeflow.experiment(submission.experiment)
    started = kubeflow.start(
        V2beta1Run(display_name=submission.name, **_request(submission, registered, experiment_id))
    )
    run_id = str(started.run_id)
    say(console, f"run       {submission.name} ({run_id})")
    links(kubeflow, run_id, submission.experiment, submission.name, console)
    return run_id


def schedule(
    kubeflow: Kubeflow, submission: Submission, registered: Registered, cron: str, console: Console
) -> str:  # fmt: skip
    """Make a recurring run, never two at a time and none for what was missed; returns its id."""
    from kfp_server_api import V2beta1CronSchedule, V2beta1RecurringRun, V2beta1Trigger

    wanted = V2beta1RecurringRun(
        display_name=submission.name,
        trigger=V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=kubeflow_cron(cron))),
        mode="ENABLE", max_concurrency="1", no_catchup=True,
        **_request(submission, registered, kubeflow.experiment(submission.experiment)),
    )  # fmt: skip
    made = str(kubeflow.schedule(wanted).recurring_run_id)
    say(console, f"schedule  {submission.name} ({made}): {kubeflow_cron(cron)}")
    say(console, f"          {kubeflow.settings.ui()}/#/recurringrun/details/{made}")
    return made


def _request(submission: Submission, registered: Registered, experiment_id: str) -> dict[str, Any]:
    """What runs and recurring runs are both told."""
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1RuntimeConfig

    return {
        "experiment_id": experiment_id,
        "description": f"{submission.config.preset}; submission {uuid.uuid4().hex}",
        "pipeline_version_reference": V2beta1PipelineVersionReference(
            pipeline_id=registered.pipeline_id, pipeline_version_id=registered.version_id
        ),
        "runtime_config": V2beta1RuntimeConfig(parameters=submission.arguments()),
        "service_account": submission.service_account or None,
    }


def links(kubeflow: Kubeflow, run_id: str, experiment: str, run_name: str, console: Console) -> None:
    """Print where a run can be looked at."""
    say(console, f"Kubeflow  {kubeflow.settings.ui()}/#/runs/details/{run_id}")
    tracking = public(os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    if tracking.startswith(("http://", "https://")):
        say(console, f"MLflow    {tracking}/#/experiments (experiment {experiment}, run {run_name})")
    else:
        say(console, f"MLflow    experiment {experiment}, run {run_name} (MLFLOW_TRACKING_URI is not set here)")


def follow_to_the_end(
    kubeflow: Kubeflow, run_id: str, graph: dict[str, Any], console: Console, poll_s: float
) -> int:  # fmt: skip
    """Follow a run; returns the exit code that tells how it ended."""
    again = f"follow it again with `kinoflow follow {run_id}`"
    try:
        end = follow(kubeflow, run_id, task_names(graph), console, poll_s)
    except KeyboardInterrupt:
        say(console, f"The run goes on without being followed; {again}.")
        return EXIT_INTERRUPTED
    except KubeflowAway as error:
        say(console, f"error: {error} The run may go on; {again}.")
        return EXIT_UNKNOWN
    except KubeflowError as error:
        raise KubeflowError(f"{error} The run may go on; {again}.") from error
    failed = [name for name, state in end.tasks.items() if state == "FAILED"]
    reason = end.errors.get("") or next((end.errors[name] for name in failed if name in end.errors), "")
    where = f" in {', '.join(failed)}" if failed else ""
    say(console, f"The run has {end.ending}{where}{f': {reason}' if reason and end.ending != 'succeeded' else ''}.")
    return ENDINGS[end.ending]


def graph_of(kubeflow: Kubeflow, run: Any) -> dict[str, Any]:
    """The compiled graph that a run was started from; empty when the server does not say."""
    reference = run.pipeline_version_reference
    if reference and reference.pipeline_id and reference.pipeline_version_id:
        return kubeflow.graph(reference.pipeline_id, reference.pipeline_version_id)
    spec = run.pipeline_spec or {}
    found: dict[str, Any] = spec.get("pipeline_spec", spec)
    return found


def say(console: Console, text: str) -> None:
    """Print one line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
