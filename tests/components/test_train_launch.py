"""A stage that starts its own ranks: the same bytes as under torchrun, the same signals and exit codes as alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components import manifest
from components.cli import EXIT_FAILED, EXIT_PREEMPTED
from components.config import TrackingConfig, TrainConfig
from components.errors import KinoflowError
from components.train_command import train_command
from tests.components.test_train import REPO, config, write_dataset

pytestmark = pytest.mark.slow


def ranks(processes: int, **changes: Any) -> TrainConfig:
    """A stage of 24 batches that `processes` ranks share."""
    values = {"parallel": "ddp", "processes": processes, "batches_per_step": 4, "steps": 6, "checkpoint_every": 2}
    return config(**(values | changes))


def command(data: str, out: Path, of: TrainConfig) -> list[str]:
    return list(train_command(of, TrackingConfig(run_name="test"), data=data, parent=None, out=str(out)))


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("data") / "bucket"), batches=24)


@pytest.mark.parametrize("processes", [2, 4])
def test_it_starts_its_ranks_and_makes_the_bytes_that_torchrun_makes(processes: int, data: str, tmp_path: Path) -> None:
    of = ranks(processes)
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", str(processes)]
    made = []
    for number, launcher in enumerate(([sys.executable], torchrun)):
        process = start(*launcher, *command(data, tmp_path / str(number), of), folder=tmp_path)
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
        made.append(json.loads(out))
    assert made[0]["steps"] == 6 and made[0]["checkpoint"] == str(tmp_path / "0" / "step-00000006")
    assert made[0]["checkpoint_digest"] == made[1]["checkpoint_digest"]
    assert not manifest.verify(made[0]["checkpoint"])


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    deadline_s = time.monotonic() + 240
    while not any(out.glob("step-*/manifest.json")):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.terminate()
            raise AssertionError(f"no checkpoint came: {process.communicate()}")
        time.sleep(0.01)


def test_told_to_stop_the_ranks_save_and_all_end_with_75(tmp_path: Path) -> None:
    data = write_dataset(str(tmp_path / "bucket"), batches=2000)
    out = tmp_path / "out"
    process = start(sys.executable, *command(data, out, ranks(2, batches_per_step=2, steps=1000)), folder=tmp_path)
    wait_for_checkpoint(process, out)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED, err
    assert "Traceback" not in err
    assert '"preempted"' in (out / "history.json").read_text()


def test_a_killed_launcher_leaves_no_ranks_behind(tmp_path: Path) -> None:
    data = write_dataset(str(tmp_path / "bucket"), batches=2000)
    out = tmp_path / "out"
    process = start(sys.executable, *command(data, out, ranks(2, batches_per_step=2, steps=1000)), folder=tmp_path)
    wait_for_checkpoint(process, out)
    process.kill()
    deadline_s = time.monotonic() + 60
    while alive := _processes_naming(str(out)):
        assert time.monotonic() < deadline_s, alive
        time.sleep(0.1)


def _processes_naming(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in line and state != "Z":
                found.append(line.replace("\0", " "))
    return found


def test_the_sentence_of_a_rank_is_the_sentence_of_the_stage(data: str, tmp_path: Path) -> None:
    process = start(sys.executable, *command(data, tmp_path / "out", ranks(2, batches_per_step=3)), folder=tmp_path)
    _, err = process.communicate(timeout=280)
    assert process.returncode == EXIT_FAILED
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: Rank ") and "batches_per_step" in last, err


def test_several_processes_need_a_strategy() -> None:
    with pytest.raises(ValueError, match="2 processes need parallel ddp or fsdp"):
        config(processes=2)
    with pytest.raises(KinoflowError, match=r"needs a launcher.*set processes"):
        from components.train import train

        train(config(parallel="ddp"), TrackingConfig(), data="nowhere", parent=None, out="nowhere")
