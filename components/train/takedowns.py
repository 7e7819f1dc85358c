"""What a stage leaves out of its plan, and which of its earlier checkpoints it may go on from after a takedown.

A checkpoint made before a takedown is still what the stage would make now if it had read none of the clips by then.
Otherwise going on would keep what was learnt from them, so the stage stops with a sentence unless it is told what to
do (`touched_checkpoint`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial

from components.config import TrainConfig
from components.errors import KinoflowError
from components.lineage.seen import left_out_steps, open_plan, touched_by
from components.manifest import Manifest
from components.takedown import TakenDown, address, in_force, taken_down
from components.takedown.periods import History, Period, Seen, history_of, inputs_of
from components.takedown.plans import without
from model.parallel import Ranks
from model.window import texts_of_ranks

logger = logging.getLogger(__name__)


class StageTakedowns:
    """What is taken down of a stage's plan, as the first rank found it when the stage started.

    Args:
        config: of the stage.
        data: URI of the bucket output.
        dataset: its manifest.
        ranks: who trains together.

    Attributes:
        taken: what is left out from now on.
        history: what the stage left out from its beginning.
    """

    def __init__(self, config: TrainConfig, data: str, dataset: Manifest, ranks: Ranks) -> None:
        self._config, self._data, self._dataset = config, data, dataset
        found = [filed.id for filed in in_force(address(data, dataset))] if ranks.is_first else []
        agreed_on = json.loads(texts_of_ranks(json.dumps(found), ranks)[0])
        self.taken = taken_down(data, dataset, agreed_on) if agreed_on else TakenDown()
        self._seen: Seen | None = None
        self.history: History = (Period(),)
        if self.taken:
            plan = self._of_plan().plan
            without(plan, self.taken.mask(plan))  # something must be left
            self.history = (Period.since(0, plan, self.taken),)

    @property
    def inputs(self) -> Mapping[str, str]:
        """By which checkpoints tell what they were made without; empty where nothing was left out."""
        return inputs_of(self.history)

    def accepts(self, checkpoint: Manifest) -> bool:
        """Whether to go on from a checkpoint that differs from this stage's own at most by what was left out.

        Raises:
            KinoflowError: it has seen what is taken down since, and nobody said what to do about it.
        """
        before = history_of(checkpoint)
        if before == self.history:
            return True
        touched, same = self._compare(checkpoint, before)
        choice = self._config.touched_checkpoint
        if touched and choice == "refuse":
            raise KinoflowError(
                f"Stage {self._config.name!r} cannot go on: its checkpoint of step {_step(checkpoint)} has seen "
                f"{touched} clips that are taken down since (tombstones {', '.join(self.taken.tombstones)}). Set "
                'touched_checkpoint to "go_back" to train again from before it saw any, or to "go_on" to keep what it '
                "learnt from them."
            )
        return (same and not touched) or choice == "go_on"

    def check_parent(self, parent: str) -> None:
        """Make sure that no stage before has seen what is taken down.

        Raises:
            KinoflowError: one has, and nobody said to go on all the same.
        """
        touched, tombstones = touched_by(parent)
        if not touched:
            return
        sentence = (
            f"it starts from {parent}, which has seen {touched} clips that are taken down (tombstones "
            f"{', '.join(sorted(tombstones))})"
        )
        if self._config.touched_checkpoint != "go_on":
            raise KinoflowError(
                f"Stage {self._config.name!r} does not start: {sentence}. Train the stages before again, or set "
                'touched_checkpoint to "go_on" to keep what they learnt from them.'
            )
        logger.warning("stage %r goes on although %s.", self._config.name, sentence)

    def take_up(self, checkpoint: Manifest) -> None:
        """Go on from a checkpoint: what it left out becomes part of this stage's history."""
        before = history_of(checkpoint)
        if before == self.history:
            return
        touched, same = self._compare(checkpoint, before)
        now = self.history[-1]
        if touched:
            logger.warning(
                "stage %r goes on from a checkpoint that has seen %d clips which are taken down.",
                self._config.name, touched,
            )  # fmt: skip
        if touched or not same:
            past = tuple(period for period in before if period.first_step < _step(checkpoint))
            is_same_set = past[-1].digest == now.digest
            self.history = past if is_same_set else (*past, now.model_copy(update={"first_step": _step(checkpoint)}))

    def _compare(self, checkpoint: Manifest, before: History) -> tuple[int, bool]:
        """How many taken-down clips it has seen, and whether it has seen what the stage would have shown it now."""
        seen, step = self._of_plan(), _step(checkpoint)
        clips = seen.clips(before, step, left_out_steps(checkpoint))
        touched = int(self.taken.mask(seen.plan)[clips].sum())
        return touched, seen.is_same(before, self.history, step)

    def _of_plan(self) -> Seen:
        if self._seen is None:
            plan = open_plan(self._data, self._config.name)
            self._seen = Seen(plan, self._config.batches_per_step, partial(taken_down, self._data, self._dataset))
        return self._seen


def _step(checkpoint: Manifest) -> int:
    step = checkpoint.facts["step"]
    assert isinstance(step, int)
    return step
