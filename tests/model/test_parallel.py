import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks, deterministic_algorithms, joined_ranks, parallelize
from model.trainer import Trainer
from tests.model.tiny_training import fresh_network, make_batch, options, trained

REPO = Path(__file__).resolve().parents[2]


def run_ranks(strategy: str, steps: int, folder: Path, checkpoint: Path | None = None) -> list[Path]:
    """Train with two processes; the folders of their last checkpoints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [strategy, str(steps), str(folder), *([str(checkpoint)] if checkpoint else [])]
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.rank_worker", *arguments]
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                command, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=240)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
    return [folder / f"rank-{rank}" / f"step-{steps}" for rank in range(2)]


def assert_close(ours, theirs, **tolerance):
    for kind in ("weights", "ema", "optimizer"):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == others.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], others[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def train_on_two_batches_a_step(steps: int):
    """What two ranks should do, done by one: gradients of the mean of both losses."""
    trainer = Trainer(fresh_network(), options(steps=steps))
    plain = trainer._loss
    trainer._loss = lambda batch, index: sum(plain(make_batch(2 * index + r), 2 * index + r) for r in range(2)) / 2
    return trained(trainer)[1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_like_one_on_both_batches_and_resume_to_the_bit(strategy, tmp_path):
    folders = run_ranks(strategy, 6, tmp_path / "whole")
    first, second = (load_checkpoint(folder) for folder in folders)
    assert_close(first, second, rtol=0, atol=0)
    assert first.progress.batches_per_step == 2
    assert_close(first, train_on_two_batches_a_step(6), rtol=1e-3, atol=1e-5)
    middle = tmp_path / "whole" / "rank-0" / "step-3"
    resumed = load_checkpoint(run_ranks(strategy, 6, tmp_path / "resumed", middle)[0])
    assert_close(resumed, first, rtol=0, atol=0)


def test_recomputed_activations_give_the_same_step():
    states = []
    for recompute in (False, True):
        network = fresh_network()
        model = parallelize(network, Ranks(), activation_checkpointing=recompute)
        states.append(trained(Trainer(network, options(steps=4), model=model))[1][-1])
    assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_keep_their_names_and_train_alike():
    states = []
    for compiled in (False, True):
        network = fresh_network()
        model = parallelize(network, Ranks(), compile_blocks=compiled)
        trainer = Trainer(network, options(steps=2, optimizer=OptimizerConfig(learning_rate=1e-3)), model=model)
        states.append(trained(trainer)[1][-1])
    assert_close(*states, rtol=1e-3, atol=1e-4)


def test_a_strategy_needs_its_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="needs a launcher"), joined_ranks("ddp"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but parallel is 'none'"), joined_ranks("none"):
        pass


def test_deterministic_algorithms_are_asked_for_and_given_back():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
