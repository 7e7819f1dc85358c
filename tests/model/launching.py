"""Starts the ranks of `tests.model.parallel_worker` and waits for them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.model.parallel_worker import Case

REPO = Path(__file__).resolve().parents[2]
TIMEOUT_S = 280


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def run_cases(cases: list[Case], world_size: int, folder: Path, worker: str = "tests.model.parallel_worker") -> None:
    """Run all cases one after another in the same processes; fails with the output of the first rank that did."""
    for case, port in zip(cases, free_ports(len(cases)), strict=True):
        case.port = port
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cases-{world_size}.json"
    path.write_text(json.dumps([asdict(case) for case in cases]))
    shared = {**os.environ, "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", worker, str(path)], cwd=REPO, text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=TIMEOUT_S)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
