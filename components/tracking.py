"""Runs, metrics, artifacts and registered models in MLflow. The only file that imports mlflow.

The address comes from MLFLOW_TRACKING_URI; without it nothing is tracked. Everything is sent by one background
thread: trouble with the server costs one warning and the unsent numbers, never the work that is being tracked.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from components.config import TrackingConfig, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

RUN_TAG, TASK_TAG = "kinoflow.run", "kinoflow.task"
DATASET_TAG, SOURCE_TAG = "kinoflow.dataset_digest", "kinoflow.source_version"
PIPELINE_TASK = "pipeline"
FLUSH_INTERVAL_S = 2.0
RETRY_INTERVAL_S = 30.0
SYSTEM_INTERVAL_S = 10.0
MAX_PENDING_METRICS = 200_000
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
MAX_PARAM_CHARS = 500
MAX_DIGEST_CHARS = 36  # the tag has the whole
# The server is on the same network: an answer that takes longer than this is not worth waiting for.
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Answers that another attempt would not change.
PERMANENT_ERRORS = {
    "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_CONFLICT", "PERMISSION_DENIED", "UNAUTHENTICATED", "FEATURE_DISABLED", "NOT_IMPLEMENTED",
}  # fmt: skip

Status = Literal["FINISHED", "FAILED", "KILLED"]
Operation = Callable[["MlflowClient", str], None]


class Tracker:
    """What a stage may tell about its run; no call waits for the server or fails. This one tracks nothing."""

    def run_id(self, timeout_s: float = 0.0) -> str:
        """The MLflow run's id; empty when there is none (yet) after waiting up to `timeout_s`."""
        return ""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record what shaped the run; nested mappings become dotted names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of one step."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags of the run."""

    def log_dataset(self, name: str, digest: str, uri: str, context: str) -> None:
        """Record the dataset the run reads, as an input and as a tag; `context` is "training" or "evaluation"."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Attach a local file as it is now."""

    def register_model(self, name: str, source: str, alias: str, tags: Mapping[str, str]) -> None:
        """Make the checkpoint at `source` a version of the registered model and give it the alias."""


class MlflowTracker(Tracker):
    """Sends to an MLflow server from a background thread.

    Args:
        uri: address of the server.
        tracking: experiment and pipeline run.
        task: name of the stage's nested run.
        system_metrics: also record processor, memory, disk, network and (where readable) GPU load.
    """

    def __init__(self, uri: str, tracking: TrackingConfig, task: str, *, system_metrics: bool = True) -> None:
        self._uri, self._tracking, self._task = uri, tracking, task
        self._operations: deque[Operation] = deque()
        self._metrics: deque[tuple[str, float, int, int]] = deque(maxlen=MAX_PENDING_METRICS)
        self._run_id = self._parent_id = ""
        self._client: MlflowClient | None = None
        self._settled, self._closing = threading.Event(), threading.Event()
        self._status: Status = "FINISHED"
        self._warned = False
        self._retry_at_s = 0.0
        self._sampler = SystemSampler() if system_metrics else None
        self._attachments = tempfile.TemporaryDirectory(prefix="kinoflow-")
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @override
    def run_id(self, timeout_s: float = 0.0) -> str:
        self._settled.wait(timeout_s)
        return self._run_id

    @override
    def log_params(self, params: Mapping[str, Any]) -> None:
        flat = list(flatten(params, MAX_PARAM_CHARS).items())
        for start in range(0, len(flat), PARAMS_PER_CALL):
            self._operations.append(_send_params(flat[start : start + PARAMS_PER_CALL]))

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        self._metrics.extend((name, float(value), now_ms, step) for name, value in metrics.items())

    @override
    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._operations.append(_send_tags(dict(tags)))

    @override
    def log_dataset(self, name: str, digest: str, uri: str, context: str) -> None:
        self._operations.append(_send_dataset(name, digest[:MAX_DIGEST_CHARS], uri, context))
        self._operations.append(_send_tags({DATASET_TAG: digest}))

    @override
    def log_artifact(self, path: Path, folder: str = "") -> None:
        # a copy, because it is sent later and the caller's folder may be gone by then
        kept = Path(tempfile.mkdtemp(dir=self._attachments.name)) / path.name
        try:
            shutil.copyfile(path, kept)
        except OSError as error:
            logger.warning("%s is not attached to the run %r: %s.", path, self._task, error.strerror)
            return
        self._operations.append(lambda client, run_id: client.log_artifact(run_id, str(kept), folder or None))

    @override
    def register_model(self, name: str, source: str, alias: str, tags: Mapping[str, str]) -> None:
        self._operations.append(_send_model_version(name, source, alias, dict(tags)))

    def close(self, status: Status, timeout_s: float) -> None:
        """Send what is left, mark the run as ended and let go; give up after `timeout_s`."""
        self._status = status
        self._closing.set()
        self._thread.join(timeout_s)
        left = len(self._metrics) + len(self._operations)
        if left or self._thread.is_alive():
            logger.warning("%d records of the run %r were not sent to MLflow.", left, self._task)
        self._attachments.cleanup()

    # --- the background thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            closing = self._closing.is_set()
            if closing or time.monotonic() >= self._retry_at_s:
                self._attempt(closing)
            if closing:
                return
            self._closing.wait(FLUSH_INTERVAL_S)

    def _attempt(self, closing: bool) -> None:
        try:
            client = self._connected()
            self._sample_system()
            self._flush(client)
            if closing:
                client.set_terminated(self._run_id, status=self._status)
                client.set_terminated(self._parent_id, status=self._status)
            self._warned = False
        except Exception as error:
            # whatever it was, the tracked work must not notice
            self._retry_at_s = time.monotonic() + RETRY_INTERVAL_S
            if not self._warned:
                logger.warning("MLflow at %s cannot be reached; the work goes on: %s", self._uri, _one_line(error))
                self._warned = True
        finally:
            self._settled.set()

    def _connected(self) -> MlflowClient:
        if self._client is None:
            for name, value in CLIENT_DEFAULTS.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            client = MlflowClient(self._uri, registry_uri=self._uri)
            experiment = _find_or_create_experiment(client, self._tracking.experiment)
            name = self._tracking.run_name
            self._parent_id = _find_or_create_run(client, experiment, name, PIPELINE_TASK, name, {})
            parent = {"mlflow.parentRunId": self._parent_id}
            self._run_id = _find_or_create_run(client, experiment, name, self._task, self._task, parent)
            self._client = client
        return self._client

    def _flush(self, client: MlflowClient) -> None:
        """Send everything; what fails for good is dropped with a warning, anything else stays for later."""
        while self._operations:
            try:
                self._operations[0](client, self._run_id)
            except Exception as error:
                if not _permanent(error):
                    raise
                logger.warning("MLflow refused a record of the run %r: %s", self._task, _one_line(error))
            self._operations.popleft()
        while self._metrics:
            points = [self._metrics[i] for i in range(min(len(self._metrics), METRICS_PER_CALL))]
            _send_metrics(client, self._run_id, points)
            for _ in points:
                self._metrics.popleft()

    def _sample_system(self) -> None:
        if self._sampler is not None:
            metrics = self._sampler.sample()
            if metrics:
                self.log_metrics(metrics, self._sampler.elapsed_s())


class SystemSampler:
    """MLflow's own readings of processor, memory, disk, network and GPU, under the names its pages know."""

    def __init__(self, interval_s: float = SYSTEM_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._started_s = time.monotonic()
        self._next_s = 0.0
        self._monitors: list[Any] | None = None

    def elapsed_s(self) -> int:
        """Whole seconds since this was made: the step of a reading."""
        return int(time.monotonic() - self._started_s)

    def sample(self) -> dict[str, float]:
        """Readings, or nothing when the last ones are younger than the interval."""
        if time.monotonic() < self._next_s:
            return {}
        self._next_s = time.monotonic() + self._interval_s
        if self._monitors is None:
            self._monitors = self._open_monitors()
        readings: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            readings |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return readings

    def _open_monitors(self) -> list[Any]:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                monitors.append(kind())
            except Exception as error:  # no psutil, no NVIDIA driver: those readings are left out
                logger.debug("no %s: %s", kind.__name__, error)
        return monitors


@contextmanager
def open_tracker(
    tracking: TrackingConfig,
    *,
    task: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    close_timeout_s: float = 20.0,
) -> Iterator[Tracker]:
    """Track one stage: a nested run named `task` below the pipeline run, both found again after a restart.

    Args:
        tracking: experiment, pipeline run and dataset digest.
        task: name of the stage.
        params: what shapes the stage (its config).
        tags: tags of the stage's run.
        close_timeout_s: how long the end may wait for the last numbers and files to be sent.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        logger.info("MLFLOW_TRACKING_URI is not set: the stage %r is not tracked.", task)
        yield Tracker()
        return
    tracker = MlflowTracker(uri, tracking, task)
    tracker.log_params(params)
    version = {SOURCE_TAG: tracking.source_version} if tracking.source_version else {}
    tracker.set_tags({**version, **(tags or {})})
    status: Status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracker.close(status, close_timeout_s)


def _find_or_create_experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another stage was faster
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _find_or_create_run(
    client: MlflowClient, experiment: str, run: str, task: str, name: str, tags: Mapping[str, str]
) -> str:
    query = f"tags.\"{RUN_TAG}\" = '{run}' and tags.\"{TASK_TAG}\" = '{task}'"
    found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    tags = {RUN_TAG: run, TASK_TAG: task, **tags}
    return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)


def _send_params(params: list[tuple[str, str]]) -> Operation:
    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(name, value) for name, value in params])

    return send


def _send_tags(tags: dict[str, str]) -> Operation:
    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import RunTag

        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    return send


def _send_metrics(client: MlflowClient, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points if math.isfinite(point[1])])


def _send_dataset(name: str, digest: str, uri: str, context: str) -> Operation:
    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="uri", source=f'{{"uri": "{uri}"}}')
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    return send


def _send_model_version(name: str, source: str, alias: str, tags: dict[str, str]) -> Operation:
    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # A server accepts foreign addresses, but no paths on this machine's disk.
        link = source if "://" in source else f"runs:/{run_id}/checkpoint"
        tagged = {**tags, "kinoflow.checkpoint": source}
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id and version.tags == tagged:
                break
        else:
            version = client.create_model_version(name, link, run_id, tags=tagged, await_creation_for=0)
        client.set_registered_model_alias(name, alias, version.version)

    return send


def _permanent(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_ERRORS
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
