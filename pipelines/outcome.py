"""The last task of the graph, whatever happened before: how the run ended, for people and for machines.

`outcome.json` at the run's root and the tags of the run in MLflow say the same. A TrainJob that nobody waits for any
more is deleted.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from components import layout, manifest, store
from components.config import TrackingConfig
from components.errors import KinoflowError
from components.manifest import ManifestError
from components.tracking import record_outcome
from pipelines.cluster import NAMESPACE_VARIABLE, RUN_VARIABLE
from pipelines.shell import as_task, with_run

logger = logging.getLogger(__name__)

OUTCOME = "outcome.json"
MAX_MESSAGE_CHARS = 2000


def record(*, state: str, message: str, root: str, run_name: str, experiment: str) -> dict[str, Any]:
    """Write down how a run ended; returns what was written.

    Args:
        state: in Kubeflow's words, such as SUCCEEDED or FAILED.
        message: what Kubeflow says of a failure; may be empty.
        root: URI of the run.
        run_name, experiment: of the run in MLflow.
    """
    run = os.environ.get(RUN_VARIABLE, "")
    told = {
        "state": state,
        "message": " ".join(message.split())[:MAX_MESSAGE_CHARS],
        "run_name": run_name,
        "kubeflow_run": run,
        "ended_at": time.time(),
        "results": _results(root),
    }
    store.write_bytes(store.join(root, OUTCOME), json.dumps(told, indent=1).encode())
    tags = {"kinoflow.outcome": state, **({"kinoflow.kubeflow_run": run} if run else {})}
    if told["message"]:
        tags["kinoflow.outcome_message"] = str(told["message"])
    record_outcome(TrackingConfig(experiment=experiment, run_name=run_name), tags, succeeded=state == "SUCCEEDED")
    if run and os.environ.get(NAMESPACE_VARIABLE):
        from pipelines.trainjob_waiting import delete_jobs

        delete_jobs(run, os.environ[NAMESPACE_VARIABLE])
    return told


def _results(root: str) -> dict[str, str]:
    """Digest of what lies at the places of the run's parts, checkpoints aside."""
    results = {}
    for key in sorted(item.key for item in store.list_objects(root) if item.key.endswith(f"/{manifest.NAME}")):
        folder = key.removesuffix(f"/{manifest.NAME}")
        if layout.STEP_FOLDER.fullmatch(folder.rsplit("/", 1)[-1]):
            continue
        try:
            results[folder] = manifest.load(store.join(root, folder)).digest
        except (ManifestError, KinoflowError) as error:
            logger.warning("%s", error)
    return results


def record_as_task(**inputs: str) -> None:
    """Run `record` as a pipeline task."""
    with as_task("outcome"):
        record(**{name: str(value) for name, value in with_run(inputs).items()})
