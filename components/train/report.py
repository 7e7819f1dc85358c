"""What a stage tells about itself: the running history, and the report once it has ended."""

from __future__ import annotations

import logging
import math

from pydantic import BaseModel, ConfigDict, ValidationError

from components import store
from model.metrics import LogPoint, loss_ends

logger = logging.getLogger(__name__)

REPORT, HISTORY = "report.json", "history.json"


class TrainReport(BaseModel):
    """How a finished stage went."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    name: str
    steps: int
    skipped_steps: int
    loss_first: float | None  # mean over the first twentieth of the steps
    loss_last: float | None
    seconds: float  # over all restarts, work that was lost included
    samples_per_s: float
    checkpoint: str
    checkpoint_digest: str
    parent_checkpoint: str | None
    mlflow_run_id: str
    model_sha256: str
    history: tuple[LogPoint, ...]


class History(BaseModel):
    """What a running stage remembers between restarts, beside its checkpoints."""

    model_config = ConfigDict(extra="forbid")
    identity: str  # of the configuration, inputs and code that made it
    seconds: float = 0.0
    mlflow_run_id: str = ""
    points: list[LogPoint] = []

    @classmethod
    def read(cls, out: str, identity: str, step: int) -> History:
        """The history up to `step`; a new one when there is none of that identity."""
        uri = store.join(out, HISTORY)
        try:
            history = cls.model_validate_json(store.read_bytes(uri))
        except store.ObjectMissing:
            return cls(identity=identity)
        except ValidationError:
            logger.warning("%s is damaged; the loss curve starts anew at step %d.", uri, step)
            return cls(identity=identity)
        if history.identity != identity:
            return cls(identity=identity)
        history.points = [point for point in history.points if point.step <= step]
        return history

    def write(self, out: str) -> None:
        """Replace the stored history."""
        store.write_bytes(store.join(out, HISTORY), self.model_dump_json().encode())

    def add(self, point: LogPoint) -> None:
        """Remember a log point; one without a finite loss has nothing to draw."""
        if math.isfinite(point.loss):
            self.points.append(point)

    def samples_per_s(self) -> float:
        """Throughput of the steps that count."""
        seconds = sum(point.seconds for point in self.points)
        return sum(point.samples for point in self.points) / seconds if seconds else 0.0

    def loss_ends(self) -> tuple[float | None, float | None]:
        """Mean loss at the start and at the end."""
        return loss_ends(self.points)


def read_report(out: str) -> TrainReport | None:
    """The report of a finished stage; None when there is none that can be read."""
    try:
        return TrainReport.model_validate_json(store.read_bytes(store.join(out, REPORT)))
    except (store.ObjectMissing, ValidationError):
        return None


def write_report(out: str, report: TrainReport) -> None:
    """Publish the report of a finished stage."""
    store.write_bytes(store.join(out, REPORT), report.model_dump_json(indent=1).encode())
