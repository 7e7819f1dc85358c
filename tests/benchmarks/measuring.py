"""Timing by turns and showing figures: the machine's mood hits both sides of a ratio alike."""

from __future__ import annotations

import functools
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

RATIO = "x"


@dataclass(frozen=True)
class Settings:
    """What every benchmark is told.

    Attributes:
        toy: a size that finishes in a second or two and whose figures mean nothing.
        rounds: how often each side of a ratio is timed.
        device: "cpu" or "cuda"; only the network benchmark looks at it.
        compiled: also time the network with torch.compile.
        stage: training stage of the Open-Sora 1.1 preset whose shapes a GPU runs.
        cpu_time: count processor seconds of this process and its children instead of wall time: steadier on a busy
            machine, right only with one thread.
    """

    toy: bool = False
    rounds: int = 5
    device: str = "cpu"
    compiled: bool = False
    stage: str = "stage1"
    cpu_time: bool = False


@dataclass(frozen=True)
class Figure:
    """One number to show.

    Attributes:
        name: what was measured, and over what where it is a ratio.
        value: the median over the rounds.
        unit: of `value`; `RATIO` where it has none.
        low, high: the extremes over the rounds.
    """

    name: str
    value: float
    unit: str = RATIO
    low: float | None = None
    high: float | None = None

    @property
    def spread(self) -> str:
        """The extremes as text, empty where there are none."""
        return "" if self.low is None or self.high is None else f"{_short(self.low)} - {_short(self.high)}"


@dataclass(frozen=True)
class Timings:
    """Seconds of every case, one entry a round."""

    seconds: Mapping[str, Sequence[float]]

    def rate(self, case: str, amount: float, name: str, unit: str) -> Figure:
        """`amount` over the seconds of one case; with amount 0 the seconds themselves."""
        return _median(name, [amount / s if amount else s for s in self.seconds[case]], unit)

    def speed_ratio(self, case: str, other: str, name: str, work: float = 1.0, other_work: float = 1.0) -> Figure:
        """How many times faster `case` works than `other`, taken within each round.

        Args:
            case, other: names of the two cases.
            name: what the figure is called.
            work, other_work: what each of them gets done, in one unit.
        """
        pairs = zip(self.seconds[case], self.seconds[other], strict=True)
        return _median(name, [(work / mine) / (other_work / theirs) for mine, theirs in pairs], RATIO)

    def time_ratio(self, case: str, other: str, name: str) -> Figure:
        """How many times longer `case` takes than `other`, taken within each round."""
        pairs = zip(self.seconds[case], self.seconds[other], strict=True)
        return _median(name, [mine / theirs for mine, theirs in pairs], RATIO)


def _median(name: str, values: Sequence[float], unit: str) -> Figure:
    return Figure(name, statistics.median(values), unit, min(values), max(values))


def by_turns(cases: Mapping[str, Callable[[], object]], settings: Settings, what: str) -> Timings:
    """Time cases one after another, round after round, each round beginning with another case.

    Every case runs once untimed before.

    Args:
        cases: what to time, by name.
        settings: for the number of rounds.
        what: shown beside the progress bar.
    """
    clock = _processor_seconds if settings.cpu_time else time.perf_counter
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for case in cases.values():
        case()
    for turn in track(range(settings.rounds), what, transient=True, disable=not Console().is_terminal):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            _wait_for_device()
            began = clock()
            cases[name]()
            _wait_for_device()
            seconds[name].append(clock() - began)
    return Timings(seconds)


def _processor_seconds() -> float:
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul(side: int, dtype: torch.dtype, device: torch.device | str = "cpu", times: int = 1) -> None:
    """What the machine can do at most: products of two square matrices."""
    left, right = _factors(side, dtype, torch.device(device))
    for _ in range(times):
        torch.matmul(left, right)


@functools.cache
def _factors(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return left, right


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def show(title: str, figures: Sequence[Figure], console: Console | None = None) -> None:
    """A table on a terminal, one plain line a figure otherwise."""
    console = console or Console()
    if not console.is_terminal:
        for figure in figures:
            spread = f"  ({figure.spread})" if figure.spread else ""
            line = f"{title}: {figure.name}: {_short(figure.value)} {figure.unit}{spread}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left")
    for heading, justify in (("figure", "left"), ("median", "right"), ("", "left"), ("lowest - highest", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        table.add_row(figure.name, _short(figure.value), figure.unit, figure.spread)
    console.print(table)


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
