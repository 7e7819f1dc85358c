"""How far two training states are apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import TrainingState, load_checkpoint
from model.trainer import Trainer
from tests.model.parallel_worker import Case, stirred_network, training_options
from tests.model.tiny_training import trained


def one_process(steps: int) -> tuple[dict[int, float], TrainingState]:
    """Loss of each step and last state of the run that every strategy must repeat."""
    points, states = trained(Trainer(stirred_network(), training_options(steps)))
    return {point.step: point.loss for point in points}, states[-1]


def assert_agrees(case: Case, world_size: int, losses: dict[int, float], state: TrainingState) -> None:
    """All ranks ended with the same weights to the bit, and with those of one process to 1e-5."""
    folders = [Path(case.folder) / f"rank-{rank}" for rank in range(world_size)]
    last = f"step-{case.steps}"
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert len({(folder / last / name).read_bytes() for folder in folders}) == 1, name
    for step, loss in json.loads((folders[0] / "losses.json").read_text()).items():
        assert loss == pytest.approx(losses[int(step)], rel=1e-5)
    assert_states_agree(load_checkpoint(folders[0] / last), state)


def assert_states_agree(ours: TrainingState, theirs: TrainingState) -> None:
    """Weights, moving average and moments, each tensor's difference measured against its own length (L2).

    The moments of a gradient that is next to nothing carry its rounding; the weights hardly do.
    """
    assert ours.progress.model_dump(exclude={"sentinel"}) == theirs.progress.model_dump(exclude={"sentinel"})
    for kind, tolerance in (("weights", 1e-5), ("ema", 1e-5), ("optimizer", 1e-4)):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == others.keys()
        for name, tensor in others.items():
            assert distance(mine[name], tensor) <= tolerance, f"{kind} {name}"


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Length of the difference over the length of `theirs`, or 0 where both are next to nothing."""
    length, apart = theirs.double().norm(), (ours.double() - theirs.double()).norm()
    return float(apart / length) if length > 1e-12 else float(apart > 1e-12)
