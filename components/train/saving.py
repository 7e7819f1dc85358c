"""Saving beside training: the loop hands over a state and goes on; writing, hashing and sending happen in a thread.

At most one checkpoint is under way. What goes wrong is raised at the next save or wait, never swallowed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from components import store
from components.manifest import Manifest
from components.train.checkpoints import StageCheckpoints
from model.checkpoint import TrainingState

logger = logging.getLogger(__name__)

NICENESS = 10  # of the thread: what the processor has to spare


class AsyncCheckpoints:
    """Publishes one stage's checkpoints in the background and keeps the newest; use it as a context manager.

    Args:
        checkpoints: where they lie and what they were made from.
        keep: newest checkpoints that stay.
        keep_every: checkpoints of steps that this divides stay as well.
        attempt: the same number on all ranks of one launch, another one at the next; needed where ranks save shares.

    Attributes:
        last: manifest of the checkpoint published last; None on ranks that only write shares.
    """

    def __init__(
        self, checkpoints: StageCheckpoints, *, keep: int, keep_every: int | None = None, attempt: int = 0
    ) -> None:
        self._checkpoints, self._keep, self._keep_every, self._attempt = checkpoints, keep, keep_every, attempt
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_step_back)
        self._running: Future[None] | None = None
        self.last: Manifest | None = None

    def save(
        self,
        state: TrainingState,
        facts: Mapping[str, JsonValue],
        annotations: Mapping[str, str],
        *,
        beside: Mapping[str, bytes] | None = None,
        then: Callable[[Manifest], None] | None = None,
    ) -> None:
        """Begin to publish a checkpoint and return; waits only for the one before.

        Args:
            state: not changed by anybody until `state.release` has been called, which happens when it is saved.
            facts, annotations: of the manifest.
            beside: small objects to write below the stage before the checkpoint appears, by name.
            then: called in the thread once the checkpoint is visible.

        Raises:
            Exception: what went wrong with the save before.
        """
        self.wait()
        self._running = self._thread.submit(self._save, state, dict(facts), dict(annotations), dict(beside or {}), then)

    def wait(self) -> Manifest | None:
        """Wait until nothing is under way; returns the checkpoint published last.

        Raises:
            Exception: what went wrong with the save under way.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()
        return self.last

    def close(self) -> None:
        """Finish what is under way and end the thread; raises what went wrong."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> Self:
        """The saver itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is under way; an error of the body is the one that counts."""
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as other:
            logger.error("The last checkpoint was not saved: %s", other)

    def _save(
        self,
        state: TrainingState,
        facts: Mapping[str, JsonValue],
        annotations: Mapping[str, str],
        beside: Mapping[str, bytes],
        then: Callable[[Manifest], None] | None,
    ) -> None:
        try:
            for name, data in beside.items():
                store.write_bytes(store.join(self._checkpoints.out, name), data)
            published = self._checkpoints.publish(state, facts=facts, annotations=annotations, attempt=self._attempt)
            state.release()
            if published is None:
                return
            self.last = published
            if then is not None:
                then(published)
            self._checkpoints.prune(self._keep, self._keep_every)
        finally:
            state.release()


def _step_back() -> None:
    """Give the training threads precedence; threads that send parts inherit it."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
