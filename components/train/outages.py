"""Patience with a store that is away: the loop goes on, the end of a stage waits, both for a while only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from safetensors import SafetensorError

from components.store import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SAVE_FAULTS = (StoreError, OSError, SafetensorError)
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0


class Patience:
    """Decides how long failing saves are put up with.

    Args:
        limit_s: from the first failure in a row.
        on_wait: called while waiting, so that nobody takes it for a hang.
    """

    def __init__(self, limit_s: float, on_wait: Callable[[], None] = lambda: None) -> None:
        self._limit_s, self._on_wait = limit_s, on_wait
        self._since_s: float | None = None

    def attempt(self, action: Callable[[], object]) -> bool:
        """Try once and say whether it worked; what went wrong is raised when the patience has run out."""
        try:
            action()
        except SAVE_FAULTS as error:
            now_s = time.monotonic()
            self._since_s = now_s if self._since_s is None else self._since_s
            if now_s - self._since_s >= self._limit_s:
                raise
            logger.warning("Not saved; training goes on and saves again later: %s", error)
            return False
        self._since_s = None
        return True

    def insist(self, action: Callable[[], Result]) -> Result:
        """Try again and again, waiting longer each time, until it works or the patience has run out."""
        deadline_s, wait_s = time.monotonic() + self._limit_s, FIRST_WAIT_S
        while True:
            self._on_wait()
            try:
                return action()
            except SAVE_FAULTS as error:
                if time.monotonic() + wait_s > deadline_s:
                    raise
                logger.warning("Not saved; once more in %.0f s: %s", wait_s, error)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
