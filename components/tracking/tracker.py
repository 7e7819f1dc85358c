"""What a stage may tell about its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

Registered = Callable[["MlflowClient", str, int], str]
"""What to do about a version that was registered, told the model's name and its number; gives one sentence."""


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

    def register_model(
        self, name: str, source: str, alias: str, tags: Mapping[str, str], then: Registered | None = None
    ) -> None:
        """Make the checkpoint at `source` a version of the registered model, give it the alias, and do `then`."""

    def verdict(self, timeout_s: float = 0.0) -> str:
        """What `then` has said of the registered version; empty when nothing was said after up to `timeout_s`."""
        return ""
