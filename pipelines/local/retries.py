"""When a graph that ended early is started again: preemptions and faults have budgets of their own, mistakes none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.cli import EXIT_PREEMPTED

Cause = Literal["preempted", "fault", "mistake"]


@dataclass(frozen=True)
class Budgets:
    """How often a run may be started again.

    Attributes:
        preemptions: after a stage was told to stop, saved, and ended with `EXIT_PREEMPTED`.
        faults: after a stage hung, or vanished without a word (killed, out of memory).
    """

    preemptions: int = 50
    faults: int = 3

    def of(self, cause: Cause) -> int:
        """How often in all after that cause; a mistake comes back with every start."""
        return {"preempted": self.preemptions, "fault": self.faults, "mistake": 0}[cause]


def cause_of(events: Sequence[dict[str, Any]]) -> Cause:
    """Why an attempt failed, from the events of its stages (`components.cli`)."""
    for event in events:
        if "ending" in event:
            return "preempted" if event["ending"] == EXIT_PREEMPTED else "fault"
        if "error" in event:
            return "mistake"
    return "fault"


def run_until_done(attempt: Callable[[], Cause | None], budgets: Budgets, say: Callable[[str], None]) -> Cause | None:
    """Attempt again while the budget of what went wrong lasts; returns what went wrong last, None when all is done."""
    counts: dict[Cause, int] = {"preempted": 0, "fault": 0, "mistake": 0}
    while (cause := attempt()) is not None:
        counts[cause] += 1
        if counts[cause] > budgets.of(cause):
            return cause
        say(f"{cause}: started again, {counts[cause]} of at most {budgets.of(cause)} times")
    return None
