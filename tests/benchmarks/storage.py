"""Shards and checkpoints: reading samples over plain files, waiting for data, publishing over copying.

Files are in the page cache on both sides, so this compares the work around the bytes and not the disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from components import manifest
from components.train.checkpoints import StageCheckpoints
from model.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from model.config import STDiT2Config
from model.diffusion_config import IDDPMConfig
from model.optimizer_config import OptimizerConfig
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions
from tests.benchmarks.loading import measure_loading
from tests.benchmarks.measuring import Figure, Settings, by_turns
from tests.benchmarks.saving import measure_saving

MEGABYTE = 1e6


def run(settings: Settings) -> list[Figure]:
    """Loading first, then checkpoints."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-bench-") as scratch:
        figures = measure_loading(Path(scratch), settings) + measure_checkpoint(Path(scratch), settings)
        return figures + measure_saving(Path(scratch), settings)


def measure_checkpoint(scratch: Path, settings: Settings) -> list[Figure]:
    """Saving and publishing (every byte hashed), and the way back (every byte checked), over copying the files."""
    state = training_state(settings)
    source, copied = scratch / "source", scratch / "copied"
    source.mkdir()
    save_checkpoint(source, state)
    megabytes = sum(path.stat().st_size for path in source.iterdir()) / MEGABYTE

    def copy(folder: Path, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)

    checkpoints = StageCheckpoints(str(scratch / "published"), {}, {})
    published = checkpoints.uri(state.progress.step)

    def save() -> None:
        checkpoints.publish(state, facts={}, annotations={})

    def load() -> TrainingState:
        fetched = scratch / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        manifest.fetch(published, fetched, kind="checkpoint")
        return load_checkpoint(fetched)

    cases: dict[str, Callable[[], object]] = {
        "save": save,
        "load": load,
        "copy": lambda: copy(source, copied),
    }
    timings = by_turns(cases, settings, "checkpoint")
    size = f"checkpoint of {megabytes:.0f} MB"
    return [
        timings.rate("save", megabytes, f"{size}: save and publish", "MB/s"),
        timings.rate("load", megabytes, f"{size}: fetch, verify and load", "MB/s"),
        timings.rate("copy", megabytes, f"{size}: plain copy of its files", "MB/s"),
        timings.speed_ratio("save", "copy", f"{size}: save and publish over plain copy"),
        timings.speed_ratio("load", "copy", f"{size}: fetch, verify and load over plain copy"),
    ]


def training_state(settings: Settings) -> TrainingState:
    """A checkpoint's content for a network of 19 million parameters."""
    config = STDiT2Config(hidden_size=384, depth=6, num_heads=6, caption_channels=512, qk_norm=True)
    if settings.toy:
        config = config.model_copy(update={"hidden_size": 48, "depth": 1, "num_heads": 4})
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(0))
    options = TrainerOptions(
        stage="stage1", steps=1, seed=0, optimizer=OptimizerConfig(learning_rate=1e-4), diffusion=IDDPMConfig()
    )
    state = Trainer(network, options).state()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            state.optimizer[f"{name}.exp_avg"] = torch.randn_like(parameter)
            state.optimizer[f"{name}.exp_avg_sq"] = torch.rand_like(parameter)
            state.optimizer[f"{name}.step"] = torch.tensor(1.0)
    return state
