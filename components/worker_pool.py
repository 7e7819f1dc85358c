"""Processes that work on files: started afresh, and gone when the process that started them is."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import cv2

PARENT_CHECK_S = 1.0

# A fork would inherit the threads' locks of the parent.
_CONTEXT = multiprocessing.get_context("spawn")


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """That many processes; what has not begun when the block is left is dropped."""
    pool = ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed cannot stop its workers; they see that they were handed to another one."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
