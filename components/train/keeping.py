"""Which states of a stage are kept, and how: in the background while it goes on, at once when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from components.config import TrainConfig
from components.layout import HISTORY
from components.manifest import Manifest
from components.takedown.periods import History as TakedownHistory
from components.takedown.periods import annotations_of, facts_of
from components.tracking import Tracker
from components.train.checkpoints import StageCheckpoints
from components.train.outages import Patience
from components.train.report import History
from components.train.saving import AsyncCheckpoints
from model.checkpoint import TrainingState
from model.parallel import Ranks

RUN_ID_TIMEOUT_S = 10.0


class Keeper:
    """Publishes checkpoints and all that must be known to go on after them; use it as a context manager.

    Args:
        config: of the stage.
        checkpoints: where they lie and what they were made from.
        ranks: this process among those that train together.
        history: of the stage, kept up to date here.
        tracker: told of each checkpoint.
        patience: with a store that is away.
        origin: where data and parent lie, for the manifests.
        left_out: what the stage left out of its plan.
        attempt: the same number on all ranks of one launch, another one at the next.
        clock: seconds that the stage has taken so far.
    """

    def __init__(
        self,
        config: TrainConfig,
        checkpoints: StageCheckpoints,
        ranks: Ranks,
        history: History,
        tracker: Tracker,
        patience: Patience,
        *,
        origin: Mapping[str, str],
        left_out: TakedownHistory,
        attempt: int,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._checkpoints, self._ranks = config, checkpoints, ranks
        self._history, self._tracker, self._patience = history, tracker, patience
        self._origin, self._attempt, self._clock = {**origin, **annotations_of(left_out)}, attempt, clock
        self._left_out = left_out
        self._saver = AsyncCheckpoints(
            checkpoints, keep=config.keep_checkpoints, keep_every=config.keep_every, attempt=attempt
        )
        self._final: Manifest | None = None

    @property
    def published(self) -> Manifest | None:
        """The newest checkpoint that is visible; None on ranks that publish none."""
        return self._final or self._saver.last

    def __enter__(self) -> Self:
        """The keeper itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is under way."""
        self._saver.__exit__(kind, error, trace)

    def settle(self) -> None:
        """Wait until nothing is under way; a save that failed is put up with for as long as patience lasts."""
        self._patience.attempt(self._saver.wait)

    def save(self, state: TrainingState, *, at_once: bool) -> None:
        """Publish a checkpoint and everything that must be known to go on after it.

        Args:
            state: given back with `state.release` when it is saved.
            at_once: do not return before it is visible, and try again while the store is away.
        """
        self.settle()
        if not self._ranks.is_first and state.part is None:
            state.release()
            return
        if at_once:
            try:
                self._patience.insist(lambda: self._publish(state))
            finally:
                state.release()
        elif self._ranks.is_first:
            facts, annotations = self._told(state, timeout_s=0)
            beside = {HISTORY: self._history.model_dump_json().encode()}
            self._saver.save(state, facts, annotations, beside=beside, then=lambda _: self._tell(state.progress.step))
        else:
            self._saver.save(state, {}, {})

    def _publish(self, state: TrainingState) -> None:
        if not self._ranks.is_first:
            self._checkpoints.publish(state, facts={}, annotations={}, attempt=self._attempt)
            return
        facts, annotations = self._told(state, timeout_s=RUN_ID_TIMEOUT_S)
        self._history.write(self._checkpoints.out)
        self._final = self._checkpoints.publish(state, facts=facts, annotations=annotations, attempt=self._attempt)
        self._tell(state.progress.step)
        self._checkpoints.prune(self._config.keep_checkpoints, self._config.keep_every)

    def _told(self, state: TrainingState, timeout_s: float) -> tuple[dict[str, JsonValue], dict[str, str]]:
        """Facts and annotations of the manifest; brings the history up to date for it."""
        history, progress = self._history, state.progress
        history.seconds = self._clock()
        history.mlflow_run_id = self._tracker.run_id(timeout_s=timeout_s) or history.mlflow_run_id
        history.saved_at = time.time()
        facts: dict[str, JsonValue] = {
            "stage": progress.stage,
            "step": progress.step,
            "parameters": sum(tensor.numel() for tensor in state.weights.values()),
            "handover": progress.handover.model_dump(mode="json"),
            "left_out_steps": [[steps.first_step, steps.end_step] for steps in progress.left_out],
            **facts_of(self._left_out),
        }
        return facts, {**self._origin, "mlflow_run_id": history.mlflow_run_id}

    def _tell(self, step: int) -> None:
        published = self._final or self._saver.last
        digest = {"kinoflow.checkpoint_digest": published.digest} if published else {}
        self._tracker.set_tags({"kinoflow.checkpoint": self._checkpoints.uri(step), **digest})
        self._tracker.log_metrics(self._history.reliability(time.time()), step)
