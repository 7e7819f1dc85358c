"""Single requests to MLflow, and which refusals are final."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from components.tracking import names

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient

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

Operation = Callable[["MlflowClient", str], None]


def connect(uri: str) -> MlflowClient:
    """A client of the server (or database) at that address; nothing is sent yet."""
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def find_or_create_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment of that name."""
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


def find_or_create_run(
    client: MlflowClient, experiment: str, run: str, task: str, name: str, tags: Mapping[str, str]
) -> str:
    """Id of the run of that pipeline run and task; one that has ended goes on."""
    query = f"tags.\"{names.RUN}\" = '{run}' and tags.\"{names.TASK}\" = '{task}'"
    found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    tags = {names.RUN: run, names.TASK: task, **tags}
    return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)


def send_params(params: list[tuple[str, str]]) -> Operation:
    """Log parameters."""

    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Param

        client.log_batch(run_id, params=[Param(name, value) for name, value in params])

    return send


def send_tags(tags: dict[str, str]) -> Operation:
    """Set tags of the run."""

    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import RunTag

        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    return send


def send_metrics(client: MlflowClient, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    """Log (name, value, time in ms, step) of each point with a finite value."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points if math.isfinite(point[1])])


def send_dataset(name: str, digest: str, uri: str, context: str) -> Operation:
    """Log a dataset as an input of the run."""

    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="uri", source=f'{{"uri": "{uri}"}}')
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    return send


def register_version(
    client: MlflowClient, run_id: str, name: str, source: str, alias: str, tags: Mapping[str, str]
) -> int:
    """Make a checkpoint a version of the registered model, once for the same run and tags, and give it the alias."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # A server accepts foreign addresses, but no paths on this machine's disk.
    link = source if "://" in source else f"runs:/{run_id}/checkpoint"
    tagged = {**tags, names.CHECKPOINT: source}
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id and tagged.items() <= version.tags.items():
            break
    else:
        version = client.create_model_version(name, link, run_id, tags=tagged, await_creation_for=0)
    client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def permanent(error: Exception) -> bool:
    """Whether another attempt would fail the same way."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_ERRORS
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError)


def one_line(error: Exception) -> str:
    """What an error says, cut to a line of a log."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
