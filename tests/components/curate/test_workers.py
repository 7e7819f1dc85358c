"""Many processes, one result; one crash, one file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components.curate.workers import map_files


def square(number: int) -> int:
    return number * number


def die_on_one(number: int) -> int:
    if number == 1:
        os._exit(11)
    return number * number


def leave_a_trace_and_sleep(folder: str) -> str:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)
    return folder


def refuse(number: int) -> int:
    raise ValueError(f"number {number}")


def crashed(number: int) -> int:
    return -number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once(workers: int) -> None:
    assert sorted(map_files(square, range(5), workers, crashed)) == [(n, n * n) for n in range(5)]
    assert list(map_files(square, [], workers, crashed)) == []


def test_a_crash_costs_only_its_item() -> None:
    assert sorted(map_files(die_on_one, range(3), 2, crashed)) == [(0, 0), (1, -1), (2, 4)]


def test_an_exception_ends_the_iteration() -> None:
    with pytest.raises(ValueError, match="number"):
        list(map_files(refuse, [1, 2], 2, crashed))


def test_workers_leave_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "from components.curate.workers import map_files\n"
        "from tests.components.curate.test_workers import leave_a_trace_and_sleep as sleep\n"
        f"list(map_files(sleep, [{str(tmp_path)!r}] * 2, 2, sleep))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()))


def wait_until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
