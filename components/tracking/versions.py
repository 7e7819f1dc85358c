"""Versions of the registered model, read and marked at once: for people and for what decides between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from components.errors import KinoflowError
from components.tracking import names
from components.tracking.sending import connect, one_line, permanent

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITE_ATTEMPTS = 3
MAX_TAG_CHARS = 4000  # PostgreSQL and MySQL behind older servers take 5,000


@dataclass(frozen=True)
class ModelVersion:
    """One registered checkpoint.

    Attributes:
        name: of the registered model.
        version: number, from 1.
        aliases: that point at it, sorted.
        checkpoint: URI.
        tags: lineage, and what was decided about it.
        metrics: what its evaluation measured, `<metric>_low` and `<metric>_high` beside a metric with an interval.
        created_ms: since 1970.
        run_id: of the run that registered it; empty where there was none.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    checkpoint: str
    tags: dict[str, str] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    created_ms: int
    run_id: str = ""


@contextmanager
def open_registry(uri: str) -> Iterator[MlflowClient]:
    """A client whose failures are sentences.

    Raises:
        KinoflowError: there is no address, or the server there cannot be reached or refuses.
    """
    if not uri:
        raise KinoflowError("MLFLOW_TRACKING_URI is not set; it names the MLflow server that keeps the models.")
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except (MlflowException, OSError) as error:
        what = "refused" if permanent(error) else "cannot be reached"
        raise KinoflowError(f"MLflow at {uri} {what}: {one_line(error)}") from error


def read_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model, the newest first; none where there is no such model."""
    aliases = read_aliases(client, name)
    if aliases is None:
        return []
    found = [_version(client, each, aliases) for each in _pages(client, name)]
    return sorted(found, key=lambda version: version.version, reverse=True)


def read_aliases(client: MlflowClient, name: str) -> dict[str, int] | None:
    """Number of the version that each alias points at; None where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return {alias: int(number) for alias, number in model.aliases.items()}


def tag_version(client: MlflowClient, name: str, version: int, tags: dict[str, str]) -> None:
    """Set or replace tags of a version."""
    for key, value in tags.items():
        retry_clash(partial(client.set_model_version_tag, name, str(version), key, value[:MAX_TAG_CHARS]))


def retry_clash(write: Callable[[], object]) -> None:
    """Write what somebody else may be writing for the first time: MLflow inserts both, and the database refuses one."""
    from mlflow.exceptions import MlflowException

    for _ in range(WRITE_ATTEMPTS - 1):
        try:
            write()
        except MlflowException as error:
            if "unique constraint" not in str(error).lower():
                raise
        else:
            return
    write()


def _pages(client: MlflowClient, name: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _version(client: MlflowClient, found: Any, aliases: dict[str, int]) -> ModelVersion:
    number = int(found.version)
    tags = dict(found.tags)
    return ModelVersion(
        name=found.name,
        version=number,
        aliases=tuple(sorted(alias for alias, each in aliases.items() if each == number)),
        checkpoint=tags.get(names.CHECKPOINT, found.source or ""),
        tags=tags,
        metrics=_metrics(client, found, tags),
        created_ms=int(found.creation_timestamp),
        run_id=found.run_id or "",
    )


def _metrics(client: MlflowClient, found: Any, tags: dict[str, str]) -> dict[str, float]:
    """Its numbers as they were when it was registered, else the newest of its run."""
    from mlflow.exceptions import MlflowException

    try:
        told = json.loads(tags.get(names.SCORES, "null"))
        if isinstance(told, dict):
            return {str(key): float(value) for key, value in told.items()}
    except (TypeError, ValueError):
        pass  # a tag that somebody has edited
    if not found.run_id:
        return {}
    try:
        run = client.get_run(found.run_id)
    except MlflowException:
        return {}  # the run was deleted
    return {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}
