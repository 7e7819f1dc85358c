"""Many sources on many processes, results in order; a source that kills its process costs only itself."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PARENT_CHECK_S = 1.0
AHEAD = 2
"""Items for each process that may be done before their turn."""
# Processes are started afresh: a fork would inherit the threads' locks of the parent.
_CONTEXT = multiprocessing.get_context("spawn")


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
    pool = ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=(os.getpid(),))
    running: deque[Future[Result]] = deque()
    try:
        while True:
            for item in islice(waiting, AHEAD * workers - len(running)):
                taken.append(item)
                running.append(pool.submit(function, item))
            if not running:
                return
            yield running.popleft().result()
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed cannot stop its workers; they see that they were handed to another one."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
