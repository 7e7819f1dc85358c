"""Run benchmarks: `python -m tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import importlib
import os
from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console

from tests.benchmarks.measuring import Settings, show, torch_threads


class Benchmark(StrEnum):
    """The benchmarks, each a module of this package with `run(settings) -> list[Figure]`."""

    NETWORK = "network"
    BUCKETS = "buckets"
    CURATE = "curate"
    STORAGE = "storage"
    PACKING = "packing"
    SAMPLING = "sampling"
    PLANNER = "planner"
    TAKEDOWN = "takedown"
    DUPLICATES = "duplicates"


class Device(StrEnum):
    """Where the network benchmark computes."""

    CPU = "cpu"
    CUDA = "cuda"


def run(
    names: Annotated[list[Benchmark] | None, typer.Argument(help="Which benchmarks; all when absent.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side of a ratio is timed.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads torch computes with.")] = 2,
    device: Annotated[Device, typer.Option(help="Where the network computes; cuda runs XL/2.")] = Device.CPU,
    stage: Annotated[str, typer.Option(help="Stage of opensora-v1.1 whose shapes a GPU runs.")] = "stage1",
    compiled: Annotated[bool, typer.Option("--compile", help="Time the compiled network too.")] = False,
    cpu_time: Annotated[bool, typer.Option("--cpu-time", help="Count processor seconds; use one thread.")] = False,
    toy: Annotated[bool, typer.Option("--toy", help="Only check that it runs: tiny sizes, idle figures.")] = False,
) -> None:
    """Time the product against peers in the same process and print the ratios."""
    if device is Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; leave --device out.", param_hint="--device")
    if cpu_time and threads > 1:
        raise typer.BadParameter(
            "processor time only compares single threads; add --threads 1.", param_hint="--cpu-time"
        )
    settings = Settings(toy, rounds, device.value, compiled, stage, cpu_time)
    console = Console()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    clock = "processor time" if cpu_time else "wall time"
    line = (
        f"torch {torch.__version__}, {threads} threads, {os.cpu_count()} cores, load {load:.1f} at the start, {clock}"
    )
    console.print(line, highlight=False, soft_wrap=True)
    with torch_threads(threads):
        for name in names or list(Benchmark):
            module = importlib.import_module(f"tests.benchmarks.{name.value}")
            show(name.value, module.run(settings), console)


if __name__ == "__main__":
    typer.run(run)
