"""Starting the ranks of one machine, where no launcher (torchrun, Kubeflow Trainer) has done so.

The ranks are processes of torchrun's own agent, each with the command line `python -m components.train`; this process
waits, hands signals on, and ends as they do: 75 when they were told to stop, 70 when nothing moved, else with the
sentence of the rank that failed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.cli import EXIT_HUNG, EXIT_PREEMPTED
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.train.interruption import Preempted
from components.train_command import train_command

AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
GRACE_MARGIN_S = 5
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def num_processes(config: TrainConfig) -> int:
    """How many ranks this process is to start; 0 when it is a rank itself or trains alone."""
    if config.parallel == "none" or "RANK" in os.environ:
        return 0
    return config.processes or torch.cuda.device_count()


def launch(
    config: TrainConfig, tracking: TrackingConfig, processes: int, *, data: str, parent: str | None, out: str
) -> None:
    """Run one stage in `processes` ranks of this machine until all have ended well.

    Args:
        config, tracking, data, parent, out: see `components.train.train`.
        processes: ranks; each takes the GPU of its number where there are any.

    Raises:
        KinoflowError: a rank failed.
        SystemExit: the ranks were told to stop, or hung.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for noisy in ("torch.distributed.launcher", "torch.distributed.elastic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="spawn", local_addr="localhost",
        shutdown_timeout=round(config.grace_s) + GRACE_MARGIN_S,
    )  # fmt: skip
    command = train_command(config, tracking, data=data, parent=parent, out=out)
    try:
        with _own_signals():
            elastic_launch(settings, sys.executable)(*command)
    except SignalException as error:
        raise Preempted("Told to stop; start again to go on.") from error
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if EXIT_HUNG in codes:
            sys.exit(EXIT_HUNG)
        if EXIT_PREEMPTED in codes:
            raise Preempted("Told to stop; start again to go on.") from error
        rank, failure = next(
            ((rank, one) for rank, one in error.failures.items() if "timestamp" in one.error_file_data),
            error.get_first_failure(),
        )
        told = failure.message if "timestamp" in failure.error_file_data else f"exit code {failure.exitcode}"
        raise KinoflowError(f"Rank {rank} of {processes} failed: {told}") from error


def end_with_the_launcher() -> None:
    """Let this rank be told to stop when its launcher is killed, which has no time to tell."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give signals back as they were: the agent takes them and keeps them."""
    before = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
