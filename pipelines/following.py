"""Following a run of Kubeflow Pipelines until it ends: one line for every change, or a table on a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipelines.kubeflow import Kubeflow

POLL_S = 5.0
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
COLOURS = {"RUNNING": "cyan", "SUCCEEDED": "green", "SKIPPED": "green", "FAILED": "red", "CANCELED": "yellow"}
OWN_NODES = ("root", "executor")
"""Nodes of Kubeflow's own making; those of the graph are all others but their drivers."""
MAX_ERROR_CHARS = 500

Ending = Literal["succeeded", "failed", "canceled"]


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        state: of the whole run, in Kubeflow's words.
        tasks: state of every task that has one, by the name a person reads.
        errors: what the server says about tasks that failed, and about the run under the name "".
    """

    state: str
    tasks: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return "succeeded" if self.state in ENDED[:2] else "canceled" if self.state == "CANCELED" else "failed"


def graph_tasks(graph: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tasks of a compiled graph that do something, by key; those inside an exit handler take part in its order."""
    found: dict[str, Mapping[str, Any]] = {}

    def add(dag: Mapping[str, Any], before: list[str]) -> None:
        for key, task in dag.get("tasks", {}).items():
            inner = graph.get("components", {}).get(task.get("componentRef", {}).get("name"), {}).get("dag")
            depends = [*task.get("dependentTasks", []), *before]
            if inner:
                add(inner, depends)
            else:
                found[key] = {**task, "dependentTasks": depends}

    add(graph.get("root", {}).get("dag", {}), [])
    handlers = {one for task in found.values() for one in task["dependentTasks"] if one not in found}
    for key, task in found.items():  # what comes after a handler comes after all in it
        if handlers & set(task["dependentTasks"]):
            inside = [other for other in found if other != key]
            kept = [one for one in task["dependentTasks"] if one in found]
            found[key] = {**task, "dependentTasks": [*kept, *inside]}
    return found


def task_names(graph: Mapping[str, Any]) -> dict[str, str]:
    """The name a person reads of every task of a compiled graph, by its key, in the graph's order."""
    dag = graph_tasks(graph)
    named = {key: str(task.get("taskInfo", {}).get("name") or key) for key, task in dag.items()}
    order: list[str] = []
    waiting = dict(sorted(dag.items()))
    while waiting:
        ready = [key for key, task in waiting.items() if not set(task.get("dependentTasks", [])) & set(waiting)]
        order += ready or list(waiting)
        waiting = {} if not ready else {key: task for key, task in waiting.items() if key not in ready}
    return {key: named[key] for key in order}


def snapshot(run: Any, names: Mapping[str, str]) -> Snapshot:
    """What the server's answer about a run says of the graph's own tasks.

    Args:
        run: `V2beta1Run`.
        names: see `task_names`; without any, every node that is not of Kubeflow's own making is a task.
    """
    tasks: dict[str, str] = {}
    errors: dict[str, str] = {}
    details = run.run_details.task_details if run.run_details else None
    for task in details or []:
        key = re.sub(r"\(\d+\)$", "", task.display_name or "")  # attempts of one task
        if names and key not in names:
            continue
        if not names and (key in OWN_NODES or key.endswith("-driver") or not key or key == run.display_name):
            continue
        name = names.get(key, key)
        tasks[name] = str(task.state or "PENDING")
        if task.error and task.error.message:
            errors[name] = _short(task.error.message)
    if run.error and run.error.message:
        errors[""] = _short(run.error.message)
    order = [name for name in names.values() if name in tasks] or sorted(tasks)
    return Snapshot(str(run.state or "PENDING"), {name: tasks[name] for name in order}, errors)


def _short(text: str) -> str:
    return " ".join(text.split())[:MAX_ERROR_CHARS]


def follow(
    kubeflow: Kubeflow, run_id: str, names: Mapping[str, str], console: Console, poll_s: float = POLL_S
) -> Snapshot:
    """Show a run's progress until it ends; returns its end.

    Raises:
        KubeflowAway: the server stayed away for longer than the client's patience.
        KubeflowError: the server refuses to tell.
    """
    with _shown(names, console) as show:
        while True:
            now = snapshot(kubeflow.run(run_id), names)
            show(now)
            if now.ended:
                return now
            time.sleep(poll_s)


@contextmanager
def _shown(names: Mapping[str, str], console: Console) -> Iterator[Callable[[Snapshot], None]]:
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda now: live.update(_table(now, names))
    else:
        yield _Lines(console).show


class _Lines:
    """One line for every task and state that changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before = Snapshot("")

    def show(self, now: Snapshot) -> None:
        if now.state != self._before.state and not now.ended:
            self._say(f"run: {now.state.lower()}")
        for name, state in now.tasks.items():
            if state != self._before.tasks.get(name):
                error = now.errors.get(name, "") if state == "FAILED" else ""
                self._say(f"{name}: {state.lower()}{f' ({error})' if error else ''}")
        self._before = now

    def _say(self, text: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


def _table(now: Snapshot, names: Mapping[str, str]) -> Table:
    table = Table("task", "state", "", title=f"run: {now.state.lower()}", title_justify="left", box=None)
    for name in [*names.values()] or [*now.tasks]:
        state = now.tasks.get(name, "")
        colour = COLOURS.get(state, "dim")
        table.add_row(
            escape(name), f"[{colour}]{state.lower() or 'waiting'}[/{colour}]", escape(now.errors.get(name, ""))
        )
    return table
