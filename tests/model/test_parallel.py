import json
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
from tests.model.rank_worker import BATCHES_PER_STEP
from tests.model.tiny_training import fresh_network, options, trained

REPO = Path(__file__).resolve().parents[2]


def run_ranks(strategy: str, steps: int, folder: Path, checkpoint: Path | None = None, num: int = 2) -> list[Path]:
    """Train with `num` processes; the folders of their last checkpoints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [strategy, str(steps), str(folder), *([str(checkpoint)] if checkpoint else [])]
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.rank_worker", *arguments]
    ranks = []
    for rank in range(num):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num), "OMP_NUM_THREADS": "1",
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
    return [folder / f"rank-{rank}" / f"step-{steps}" for rank in range(num)]


def assert_close(ours, theirs, **tolerance):
    for kind in ("weights", "ema", "optimizer"):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert mine.keys() == others.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], others[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def seen(folders: list[Path]) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """Batches that all ranks together read in each step, and what each step lost (the same on every rank)."""
    told = [json.loads((folder.parent / "seen.json").read_text()) for folder in folders]
    assert all(rank["losses"] == told[0]["losses"] for rank in told)
    read = {step: sorted(index for rank in told for index in rank["read"][step]) for step in told[0]["read"]}
    return read, told[0]["losses"]


def assert_same_course(ours: list[Path], theirs: list[Path]) -> None:
    (read, losses), (other_read, other_losses) = seen(ours), seen(theirs)
    assert read == {step: batches for step, batches in other_read.items() if step in read}
    for step, values in losses.items():
        assert values == pytest.approx(other_losses[step], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_like_one_and_go_on_with_any_number(strategy, tmp_path):
    two = run_ranks(strategy, 6, tmp_path / "two")
    first, second = (load_checkpoint(folder) for folder in two)
    assert_close(first, second, rtol=0, atol=0)
    assert first.progress.batches_per_step == BATCHES_PER_STEP
    one = Trainer(fresh_network(), options(steps=6, batches_per_step=BATCHES_PER_STEP, save_every=3))
    states = trained(one)[1]
    assert_close(first, states[-1], rtol=1e-3, atol=1e-5)
    middle = tmp_path / "two" / "rank-0" / "step-3"
    again = run_ranks(strategy, 6, tmp_path / "again", middle)
    assert_close(load_checkpoint(again[0]), first, rtol=0, atol=0)
    alone = run_ranks(strategy, 6, tmp_path / "alone", middle, num=1)
    assert_close(load_checkpoint(alone[0]), first, rtol=1e-3, atol=1e-5)
    assert seen(two)[0] == {str(step): list(range(4 * step, 4 * step + 4)) for step in range(6)}
    for folders in (again, alone):
        assert_same_course(folders, two)


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
