"""Many files on many processes, where one file that kills its process costs only itself."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

PARENT_CHECK_S = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")

# Processes are started afresh: a fork would inherit the threads' locks of the parent.
_CONTEXT = multiprocessing.get_context("spawn")


def map_files(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, crashed: Callable[[Item], Result]
) -> Iterator[tuple[int, Result]]:
    """Apply a picklable function to every item; yields (index, result) in whatever order they get done.

    Args:
        function: a module-level function; what it raises ends the iteration.
        items: its inputs.
        workers: processes; one works in this process, and then nothing protects it from a crash.
        crashed: the result for an item whose process died (a decoder met hostile bytes).
    """
    if workers == 1 or len(items) < 2:
        cv2.setNumThreads(1)
        for index, item in enumerate(items):
            yield index, function(item)
        return
    done: set[int] = set()
    try:
        for index, result in _run(function, items, range(len(items)), workers):
            done.add(index)
            yield index, result
    except BrokenProcessPool:
        # Nobody knows which item did it: the rest goes one by one, each in a process of its own.
        for index in range(len(items)):
            if index not in done:
                yield index, _run_alone(function, items, index, crashed)


def _run(
    function: Callable[[Item], Result], items: Sequence[Item], indices: Sequence[int], workers: int
) -> Iterator[tuple[int, Result]]:
    pool = ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        futures: dict[Future[Result], int] = {pool.submit(function, items[index]): index for index in indices}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed cannot stop its workers; they see that they were handed to another one."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _run_alone(
    function: Callable[[Item], Result], items: Sequence[Item], index: int, crashed: Callable[[Item], Result]
) -> Result:
    try:
        return next(result for _, result in _run(function, items, [index], 1))
    except BrokenProcessPool:
        return crashed(items[index])
