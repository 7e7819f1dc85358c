"""Which clips a checkpoint was trained on: those of its own stage up to its step, and those of every stage before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from pydantic import ValidationError

from components import manifest, store
from components.layout import CHECKPOINT
from components.manifest import Manifest, ManifestError
from components.plan_file import PlanFile, training_plan
from components.takedown import TakenDown, taken_down
from components.takedown.periods import History, Seen, Steps, history_of
from components.takedown.plans import Int64
from model.checkpoint import STATE, Progress

DATASET = "dataset"


@dataclass(frozen=True)
class StageSeen:
    """One stage on the way to a checkpoint.

    Attributes:
        checkpoint: URI of what it left for the next one.
        published: Its manifest.
        data: URI of the bucket output it was trained on.
        dataset: The manifest there; None when it is gone or is another one by now.
    """

    checkpoint: str
    published: Manifest
    data: str
    dataset: Manifest | None

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return str(self.published.facts.get("stage", ""))

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        step = self.published.facts.get("step", 0)
        return step if isinstance(step, int) else 0

    @property
    def fault(self) -> str | None:
        """Why what it has seen cannot be told, as a sentence; None when it can."""
        if self.dataset is None:
            return f"what {self.checkpoint} was trained on ({self.data}) is gone or was replaced"
        if training_plan(self.stage) not in self.dataset.files:
            return f"{self.data} holds no plan for the stage {self.stage!r} of {self.checkpoint}"
        return None

    @property
    def history(self) -> History:
        """What the stage left out, and from which step on."""
        return history_of(self.published)

    @cached_property
    def clip_ids(self) -> pl.Series:
        """Ids of the clips it has seen, each once, sorted; none where that cannot be told."""
        if self.fault:
            return pl.Series("clip_id", [], dtype=pl.String)
        plan = open_plan(self.data, self.stage)
        return ids_of(plan, self.clips(plan)).sort()

    def clips(self, plan: PlanFile) -> Int64:
        """Positions in `plan.clips` of the clips it has seen.

        Args:
            plan: Of the stage, from `open_plan`.
        """
        assert self.dataset is not None
        seen = Seen(plan, self._batches_per_step(), partial(taken_down, self.data, self.dataset))
        return seen.clips(self.history, self.step, left_out_steps(self.published))

    def taken_down(self, ids: Sequence[str] | None = None) -> TakenDown:
        """What is taken down of the clips of its dataset."""
        return taken_down(self.data, self.dataset, ids) if self.dataset else TakenDown()

    def taken_down_since(self) -> TakenDown:
        """What it has seen that is taken down now, and the tombstones that are in force where it was trained."""
        taken = self.taken_down()
        met = taken.ids & set(self.clip_ids) if taken else set()
        return TakenDown(frozenset(met), taken.tombstones if met else ())

    def _batches_per_step(self) -> int:
        uri = store.join(self.checkpoint, STATE)
        try:
            return Progress.model_validate_json(store.read_bytes(uri)).batches_per_step
        except (store.ObjectMissing, ValidationError) as error:
            raise ManifestError(f"{uri} is missing or damaged; what the checkpoint has seen cannot be told.") from error


def ids_of(plan: PlanFile, rows: Int64) -> pl.Series:
    """Ids of these clips of a plan."""
    return pl.Series("clip_id", list(plan.clips.ids.take(rows).each()), dtype=pl.String)


def open_plan(data: str, stage: str) -> PlanFile:
    """The training plan of a stage, mapped from a copy that goes when the plan does."""
    name = training_plan(stage)
    with TemporaryDirectory(prefix="kinoflow-") as folder:
        manifest.fetch(data, Path(folder), [name], kind=DATASET)
        return PlanFile.open(Path(folder) / name)


def chain(checkpoint: str, load: Callable[[str], Manifest] = manifest.load) -> Iterator[StageSeen]:
    """The stages that led to a checkpoint, its own first; ends where a parent is gone, replaced, or bare weights.

    Args:
        checkpoint: URI.
        load: Finds the manifest of a URI; one that remembers saves requests.

    Raises:
        ManifestError: Nothing is published there, or it is no checkpoint.
    """
    published = load(checkpoint)
    if published.kind != CHECKPOINT:
        raise ManifestError(f"{checkpoint} holds {published.kind!r}, not {CHECKPOINT!r}.")
    while True:
        data = published.annotations.get("data", "")
        yield StageSeen(checkpoint, published, data, _if_still(data, published.inputs.get("data"), load))
        parent = published.annotations.get("parent", "")
        before = _if_still(parent, published.inputs.get("parent"), load)
        if before is None or before.kind != CHECKPOINT:
            return
        checkpoint, published = parent, before


def _if_still(uri: str, digest: str | None, load: Callable[[str], Manifest]) -> Manifest | None:
    """The manifest of an output if it is the one of that digest."""
    try:
        found = load(uri) if uri and digest else None
    except ManifestError:
        return None
    return found if found is not None and found.digest == digest else None


def left_out_steps(checkpoint: Manifest) -> list[Steps]:
    """Steps that a stage passed over after going back to an earlier checkpoint."""
    steps = checkpoint.facts.get("left_out_steps")
    pairs = [pair for pair in steps if isinstance(pair, list)] if isinstance(steps, list) else []
    return [(int(str(first)), int(str(end))) for first, end in pairs]


def touched_by(checkpoint: str) -> tuple[int, set[str]]:
    """How many clips that are taken down now a checkpoint or one before it has seen, and by which tombstones."""
    seen = TakenDown()
    for stage in chain(checkpoint):
        seen |= stage.taken_down_since()
    return len(seen.ids), set(seen.tombstones)
