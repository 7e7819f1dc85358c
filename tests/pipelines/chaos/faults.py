"""What goes wrong, where and in which order: a pure function of a seed.

A stage is divided into intervals, each ending with a checkpoint. A fault belongs to an interval and to a place in it,
so that those of one stage come in the order of its steps, however often steps are repeated in between.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, Literal

INTERVALS, STEPS_PER_INTERVAL = 8, 3
STEPS = INTERVALS * STEPS_PER_INTERVAL
STAGES = ("stage1", "stage2", "stage3")

Kind = Literal[
    "SIGKILL", "SIGTERM", "store killed", "tracking killed", "tracking frozen", "disk full",
    "NaN then SIGKILL", "NaN", "NaN for ever",
    "byte flipped", "file cut short", "file lost", "manifest lost",
]  # fmt: skip
Place = Literal["start", "step", "save", "manifest", "saved", "end", "between lives"]

# One for each interval that is neither the first nor the last of its stage.
MIDDLE: list[tuple[Kind, Place]] = [
    ("SIGKILL", "step"), ("SIGKILL", "save"), ("SIGKILL", "manifest"), ("SIGKILL", "saved"),
    ("SIGTERM", "step"), ("SIGTERM", "save"), ("SIGTERM", "manifest"), ("SIGTERM", "saved"),
    ("store killed", "step"), ("store killed", "save"), ("store killed", "manifest"), ("store killed", "saved"),
    ("disk full", "step"), ("disk full", "saved"), ("NaN then SIGKILL", "step"), ("NaN then SIGKILL", "step"),
    ("tracking killed", "step"), ("tracking frozen", "save"),
]  # fmt: skip
# One for each stage.
START: list[tuple[Kind, Place]] = [("SIGKILL", "start"), ("store killed", "start"), ("disk full", "start")]
FIRST: list[tuple[Kind, Place]] = [("SIGKILL", "step"), ("SIGTERM", "save"), ("disk full", "step")]
LAST: list[tuple[Kind, Place]] = [("SIGKILL", "end"), ("SIGTERM", "end"), ("SIGKILL", "end")]
# After lives that were ended: damage to the newest checkpoint, and trouble on the way to it.
BETWEEN: list[tuple[Kind, Place]] = [
    ("byte flipped", "between lives"), ("byte flipped", "between lives"), ("file cut short", "between lives"),
    ("file lost", "between lives"), ("manifest lost", "between lives"),
    ("disk full", "start"), ("store killed", "start"),
]  # fmt: skip

START_READ = re.compile(r"GET /\S*/(plan-|step-\d{8}/(?!manifest)).*")
REPORT_WRITE = re.compile(r"PUT /\S*/report\.json.*")
UPLOAD = re.compile(r"(PUT|POST) /\S*/step-(?P<step>\d{8})/(?P<name>.*)")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what. "NaN" is what the network gets to see in the next step, once or in all steps from there on; with
            a SIGKILL before the next checkpoint nothing of the mathematics is changed.
        interval: counted from 0.
        place: "start" is a life's first read of a checkpoint's files or a plan, "step" the interval's first step,
            "save" the upload of its checkpoint's files, "manifest" the moment before that becomes visible, "saved"
            right after, "end" the writing of the stage's report; damage is done between lives.
        draw: in [0, 1), decides what is left to chance: the damaged file, the length of an outage.
    """

    kind: Kind
    interval: int
    place: Place
    draw: float

    def __str__(self) -> str:
        return f"{self.kind} ({self.place}, interval {self.interval})"


def schedule(seed: int) -> dict[str, list[Fault]]:
    """The faults of every stage in the order of their places; the last one of a stage is meant to end its life."""
    draws = random.Random(seed)
    start, first, middle, last = (draws.sample(pool, len(pool)) for pool in (START, FIRST, MIDDLE, LAST))
    faults: dict[str, list[Fault]] = {}
    for stage in STAGES:
        inner = [(middle.pop(), interval) for interval in range(1, INTERVALS - 1)]
        placed = [(start.pop(), 0), (first.pop(), 0), *inner, (last.pop(), INTERVALS - 1)]
        faults[stage] = [Fault(kind, interval, place, draws.random()) for (kind, place), interval in placed]
    # only where a checkpoint before the newest is left
    ends = [(stage, f) for stage in STAGES for f in faults[stage] if f.interval >= 2 and deadly(f)]
    for (stage, end), (kind, place) in zip(draws.sample(ends, len(BETWEEN)), BETWEEN, strict=True):
        faults[stage].insert(faults[stage].index(end) + 1, Fault(kind, end.interval, place, draws.random()))
    return faults


def deadly(fault: Fault) -> bool:
    """Whether another life must follow; one that is asked to end while it writes its report may well have ended."""
    return fault.kind in ("SIGKILL", "NaN then SIGKILL") or (fault.kind == "SIGTERM" and fault.place != "end")


class Trigger:
    """Recognises the place of a fault in the events of a stage.

    Args:
        fault: what is to strike.
        steps_before: steps the optimizer had done when the stage began.
    """

    def __init__(self, fault: Fault, steps_before: int) -> None:
        self._place, self._end = fault.place, (fault.interval + 1) * STEPS_PER_INTERVAL
        self._applied = steps_before + self._end - STEPS_PER_INTERVAL + 1
        self._begun = self._published = False

    def __call__(self, event: dict[str, Any]) -> bool:
        """Whether this event is the place, or, where the place was passed over, the next of its kind."""
        if self._place == "step":
            return bool(event["kind"] == "step" and event["applied"] >= self._applied)
        request = f"{event.get('method')} {event.get('path')}"
        if self._place == "start":
            self._begun = self._begun or event["kind"] == "born"
            return self._begun and START_READ.fullmatch(request) is not None
        if self._place == "end":
            return REPORT_WRITE.fullmatch(request) is not None
        upload = UPLOAD.fullmatch(request)
        ours = upload is not None and int(upload["step"]) >= self._end
        manifest = ours and upload["name"].startswith("manifest.json")
        if self._place == "save":
            return ours and not manifest
        if self._place == "manifest":
            return manifest
        saved, self._published = self._published and not manifest, self._published or manifest
        return saved
