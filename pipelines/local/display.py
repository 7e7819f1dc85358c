"""What a person sees while a graph runs: one row per node with a bar on a terminal, plain lines anywhere else.

Fed with events, one JSON object each: a node's `{"node", "state"}` from `pipelines.shell`, the steps of its work
`{"task", "done", "total", "note"}` from `components.progress`, and `{"error": sentence}`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

BAR_WIDTH = 28
LINE_INTERVAL_S = 15.0
MARKS = {"waiting": "[dim]·[/]", "running": "[cyan]▶[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


@dataclass
class Node:
    """One node of the graph and the piece of work it is at."""

    name: str
    state: str = "waiting"
    started_s: float = 0.0
    seconds: float = 0.0
    task: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    task_started_s: float = 0.0
    done_before: int = 0
    advanced: bool = False

    def eta_s(self, now_s: float) -> float | None:
        """Seconds left of the present piece of work at its pace since its first advance; None while unknown."""
        counted = self.done - self.done_before
        if counted <= 0 or self.done >= self.total:
            return None
        return (now_s - self.task_started_s) / counted * (self.total - self.done)


class EventFile:
    """Reads what has been appended to a file of JSON lines since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new_events(self) -> list[dict[str, Any]]:
        """Whole lines only; a line that is still being written waits for the next look."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines() if line.strip()]


class RunDisplay:
    """Keeps the state of all nodes and shows it; `errors` collects the sentences of what went wrong."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self.nodes = {name: Node(name) for name in names}
        self.errors: list[str] = []
        self._console = console
        self._current: Node | None = None
        self._line_s = 0.0
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        """Start drawing when there is a terminal to draw on."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal."""
        if self._console.is_terminal:
            self._live.stop()

    def handle(self, event: dict[str, Any]) -> None:
        """Take one event; unknown ones are ignored."""
        if "error" in event:
            self.errors.append(str(event["error"]))
        elif "node" in event:
            self._change_state(str(event["node"]), str(event["state"]), float(event.get("seconds", 0.0)))
        elif "task" in event and self._current is not None:
            self._advance(self._current, event)

    def _change_state(self, name: str, state: str, seconds: float) -> None:
        node = self.nodes.setdefault(name, Node(name))
        node.state, node.seconds = state, seconds
        if state == "running":
            node.started_s = time.monotonic()
            self._current = node
            self._line(f"{name}: started")
        else:
            self._current = None
            self._line(f"{name}: {state} in {duration(seconds)}")

    def _advance(self, node: Node, event: dict[str, Any]) -> None:
        now_s = time.monotonic()
        if event["task"] != node.task or event["total"] != node.total:
            node.task, node.total = str(event["task"]), int(event["total"])
            node.task_started_s, node.done_before, node.advanced = now_s, int(event["done"]), False
        elif not node.advanced and event["done"] > node.done_before:
            # starting workers, or compiling, is no part of the pace
            node.task_started_s, node.done_before, node.advanced = now_s, int(event["done"]), True
        node.done, node.note = int(event["done"]), str(event.get("note") or "")
        if now_s - self._line_s >= LINE_INTERVAL_S:
            parts = (f"{node.name}:", _work(node), f"{node.done}/{node.total}{_left(node, now_s)}", node.note)
            self._line(" ".join(part for part in parts if part))

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._line_s = time.monotonic()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def table(self) -> Table:
        """All nodes as rows: mark, name, seconds, and for the running one its bar, count, time left and note."""
        now_s = time.monotonic()
        grid = Table.grid(padding=(0, 1))
        for node in self.nodes.values():
            row: list[Any] = [MARKS.get(node.state, "?"), node.name]
            if node.state == "running":
                row += [duration(now_s - node.started_s), *_progress(node, now_s)]
            else:
                row += [duration(node.seconds) if node.state in ("done", "failed") else "", "", "", ""]
            grid.add_row(*row)
        return grid


def _progress(node: Node, now_s: float) -> list[Any]:
    if not node.total:
        return ["", "", f"[dim]{node.note}[/]"]
    bar = ProgressBar(total=node.total, completed=node.done, width=BAR_WIDTH)
    return [bar, f"{node.done}/{node.total}{_left(node, now_s)}", f"[dim]{_work(node)} {node.note}[/]"]


def _work(node: Node) -> str:
    return node.task if node.task != node.name else ""


def _left(node: Node, now_s: float) -> str:
    eta_s = node.eta_s(now_s)
    return "" if eta_s is None else f", {duration(eta_s)} left"


def duration(seconds: float) -> str:
    """ "8.1 s", "2 min 05 s" or "1 h 04 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
