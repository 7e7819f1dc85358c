"""The promotion gate: whether a stage's result is good enough for the next stage to start from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components import manifest
from components.batches import BatchReader
from components.config import TrainConfig
from components.errors import KinoflowError
from components.held_out import held_out_losses, mean_held_out_loss, open_held_out
from components.plan_file import held_out_plan
from components.train.checkpoints import KIND
from model.checkpoint import CONFIG, EMA_WEIGHTS, STATE, load_network, read_state


@dataclass(frozen=True)
class Verdict:
    """Held-out losses of the averaged weights on the stage's evaluation plan; None where not measured."""

    held_out_loss: float | None = None
    parent_held_out_loss: float | None = None

    def metrics(self) -> dict[str, float]:
        """What was measured, by name."""
        told = {"gate/held_out_loss": self.held_out_loss, "gate/parent_held_out_loss": self.parent_held_out_loss}
        return {name: value for name, value in told.items() if value is not None}


def check_gate(
    config: TrainConfig,
    checkpoint: str,
    known: Verdict | None = None,
    *,
    data: str,
    parent: str | None,
    on_batch: Callable[[], None] | None = None,
) -> Verdict:
    """Measure what the stage's gate asks for, if there is one, and stop the chain if it is not reached.

    Args:
        config: of the stage.
        checkpoint: URI of its result.
        known: what was measured before.
        data: URI of the bucket output.
        parent: URI of the checkpoint that the stage started from.
        on_batch: called after each held-out batch.

    Raises:
        KinoflowError: the result is not good enough, or the data hold no clip to tell by.
    """
    gate, verdict = config.gate, known or Verdict()
    if gate is None:
        return verdict
    against_parent = gate.max_increase is not None and parent is not None
    if verdict.held_out_loss is None or (against_parent and verdict.parent_held_out_loss is None):
        with (
            tempfile.TemporaryDirectory(prefix="kinoflow-") as folder,
            open_held_out(data, config.name, Path(folder) / "data") as batches,
        ):
            measure = _Measure(config, data, batches, Path(folder), on_batch)
            verdict = Verdict(measure(checkpoint), measure(parent) if against_parent and parent else None)
    loss, before = verdict.held_out_loss, verdict.parent_held_out_loss
    assert loss is not None
    if not math.isfinite(loss):
        limit = "which is no result at all"
    elif gate.max_held_out_loss is not None and loss > gate.max_held_out_loss:
        limit = f"gate.max_held_out_loss is {gate.max_held_out_loss:g}"
    elif gate.max_increase is not None and before is not None and loss > before * (1 + gate.max_increase):
        limit = f"its parent's is {before:.4g} and gate.max_increase {gate.max_increase:g}"
    else:
        return verdict
    raise KinoflowError(
        f"Stage {config.name!r} does not pass its gate: the held-out loss of {checkpoint} is {loss:.4g}, {limit}. "
        "No later stage starts from it; train differently, or loosen the gate and start again."
    )


@dataclass
class _Measure:
    config: TrainConfig
    data: str
    batches: BatchReader
    folder: Path
    on_batch: Callable[[], None] | None

    def __call__(self, checkpoint: str) -> float:
        gate, name = self.config.gate, held_out_plan(self.config.name)
        assert gate is not None
        local = self.folder / "checkpoint"
        manifest.fetch(checkpoint, local, [EMA_WEIGHTS, CONFIG, STATE], kind=KIND)
        losses = held_out_losses(
            load_network(local), read_state(local).diffusion, self.batches,
            timesteps=gate.timesteps, seed=gate.seed, on_batch=self.on_batch,
        )  # fmt: skip
        loss = mean_held_out_loss(losses)
        if loss is None:
            raise KinoflowError(
                f"Stage {self.config.name!r} has a gate, but {name} of {self.data} is empty; hold out some clips "
                "(curate's eval_share) or leave out the gate."
            )
        return loss
