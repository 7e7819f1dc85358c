"""Registered models: which versions there are, and which checkpoint a reference such as `models:/kinoflow@champion` is.

A reference is a URI, `models:/NAME/VERSION`, or `models:/NAME@ALIAS`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping

from components.config import TrackingConfig
from components.errors import KinoflowError
from components.manifest import Manifest
from components.tracking import names
from components.tracking.versions import ModelVersion as ModelVersion
from components.tracking.versions import open_registry, read_versions

REGISTERED_MODEL, CHAMPION = "kinoflow", "champion"
SCHEME = "models:/"
_REFERENCE = re.compile(r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


def tracking_address() -> str:
    """Address of the MLflow server that the environment names; empty when it names none."""
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def list_versions(tracking_uri: str | None = None, name: str = REGISTERED_MODEL) -> list[ModelVersion]:
    """All versions of a registered model, the newest first; none where there is no such model.

    Args:
        tracking_uri: address of the MLflow server; the environment's when absent.
        name: of the registered model.

    Raises:
        KinoflowError: the server is not named or cannot be reached.
    """
    with open_registry(tracking_uri or tracking_address()) as client:
        return read_versions(client, name)


def is_model(reference: str) -> bool:
    """Whether it has the form of a registered model's version and not of a place in a store."""
    return reference.startswith(SCHEME)


def resolve(reference: str, tracking_uri: str | None = None) -> str:
    """URI of the checkpoint that is meant; a URI of a store comes back as it is.

    Raises:
        KinoflowError: there is no such version or alias, or the server cannot be reached.
    """
    return find_version(reference, tracking_uri).checkpoint if is_model(reference) else reference


def find_version(reference: str, tracking_uri: str | None = None) -> ModelVersion:
    """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names.

    Raises:
        KinoflowError: it is no such reference, there is no such version or alias, or the server cannot be reached.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise KinoflowError(
            f"{reference!r} names no version of a model; write models:/{REGISTERED_MODEL}@{CHAMPION} or "
            f"models:/{REGISTERED_MODEL}/1."
        )
    name, number, alias = match["name"], match["version"], match["alias"]
    versions = list_versions(tracking_uri, name)
    for version in versions:
        if version.version == int(number or 0) or alias in version.aliases:
            return version
    if not versions:
        raise KinoflowError(f"No model {name!r} is registered yet; an evaluation registers its checkpoint.")
    aliases = sorted({alias for version in versions for alias in version.aliases})
    raise KinoflowError(
        f"The model {name!r} has no {f'version {number}' if number else f'alias {alias!r}'}; it has the versions "
        f"{versions[-1].version} to {versions[0].version} and the aliases {', '.join(aliases) or '(none)'}."
    )


def version_tags(
    checkpoint: str, published: Manifest, tracking: TrackingConfig, metrics: Mapping[str, float]
) -> dict[str, str]:
    """What a registered version says about itself: where it comes from, and how it did.

    Args:
        checkpoint: URI.
        published: its manifest.
        tracking: of the run that evaluated it.
        metrics: what was measured; numbers that are not finite are left out.
    """
    scores = {key: value for key, value in sorted(metrics.items()) if math.isfinite(value)}
    told = {
        names.CHECKPOINT: checkpoint,
        names.CHECKPOINT_DIGEST: published.digest,
        names.DATASET: published.dataset_digest,
        names.SOURCE: tracking.source_version,
        names.STAGE: str(published.facts.get("stage", "")),
        names.PARENT: published.annotations.get("parent", ""),
        names.DATA: published.annotations.get("data", ""),
        names.RUN: tracking.run_name,
        names.SCORES: json.dumps(scores, separators=(",", ":")),
    }
    return {key: value for key, value in told.items() if value}
