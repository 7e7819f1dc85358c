"""Runs, metrics, artifacts and registered models in MLflow. The only package that imports mlflow.

The address comes from MLFLOW_TRACKING_URI; without it nothing is tracked. Everything is sent by one background
thread: trouble with the server costs one warning and the unsent numbers, never the work that is being tracked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from components.config import TrackingConfig
from components.tracking import names
from components.tracking.background import MlflowTracker, Status
from components.tracking.sending import connect, find_or_create_experiment, find_or_create_run, one_line, send_tags
from components.tracking.tracker import Tracker as Tracker

logger = logging.getLogger(__name__)


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
    version = {names.SOURCE: tracking.source_version} if tracking.source_version else {}
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


def record_outcome(tracking: TrackingConfig, tags: Mapping[str, str], *, succeeded: bool) -> None:
    """Tag the whole pipeline run with how it ended and set its status; trouble with the server costs a warning."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return
    try:
        client = connect(uri)
        experiment = find_or_create_experiment(client, tracking.experiment)
        run_id = find_or_create_run(client, experiment, tracking.run_name, names.PIPELINE_TASK, tracking.run_name, {})
        send_tags(dict(tags))(client, run_id)
        client.set_terminated(run_id, status="FINISHED" if succeeded else "FAILED")
    except Exception as error:  # whatever it was, the outcome itself lies in the store
        logger.warning("MLflow does not know how the run %r ended: %s", tracking.run_name, one_line(error))
