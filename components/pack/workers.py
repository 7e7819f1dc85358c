"""Many sources on many processes, results in order; a source that kills its process costs only itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from components.worker_pool import worker_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items for each process that may be done before their turn."""


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, crashed: Callable[[Item], Result]
) -> Iterator[tuple[Item, Result]]:
    """Apply a picklable function to every item; yields each with its result, in the order of the items.

    Args:
        function: A module-level function; what it raises ends the iteration.
        items: Its inputs, taken as they are needed.
        workers: Processes; one works in this process, and then nothing protects it from a crash.
        crashed: The result for an item whose process died (a decoder met hostile bytes).
    """
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    waiting = iter(items)
    while True:
        taken: deque[Item] = deque()
        for result in _until_crash(function, waiting, taken, workers):
            yield taken.popleft(), result
        if not taken:
            return
        # Nobody knows which of those under way did it: each goes alone, in a process of its own.
        for item in taken:
            results = list(_until_crash(function, iter([item]), deque(), 1))
            yield item, results[0] if results else crashed(item)


def _until_crash(
    function: Callable[[Item], Result], waiting: Iterator[Item], taken: deque[Item], workers: int
) -> Iterator[Result]:
    """Results in order; ends early when a process dies, and then `taken` holds the items that have none."""
    running: deque[Future[Result]] = deque()
    with suppress(BrokenProcessPool), worker_pool(workers) as pool:
        while True:
            for item in islice(waiting, AHEAD * workers - len(running)):
                taken.append(item)
                running.append(pool.submit(function, item))
            if not running:
                return
            yield running.popleft().result()
