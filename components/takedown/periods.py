"""What a checkpoint has seen: the plan of its stage up to its step, without what was taken down at the time.

Which clips a stage leaves out may change while it runs. Its checkpoints say from which step on it left out what: facts
(`taken_down`) by the digest of the clips, annotations (`tombstones`) by the ids of the tombstones. A stage that never
left out anything says nothing, and its checkpoints are what they would be if there were no takedowns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from components import manifest
from components.errors import KinoflowError
from components.manifest import Manifest
from components.plan_file import PlanFile
from components.takedown.dataset import TakenDown
from components.takedown.plans import Int64, Kept, Mask
from components.takedown.tombstones import ANNOTATION, REASON, digest_of_ids

Steps = tuple[int, int]
"""First and end (exclusive)."""


class Period(BaseModel):
    """From which step on a stage left out which clips of its plan.

    Attributes:
        digest: Of their ids, empty for none.
        tombstones: Ids of the tombstones that took them down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    first_step: int = 0
    num_clips: int = 0
    digest: str = ""
    tombstones: tuple[str, ...] = ()

    @classmethod
    def since(cls, step: int, plan: PlanFile, taken: TakenDown) -> Period:
        """From a step on without what is taken down of the plan."""
        occurring = np.unique(plan.clip[taken.mask(plan)[plan.clip]]) if taken else np.empty(0, np.int64)
        ids = [plan.clips.ids[row] for row in occurring.tolist()]
        tombstones = taken.tombstones if ids else ()
        return cls(first_step=step, num_clips=len(ids), digest=digest_of_ids(ids), tombstones=tombstones)


History = tuple[Period, ...]
"""Of a stage, by first step; the first one begins at 0."""
_FACTS = TypeAdapter(list[Period])


def history_of(checkpoint: Manifest) -> History:
    """What the stage of a checkpoint left out up to it."""
    facts = checkpoint.facts.get(REASON)
    if not isinstance(facts, list):
        return (Period(),)
    tombstones = json.loads(checkpoint.annotations.get(ANNOTATION, "[]")) or [[] for _ in facts]
    told = _FACTS.validate_python(facts)
    return tuple(p.model_copy(update={"tombstones": tuple(ids)}) for p, ids in zip(told, tombstones, strict=True))


def facts_of(history: History) -> dict[str, JsonValue]:
    """Facts of a checkpoint's manifest; none for a stage that never left out anything."""
    if not any(period.digest for period in history):
        return {}
    return {REASON: [period.model_dump(mode="json", exclude={"tombstones"}) for period in history]}


def annotations_of(history: History) -> dict[str, str]:
    """Annotations of a checkpoint's manifest, likewise."""
    return {ANNOTATION: json.dumps([period.tombstones for period in history])} if facts_of(history) else {}


def inputs_of(history: History) -> dict[str, str]:
    """The input of a checkpoint by which stages differ that left out different clips; likewise."""
    facts = facts_of(history)
    return {REASON: manifest.digest_of(facts)} if facts else {}


class Seen:
    """What a stage reads of its plan, by step.

    Args:
        plan: Of the stage.
        batches_per_step: Of the plan.
        ask: What these tombstones take down.
    """

    def __init__(self, plan: PlanFile, batches_per_step: int, ask: Callable[[Sequence[str]], TakenDown]) -> None:
        self.plan, self.batches_per_step = plan, batches_per_step
        self._ask = ask
        self._kept: dict[str, Kept] = {}

    def rows(self, history: History, first_step: int, end_step: int) -> Int64:
        """Rows of the plan that the steps `first_step` to `end_step` (exclusive) read."""
        parts = [np.empty(0, np.int64)]
        for period, (first, end) in self._cut(history, first_step, end_step):
            parts.append(self._of(period).rows_of(first * self.batches_per_step, end * self.batches_per_step))
        return np.concatenate(parts)

    def clips(self, history: History, end_step: int, left_out: Sequence[Steps] = ()) -> Int64:
        """Positions in `plan.clips` of the clips that the steps before `end_step` read, but for steps left out."""
        seen = np.zeros(len(self.plan.clips.ids), dtype=np.bool_)
        for first, end in counted(end_step, left_out):
            seen[self.plan.clip[self.rows(history, first, end)]] = True
        return np.flatnonzero(seen)

    def is_same(self, history: History, other: History, end_step: int) -> bool:
        """Whether the steps before `end_step` read the same under two histories."""
        bounds = {p.first_step for p in (*history, *other) if p.first_step < end_step} | {end_step}
        ordered = sorted(bounds)
        for first, end in pairwise(ordered):
            [(one, span)], [(two, _)] = self._cut(history, first, end), self._cut(other, first, end)
            first_batch, end_batch = (step * self.batches_per_step for step in span)
            if one.digest != two.digest and not self._of(one).is_same(self._of(two), first_batch, end_batch):
                return False
        return True

    def _cut(self, history: History, first_step: int, end_step: int) -> list[tuple[Period, Steps]]:
        ends = [period.first_step for period in history[1:]] + [end_step]
        cut = [(p, (max(p.first_step, first_step), min(end, end_step))) for p, end in zip(history, ends, strict=True)]
        return [(period, span) for period, span in cut if span[0] < span[1]]

    def _of(self, period: Period) -> Kept:
        if period.digest not in self._kept:
            self._kept[period.digest] = self._without(period) if period.digest else Kept.all_of(self.plan)
        return self._kept[period.digest]

    def _without(self, period: Period) -> Kept:
        taken = self._ask(period.tombstones)
        if Period.since(0, self.plan, taken).digest != period.digest:
            raise KinoflowError(
                f"The tombstones {', '.join(period.tombstones)} do not take down the clips that a checkpoint was made "
                "without; was one of them changed?"
            )
        mask: Mask = taken.mask(self.plan)
        return Kept.of(self.plan, mask)


def counted(end_step: int, left_out: Sequence[Steps]) -> list[Steps]:
    """Steps 0 to `end_step` (exclusive) without those left out, as few ranges."""
    ranges, start = list[Steps](), 0
    for first, end in sorted(left_out):
        if start < min(first, end_step):
            ranges.append((start, min(first, end_step)))
        start = max(start, end)
    return [*ranges, (start, end_step)] if start < end_step else ranges
