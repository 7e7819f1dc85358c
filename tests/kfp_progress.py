"""How a run of the local Kubeflow Pipelines moves on: by one task with every question about it."""

from __future__ import annotations

import uuid
from typing import Any


def tasks_of(graph: dict[str, Any]) -> list[str]:
    """Keys of a graph's tasks as they run: those of an exit handler in its place, and after it what ends the run."""
    keys: list[str] = []
    root = graph["root"]["dag"]["tasks"]
    for key in order(root):
        inner = graph["components"][root[key]["componentRef"]["name"]].get("dag")
        keys += order(inner["tasks"]) if inner else [key]
    return keys


def order(tasks: dict[str, Any]) -> list[str]:
    """Keys of one level's tasks, each after those it depends on."""
    ordered: list[str] = []
    while len(ordered) < len(tasks):
        ordered += sorted(
            key for key, task in tasks.items()
            if key not in ordered and set(task.get("dependentTasks", [])) <= set(ordered)
        )  # fmt: skip
    return ordered


def progress(asked: int, keys: list[str], fail_task: str, *, cancel: bool) -> tuple[str, list[dict[str, Any]]]:
    """State of the run and its nodes when it is asked about for the `asked`-th time; Kubeflow's own nodes too."""
    if asked == 0:
        return "PENDING", []
    details = [_node("root-driver", "SUCCEEDED"), _node("root", "RUNNING")]
    for index, key in enumerate(keys[:asked]):
        running = index == asked - 1
        if running and cancel:
            return "CANCELED", [*details, _node(key, "CANCELED")]
        if not running and key == fail_task:
            return "FAILED", [*details, _node(key, "FAILED", "main: exit code 1")]
        details += [_node(f"{key}-driver", "SUCCEEDED"), _node(key, "RUNNING" if running else "SUCCEEDED")]
        details += [_node("executor", "RUNNING" if running else "SUCCEEDED")]
    return ("SUCCEEDED" if asked > len(keys) else "RUNNING"), details


def _node(name: str, state: str, error: str = "") -> dict[str, Any]:
    node: dict[str, Any] = {"display_name": name, "task_id": str(uuid.uuid4()), "state": state}
    return {**node, "error": {"code": 2, "message": error}} if error else node
