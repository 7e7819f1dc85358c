"""Sends what a stage tells to MLflow from a thread of its own."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from components.config import TrackingConfig, flatten
from components.tracking import names, sending
from components.tracking.sending import Operation
from components.tracking.system import SystemSampler
from components.tracking.tracker import Registered, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 2.0
RETRY_INTERVAL_S = 30.0
VERDICT_POLL_S = 0.1
MAX_PENDING_METRICS = 200_000
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
MAX_PARAM_CHARS = 500
MAX_DIGEST_CHARS = 36  # the tag has the whole

Status = Literal["FINISHED", "FAILED", "KILLED"]


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
        self._verdict = ""
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
            self._operations.append(sending.send_params(flat[start : start + PARAMS_PER_CALL]))

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        self._metrics.extend((name, float(value), now_ms, step) for name, value in metrics.items())

    @override
    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._operations.append(sending.send_tags(dict(tags)))

    @override
    def log_dataset(self, name: str, digest: str, uri: str, context: str) -> None:
        self._operations.append(sending.send_dataset(name, digest[:MAX_DIGEST_CHARS], uri, context))
        self._operations.append(sending.send_tags({names.DATASET: digest}))

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
    def register_model(
        self, name: str, source: str, alias: str, tags: Mapping[str, str], then: Registered | None = None
    ) -> None:
        told = dict(tags)

        def register(client: MlflowClient, run_id: str) -> None:
            number = sending.register_version(client, run_id, name, source, alias, told)
            if then is not None:
                self._verdict = then(client, name, number)

        self._operations.append(register)

    @override
    def verdict(self, timeout_s: float = 0.0) -> str:
        deadline_s = time.monotonic() + timeout_s
        while not self._verdict and not self._warned and time.monotonic() < deadline_s:
            time.sleep(VERDICT_POLL_S)
        return self._verdict

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
                logger.warning(
                    "MLflow at %s cannot be reached; the work goes on: %s", self._uri, sending.one_line(error)
                )
                self._warned = True
        finally:
            self._settled.set()

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = sending.connect(self._uri)
            experiment = sending.find_or_create_experiment(client, self._tracking.experiment)
            name = self._tracking.run_name
            self._parent_id = sending.find_or_create_run(client, experiment, name, names.PIPELINE_TASK, name, {})
            parent = {"mlflow.parentRunId": self._parent_id}
            self._run_id = sending.find_or_create_run(client, experiment, name, self._task, self._task, parent)
            self._client = client
        return self._client

    def _flush(self, client: MlflowClient) -> None:
        """Send everything; what fails for good is dropped with a warning, anything else stays for later."""
        while self._operations:
            try:
                self._operations[0](client, self._run_id)
            except Exception as error:
                if not sending.permanent(error):
                    raise
                logger.warning("MLflow refused a record of the run %r: %s", self._task, sending.one_line(error))
            self._operations.popleft()
        while self._metrics:
            points = [self._metrics[i] for i in range(min(len(self._metrics), METRICS_PER_CALL))]
            sending.send_metrics(client, self._run_id, points)
            for _ in points:
                self._metrics.popleft()

    def _sample_system(self) -> None:
        if self._sampler is not None:
            metrics = self._sampler.sample()
            if metrics:
                self.log_metrics(metrics, self._sampler.elapsed_s())
