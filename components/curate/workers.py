"""Many files on many processes, where one file that kills its process costs only itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from components.worker_pool import worker_pool

IN_FLIGHT_PER_WORKER = 3
"""Enough that no process waits, few enough that neither tasks nor results pile up."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_files(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, crashed: Callable[[Item], Result]
) -> Iterator[tuple[int, Result]]:
    """Apply a picklable function to every item; yields (index, result) in whatever order they get done.

    Args:
        function: a module-level function; what it raises ends the iteration.
        items: its inputs, asked for one by one.
        workers: processes; one works in this process, and then nothing protects it from a crash.
        crashed: the result for an item whose process died (a decoder met hostile bytes).
    """
    if workers == 1 or len(items) < 2:
        cv2.setNumThreads(1)
        for index in range(len(items)):
            yield index, function(items[index])
        return
    indices = iter(range(len(items)))
    while suspects := (yield from _until_broken(function, items, indices, workers)):
        # One of those under way did it, nobody knows which: each gets a process of its own.
        for index in suspects:
            yield index, _run_alone(function, items, index, crashed)


def _until_broken(
    function: Callable[[Item], Result], items: Sequence[Item], indices: Iterator[int], workers: int
) -> Generator[tuple[int, Result], None, list[int]]:
    """Work through the indices; returns those under way when a process died, none when all are done."""
    under_way: dict[Future[Result], int] = {}
    with worker_pool(workers) as pool:
        while True:
            for index in itertools.islice(indices, IN_FLIGHT_PER_WORKER * workers - len(under_way)):
                try:
                    under_way[pool.submit(function, items[index])] = index
                except BrokenProcessPool:
                    return sorted([*under_way.values(), index])
            if not under_way:
                return []
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                yield from _finished(under_way)
                return sorted(under_way.values())
            for future in done:
                yield under_way.pop(future), future.result()


def _finished(under_way: dict[Future[Result], int]) -> Iterator[tuple[int, Result]]:
    """Take those out that were done before the process died."""
    for future in [future for future in under_way if future.done() and future.exception() is None]:
        yield under_way.pop(future), future.result()


def _run_alone(
    function: Callable[[Item], Result], items: Sequence[Item], index: int, crashed: Callable[[Item], Result]
) -> Result:
    for _, result in _until_broken(function, items, iter([index]), 1):
        return result
    return crashed(items[index])
