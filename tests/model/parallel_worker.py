"""One rank of a row of small runs: python -m tests.model.parallel_worker CASES.json.

The file holds a list of cases. Each has the keys of `Case`; what a rank computed lies in the case's folder.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import STDiT2Config
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks, deterministic_algorithms, gathered, joined_ranks, parallelize
from model.trainer import Trainer, TrainerOptions
from tests.model.tiny_training import CONFIG, fresh_network, make_batch, options

BATCHES_PER_STEP = 4
# Sizes that divide by no number of ranks, condition frames, single frames, one clip, padding by the patch.
INPUTS = {
    "video": (2, 5, 6, 6, True),
    "few-frames": (1, 3, 5, 7, True),
    "images": (3, 1, 4, 6, False),
    "one-image": (1, 1, 3, 3, False),
}


@dataclass
class Case:
    """One run: `steps` of training, or the loss and gradients of one of INPUTS."""

    folder: str
    port: int = 0
    strategy: str = "ddp"
    sequence_parallel: int = 1
    plugin: str = "ddp"
    steps: int = 0
    input: str = ""
    checkpoint: str = ""
    recompute: bool = False
    compiled: bool = False
    config: str = ""


def loss_and_gradients(model: torch.nn.Module, network: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """A weighted sum of the network's output on an input, and the gradient of every parameter that has one."""
    batch, frames, height, width, masked = INPUTS[name]
    draws = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, CONFIG.in_channels, frames, height, width, generator=draws)
    lengths = torch.arange(batch) % 6 + 1
    conditions = {
        "y": torch.randn(batch, 1, 6, CONFIG.caption_channels, generator=draws),
        "mask": (torch.arange(6)[None] < lengths[:, None]).long(),
        "x_mask": torch.rand(batch, frames, generator=draws) < 0.6 if masked else None,
        "height": torch.full((batch,), 8.0 * height),
        "width": torch.full((batch,), 8.0 * width),
        "num_frames": torch.full((batch,), float(frames)),
        "ar": torch.full((batch,), width / height),
        "fps": torch.full((batch,), 24.0),
    }
    output = model(latents, torch.arange(batch) * 100.0, **conditions)
    loss = (output * torch.randn(output.shape, generator=draws)).mean()
    loss.backward()
    gradients = {n: gathered(p.grad).contiguous() for n, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().reshape(1), "output": output.detach().contiguous(), **gradients}


def stirred_network(config: STDiT2Config = CONFIG) -> torch.nn.Module:
    """A network none of whose weights is zero, as a fresh one's temporal attention is."""
    network = fresh_network(config)
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    return network


def training_options(steps: int) -> TrainerOptions:
    """Of every run, also the one that the others are compared with.

    A large eps keeps a step smooth in the gradient where that is next to nothing; Adam would turn the sign of a
    rounding error into a whole step.
    """
    return options(
        steps=steps, batches_per_step=BATCHES_PER_STEP, save_every=10, log_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3, schedule="cosine", eps=1e-3),
    )  # fmt: skip


def run(case: Case, ranks: Ranks) -> None:
    folder = Path(case.folder) / f"rank-{ranks.rank}"
    config = CONFIG.model_validate(CONFIG.model_dump() | json.loads(case.config or "{}"))
    network = stirred_network(config)
    model = parallelize(
        network, ranks, case.strategy, activation_checkpointing=case.recompute, compile_blocks=case.compiled,
        booster_plugin=case.plugin,
    )  # fmt: skip
    if case.input:
        folder.mkdir(parents=True)
        save_file(loss_and_gradients(model, network, case.input), folder / "result.safetensors")
        return
    trainer = Trainer(network, training_options(case.steps), model=model, ranks=ranks)
    if case.checkpoint:
        trainer.restore(load_checkpoint(Path(case.checkpoint)))

    def save(state):
        target = folder / f"step-{state.progress.step}"
        target.mkdir(parents=True)
        save_checkpoint(target, state)

    losses: dict[int, float] = {}
    trainer.fit(make_batch, log=lambda point: losses.update({point.step: point.loss}), save=save)
    (folder / "losses.json").write_text(json.dumps(losses))


def main(path: Path) -> None:
    for case in [Case(**values) for values in json.loads(path.read_text())]:
        os.environ["MASTER_PORT"] = str(case.port)
        with deterministic_algorithms(), joined_ranks(case.strategy, case.sequence_parallel) as ranks:
            run(case, ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
