"""The studio's work: drawings wait in one queue, one is made at a time, and any of them can be cancelled."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from components import manifest
from components.cli import user_sentence
from components.generation import Bundle, load_bundle
from components.generation.drawing import draw
from components.generation.files import save
from components.registry import resolve
from components.studio.orders import Order, read_references

logger = logging.getLogger(__name__)
KEPT_BUNDLES = 2  # both sides of a comparison stay loaded
KEPT_JOBS = 50


class State(StrEnum):
    """Where a drawing is."""

    WAITING = "waiting"
    LOADING = "loading"
    DRAWING = "drawing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (State.DONE, State.FAILED, State.CANCELLED)


@dataclass
class Job:
    """One drawing: written by the session's thread, read by every page.

    Attributes:
        done, total: sampling steps.
        path: the saved file, once there is one.
        error: the sentence to show when it failed.
    """

    number: int
    order: Order
    state: State = State.WAITING
    done: int = 0
    total: int = 0
    path: Path | None = None
    error: str = ""
    drawing_since_s: float = field(default=0.0, repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    @property
    def remaining_s(self) -> float | None:
        """Seconds left by the pace so far; None before the first step."""
        if self.state is not State.DRAWING or not self.done:
            return None
        return (time.monotonic() - self.drawing_since_s) / self.done * (self.total - self.done)


class Cancelled(Exception):  # noqa: N818  # not an error: somebody wanted it
    """Ends a drawing between two steps."""


class Session:
    """Draws what is ordered, one at a time, in a thread of its own.

    Args:
        folder: where finished files go; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)
        self._jobs: deque[Job] = deque(maxlen=KEPT_JOBS)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._bundles: OrderedDict[str, Bundle] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Put a drawing at the end of the queue."""
        with self._changed:
            job = Job(next(self._numbers), order)
            self._jobs.append(job)
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def jobs(self) -> list[Job]:
        """The last drawings, oldest first, whatever became of them."""
        with self._changed:
            return list(self._jobs)

    def cancel(self, job: Job) -> None:
        """End a drawing: at once when it waits, after its current step when it is being made."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = State.CANCELLED

    def close(self, timeout_s: float = 30.0) -> None:
        """Cancel everything and wait for the thread to end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for job in self.jobs():
            self.cancel(job)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting)
                if self._closing:
                    return
                job = self._waiting.popleft()
                job.state = State.LOADING
            self._make(job)

    def _make(self, job: Job) -> None:
        try:
            job.path = self._draw(job)
            job.state = State.DONE
        except Cancelled:
            job.state = State.CANCELLED
        except Exception as error:
            sentence = user_sentence(error)
            if sentence is None:
                logger.exception("drawing %d failed", job.number)
                sentence = f"The program failed ({type(error).__name__}: {error}); the terminal says where."
            job.error = sentence
            job.state = State.FAILED

    def _draw(self, job: Job) -> Path:
        order = job.order
        references = read_references(order)
        bundle = self._bundle(order.checkpoint)

        def on_step(done: int, total: int) -> None:
            if job.cancelled.is_set():
                raise Cancelled
            job.done, job.total = done, total

        on_step(0, order.config.sampling.num_inference_steps)
        job.drawing_since_s = time.monotonic()
        job.state = State.DRAWING
        names = [upload.name for upload in order.references]
        drawn = draw(bundle, order.prompt, references, order.config, on_step=on_step, reference_names=names)
        dataset = manifest.load(bundle.data).dataset_digest
        drawn = replace(drawn, settings=drawn.settings | {"dataset_digest": dataset})
        return save(drawn, self.folder / stem_of(order, job.number), kind=order.kind)

    def _bundle(self, checkpoint: str) -> Bundle:
        """The loaded checkpoint; the ones used last stay in memory."""
        if checkpoint not in self._bundles:
            while len(self._bundles) >= KEPT_BUNDLES:
                self._bundles.popitem(last=False)
            self._bundles[checkpoint] = load_bundle(resolve(checkpoint))
        self._bundles.move_to_end(checkpoint)
        return self._bundles[checkpoint]


def stem_of(order: Order, number: int) -> str:
    """Name of a file without its suffix: when, what, and the seed; no character that a shell or a browser minds."""
    words = re.sub(r"[^a-z0-9]+", "-", order.prompt.lower()).strip("-")[:48].strip("-")
    return f"{datetime.now():%Y%m%d-%H%M%S}-{number:03d}-{words or 'video'}-seed{order.config.seed}"
