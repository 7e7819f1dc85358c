"""What a stage tells about itself: the running history, and the report once it has ended."""

from __future__ import annotations

import logging
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import store
from components.layout import HISTORY, REPORT
from model.handover import Handover
from model.metrics import LogPoint, loss_ends
from model.sentinel import LeftOut

logger = logging.getLogger(__name__)

Cause = Literal["preempted", "killed", "hung", "fault"]


class Restarts(BaseModel):
    """How often one cause ended an attempt, and what that cost."""

    model_config = ConfigDict(extra="forbid")
    count: int = 0
    lost_s: float = Field(0.0, description="From the last checkpoint to the end of the attempt, and to step again.")
    down_s: float = Field(0.0, description="Between two attempts; part of lost_s where nobody could note the end.")


class Rollback(BaseModel):
    """One return to an earlier checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    left_out: LeftOut
    from_step: int
    to_step: int
    num_clips: int
    clip_ids: str = Field(description="URI of the list of clips in the batches left out.")


class TrainReport(BaseModel):
    """How a finished stage went."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    name: str
    steps: int
    batches_per_step: int
    skipped_steps: int
    loss_first: float | None  # mean over the first twentieth of the steps
    loss_last: float | None
    seconds: float  # over all restarts, work that was lost included
    samples_per_s: float
    effective_time_ratio: float  # time of the steps that count, over all time in which somebody ran
    restarts: dict[Cause, Restarts]
    rollbacks: tuple[Rollback, ...]
    handover: Handover
    held_out_loss: float | None
    parent_held_out_loss: float | None
    checkpoint: str
    checkpoint_digest: str
    parent_checkpoint: str | None
    mlflow_run_id: str
    model_sha256: str
    history: tuple[LogPoint, ...]


class History(BaseModel):
    """What a running stage remembers between restarts, beside its checkpoints. Times are seconds since 1970."""

    model_config = ConfigDict(extra="forbid")
    identity: str  # of the configuration, inputs and code that made it
    seconds: float = 0.0
    mlflow_run_id: str = ""
    points: list[LogPoint] = []
    started_at: float | None = None
    saved_at: float = 0.0  # when a checkpoint was last written, or the attempt began
    ended_at: float | None = None
    ended: Cause | None = None  # why the last attempt ended; None while one runs, and after it was killed
    restarts: dict[Cause, Restarts] = {}
    rollbacks: list[Rollback] = []
    interrupted_by: Cause | None = None  # of the attempt before this one, until this one steps

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
        history.cut(step)
        return history

    def write(self, out: str) -> None:
        """Replace the stored history."""
        store.write_bytes(store.join(out, HISTORY), self.model_dump_json().encode())

    def add(self, point: LogPoint) -> None:
        """Remember a log point; one without a finite loss has nothing to draw."""
        if math.isfinite(point.loss):
            self.points.append(point)

    def cut(self, step: int) -> None:
        """Forget what came after a step."""
        self.points = [point for point in self.points if point.step <= step]

    # --- attempts ----------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """A process takes up the stage; if it is not the first, the one before is counted under its cause."""
        if self.started_at is None:
            self.started_at = self.saved_at = now
        else:
            self.interrupted_by = self.ended or "killed"
            record = self._record(self.interrupted_by)
            record.count += 1
            if self.ended_at is not None:
                record.down_s += now - self.ended_at
                record.lost_s += self.ended_at - self.saved_at
                self.saved_at = now
        self.ended = self.ended_at = None

    def steps_again(self, now: float) -> None:
        """The first step of this attempt is about to begin."""
        if self.interrupted_by is not None:
            self._record(self.interrupted_by).lost_s += now - self.saved_at
            self.interrupted_by = None
        self.saved_at = now

    def end(self, cause: Cause, now: float) -> None:
        """This attempt ends before its time."""
        self.ended, self.ended_at = cause, now

    def _record(self, cause: Cause) -> Restarts:
        return self.restarts.setdefault(cause, Restarts())

    def effective_time_ratio(self, now: float) -> float:
        """Time of the steps that count over the time since the first attempt began, when nobody ran left out."""
        if self.started_at is None:
            return 1.0
        spent = now - self.started_at - sum(record.down_s for record in self.restarts.values())
        return min(sum(point.seconds for point in self.points) / spent, 1.0) if spent > 0 else 1.0

    def reliability(self, now: float) -> dict[str, float]:
        """Restarts, what they cost and the effective share of the time, as numbers by name."""
        told = {"effective_time_ratio": self.effective_time_ratio(now), "rollbacks": float(len(self.rollbacks))}
        for cause, record in self.restarts.items():
            told |= {f"restarts/{cause}": float(record.count), f"lost_s/{cause}": record.lost_s}
        return told

    # --- figures -----------------------------------------------------------------------------------------------

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
