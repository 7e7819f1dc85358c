import os
import subprocess
import sys
from pathlib import Path

import torch

from model.checkpoint import load_checkpoint
from model.trainer import Trainer
from tests.model.tiny_training import fresh_network, options
from tests.s3_process import free_port

REPO = Path(__file__).resolve().parents[2]


def test_shares_of_two_ranks_are_the_whole_and_go_on_with_one(tmp_path):
    common = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", "-m", "tests.model.sharded_worker", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        output, _ = rank.communicate(timeout=280)
        assert rank.returncode == 0, output
    whole, shares = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "shares")
    parts = sorted((tmp_path / "shares" / "optimizer").iterdir())
    assert [path.name for path in parts] == ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    assert max(path.stat().st_size for path in parts) < 0.7 * (tmp_path / "whole/optimizer.safetensors").stat().st_size
    for kind in ("weights", "ema", "optimizer"):
        ours, theirs = getattr(shares, kind), getattr(whole, kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for rank, path in enumerate(parts):  # what each rank read back from the shares is what it had
        back = tmp_path / f"back-{rank}" / "optimizer" / path.name
        assert back.read_bytes() == path.read_bytes()
    trainer = Trainer(fresh_network(seed=1), options())
    trainer.start_from(shares)
    assert torch.equal(
        trainer.state().optimizer["t_block.1.weight.exp_avg"], whole.optimizer["t_block.1.weight.exp_avg"]
    )
