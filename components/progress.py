"""Progress of long work: a bar on a terminal, plain lines in a log, events for whoever runs us as a child.

A parent that wants to draw the bars itself sets `KINOFLOW_PROGRESS_FILE`; one JSON object a line is appended:
`{"task", "done", "total", "note", "time_s"}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
EVENT_INTERVAL_S = 0.2
LOG_INTERVAL_S = 10.0


class ProgressTask:
    """One long task: `advance` as work is done, `note` to say what is being done."""

    def __init__(self, name: str, total: int, bar: Progress | None) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._bar = bar
        self._bar_id = bar.add_task(name, total=total, note="") if bar else None
        self._path = os.environ.get("KINOFLOW_PROGRESS_FILE")
        self._started_s = self._logged_s = time.monotonic()
        self._event_s = 0.0
        self._emit(force=True)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count `count` more of `total` as done."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str | None = None) -> None:
        """Set the absolute count (a resumed run starts above zero)."""
        self.done = done
        self.text = self.text if note is None else note
        self._emit(force=self.done >= self.total)

    def _emit(self, force: bool) -> None:
        now = time.monotonic()
        if self._bar is not None and self._bar_id is not None:
            self._bar.update(self._bar_id, completed=self.done, note=self.text)
        elif now - self._logged_s >= LOG_INTERVAL_S or (force and self.done):
            self._logged_s = now
            logger.info("%s: %d/%d in %.0f s %s", self.name, self.done, self.total, now - self._started_s, self.text)
        if self._path and (force or now - self._event_s >= EVENT_INTERVAL_S):
            self._event_s = now
            event = {
                "task": self.name,
                "done": self.done,
                "total": self.total,
                "note": self.text,
                "time_s": time.time(),
            }
            append_event(self._path, event)


def append_event(path: str, event: dict[str, object]) -> None:
    """Append one event line; a full or missing disk must not stop the work it reports on."""
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
    except OSError as error:
        logger.warning("progress is not recorded: %s", error)


@contextmanager
def task(name: str, total: int) -> Iterator[ProgressTask]:
    """Report the progress of one task while the body runs."""
    on_terminal = sys.stderr.isatty() and "KINOFLOW_PROGRESS_FILE" not in os.environ
    if not on_terminal:
        yield ProgressTask(name, total, None)
        return
    from rich.console import Console

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield ProgressTask(name, total, bar)
