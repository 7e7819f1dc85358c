"""Being told to stop, and noticing that nothing moves: two ways in which a stage ends before its end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from components.cli import EXIT_HUNG, EXIT_PREEMPTED, report_ending

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_WORDS_S = 5.0


class Preempted(SystemExit):  # the end of a process, not an error
    """The stage was told to stop; the process ends with `EXIT_PREEMPTED`."""

    def __init__(self, sentence: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.sentence = sentence


class Interruption:
    """SIGTERM and SIGINT while the body runs: a wish to save and leave, granted within a grace time.

    Outside of `deferred` the body is left at once by `Preempted`. A second SIGINT ends it without ceremony.

    Args:
        grace_s: from the signal to the end of the process, whatever it is doing.

    Attributes:
        requested: whether the process was told to stop.
    """

    def __init__(self, grace_s: float) -> None:
        self.requested = False
        self._grace_s = grace_s
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        """Take over both signals, where Python allows it: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back: what is to be saved is saved."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._timer is not None:
            self._timer.cancel()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The body looks at `requested` itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise self.preempted()

    def preempted(self) -> Preempted:
        """What to raise once everything is saved."""
        sentence = "Told to stop; start again to go on."
        report_ending(EXIT_PREEMPTED, sentence)
        return Preempted(sentence)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True
        self._timer = threading.Timer(self._grace_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        logger.warning("%s: saving, then leaving, within %.0f s.", signal.Signals(number).name, self._grace_s)
        if not self._deferred:
            raise self.preempted()

    def _give_up(self) -> None:
        logger.warning("The grace of %.0f s is over; leaving with what was saved before.", self._grace_s)
        report_ending(EXIT_PREEMPTED, "Told to stop; there was no time to save.")
        os._exit(EXIT_PREEMPTED)


class Watchdog:
    """Ends the process with `EXIT_HUNG` when nobody calls `beat` for too long; every thread's stack is logged first.

    Args:
        timeout_s: never when None.
        last_words: called before the end, for at most a few seconds.
    """

    def __init__(self, timeout_s: float | None, last_words: Callable[[], None]) -> None:
        self._timeout_s, self._last_words = timeout_s, last_words
        self._beat_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Start watching."""
        self.beat()
        if self._timeout_s is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._over.set()

    def beat(self) -> None:
        """Something moves."""
        self._beat_s = time.monotonic()

    def _watch(self) -> None:
        assert self._timeout_s is not None
        while not self._over.wait(min(self._timeout_s / 4, 5.0)):
            silent_s = time.monotonic() - self._beat_s
            if silent_s > self._timeout_s:
                self._end(silent_s)

    def _end(self, silent_s: float) -> None:
        sentence = f"Nothing moved for {silent_s:.0f} s; the stacks of all threads are in the log."
        logger.critical("%s\n%s", sentence, stacks())
        report_ending(EXIT_HUNG, sentence)
        words = threading.Thread(target=self._last_words, daemon=True)
        words.start()
        words.join(LAST_WORDS_S)
        os._exit(EXIT_HUNG)


def stacks() -> str:
    """Where every thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
