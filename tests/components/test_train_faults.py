"""What goes wrong while a stage trains, and what it says afterwards: preemption, hangs, bad data, a store away."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from components import manifest, store
from components.errors import KinoflowError
from components.train import train
from components.train.outages import Patience
from components.train.report import History, read_report
from model.checkpoint import load_checkpoint
from model.metrics import LogPoint
from model.sentinel_config import SentinelConfig
from tests.components.test_train import STEPS, TRACKING, config, digests, write_dataset

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("data") / "bucket"), ("stage1", "stage2"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs") / "stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return train(config(), TRACKING, data=data, parent=None, out=out)


def signal_when(condition, number: signal.Signals) -> None:
    """Send this process a signal as soon as a condition holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_told_to_stop_it_saves_and_goes_on_to_the_same_bytes(finished, data, tmp_path):
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 7)):
        signal_when((out / f"step-{step:08d}" / "manifest.json").exists, number)
        with pytest.raises(SystemExit) as ending:
            train(config(checkpoint_every=1), TRACKING, data=data, parent=None, out=str(out))
        assert ending.value.code == 75
        history = json.loads((out / "history.json").read_text())
        assert history["ended"] == "preempted"
    assert signal.getsignal(signal.SIGTERM) == before
    report = train(config(), TRACKING, data=data, parent=None, out=str(out))
    assert digests(report.checkpoint) == digests(finished.checkpoint)
    assert report.checkpoint_digest == finished.checkpoint_digest
    assert report.restarts["preempted"].count == 2 and report.restarts["preempted"].lost_s > 0
    assert 0 < report.effective_time_ratio < 1
    assert report.loss_last == pytest.approx(finished.loss_last)


def python(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stderr=subprocess.PIPE, text=True, **options)


def test_when_nothing_moves_the_stacks_are_told_and_the_process_ends():
    code = """
import threading
from components.train.interruption import Watchdog
def stuck_in_this_function(): threading.Lock().acquire() and threading.Event().wait(60)
with Watchdog(0.3, lambda: print("last words", flush=True)):
    stuck_in_this_function()
"""
    process = python(code, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 70 and out == "last words\n"
    assert "in stuck_in_this_function" in err and "thread MainThread" in err


def test_the_grace_is_not_exceeded():
    code = """
import sys, time
from components.train.interruption import Interruption
with Interruption(0.5) as interruption, interruption.deferred():
    print("in", file=sys.stderr, flush=True)
    time.sleep(60)
    time.sleep(60)
"""
    process = python(code)
    assert process.stderr.readline() == "in\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75


# --- bad data ----------------------------------------------------------------------------------------------------


def test_batches_without_numbers_are_left_out_and_their_clips_recorded(tmp_path):
    data = write_dataset(str(tmp_path / "bucket"), poisoned={6, 7})
    asked = config(sentinel=SentinelConfig(max_skipped_in_a_row=2, lookback_steps=1))
    report = train(asked, TRACKING, data=data, parent=None, out=str(tmp_path / "run"))
    (rollback,) = report.rollbacks
    assert (rollback.left_out.first_step, rollback.left_out.end_step) == (5, 8)
    assert (rollback.from_step, rollback.to_step, rollback.num_clips) == (8, 4, 6)
    listed = json.loads(store.read_bytes(rollback.clip_ids))
    assert listed["clip_ids"] == ["bad0", "bad1", "bad3", "bad4", "clip2", "clip5"]
    assert listed["reason"] == "the loss is nan"
    assert manifest.load(report.checkpoint).facts["left_out_steps"] == [[5, 8]]
    state = load_checkpoint(Path(report.checkpoint))
    assert state.progress.step == STEPS and all(t.isfinite().all() for t in state.weights.values())
    assert float(state.optimizer["t_block.1.weight.step"]) == STEPS - 3
    # without any checkpoint to go back to it begins again, and comes to the same end
    fresh = train(asked.model_copy(update={"checkpoint_every": 100}), TRACKING, data=data, parent=None,
                  out=str(tmp_path / "fresh"))  # fmt: skip
    assert fresh.rollbacks[0].to_step == 0
    assert digests(fresh.checkpoint) == digests(report.checkpoint)


def test_a_stage_that_cannot_be_helped_says_so_and_tells_the_clips(tmp_path):
    data = write_dataset(str(tmp_path / "bucket"), poisoned=set(range(4, STEPS)))
    asked = config(sentinel=SentinelConfig(max_skipped_in_a_row=2, lookback_steps=0, max_rollbacks=1))
    out = tmp_path / "run"
    with pytest.raises(KinoflowError, match=r"nan at step 8, the last of 2 steps in a row .* going back 1 times"):
        train(asked, TRACKING, data=data, parent=None, out=str(out))
    assert (out / "left-out-00000004-00000006.json").exists() and read_report(str(out)) is None
    assert json.loads((out / "history.json").read_text())["ended"] == "fault"


# --- the gate ----------------------------------------------------------------------------------------------------


def test_a_stage_below_its_gate_stops_the_chain_until_the_gate_is_loosened(data, finished, tmp_path):
    out = str(tmp_path / "run")
    for _ in range(2):  # the second time nothing is trained
        with pytest.raises(KinoflowError, match=r"does not pass its gate: the held-out loss of .* is [\d.]+, gate.max"):
            train(config(gate={"max_held_out_loss": 1e-3}), TRACKING, data=data, parent=None, out=out)
    report = train(config(gate={"max_held_out_loss": 1e3}), TRACKING, data=data, parent=None, out=out)
    assert report.checkpoint_digest == finished.checkpoint_digest and 1e-3 < report.held_out_loss < 1e3
    worse = config(name="stage2", gate={"max_increase": 0.0}, optimizer={"learning_rate": 0.3},
                   ema_decay=0.0)  # fmt: skip
    with pytest.raises(KinoflowError, match=r"stage2.* its parent's is [\d.]+ and gate.max_increase 0"):
        train(worse, TRACKING, data=data, parent=report.checkpoint, out=str(tmp_path / "worse"))


# --- outages and accounts ----------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_put_up_with_for_a_while(tmp_path):
    blocked = tmp_path / "folder"
    blocked.write_text("a file where a folder should be")

    def save() -> None:
        store.write_bytes(str(blocked / "object"), b"saved")

    patience = Patience(3600)
    assert not patience.attempt(save)
    threading.Timer(0.5, blocked.unlink).start()
    patience.insist(save)
    assert patience.attempt(save) and (blocked / "object").read_bytes() == b"saved"
    with pytest.raises(store.StoreError):
        Patience(0).attempt(lambda: store.write_bytes(str(blocked / "object" / "below"), b""))


def test_every_cause_has_its_own_account():
    history = History(identity="x")
    history.begin(100.0)
    history.steps_again(110.0)
    history.points = [LogPoint(1, 1, 0.5, 1.0, 1e-3, 1, 1, 1.0, 30.0)]
    history.saved_at = 150.0
    history.end("preempted", 160.0)
    history.begin(260.0)
    history.steps_again(265.0)
    preempted = history.restarts["preempted"]
    assert (preempted.count, preempted.lost_s, preempted.down_s) == (1, 15.0, 100.0)
    history.saved_at = 300.0
    history.begin(340.0)  # nobody could note why
    history.steps_again(350.0)
    assert history.restarts["killed"].lost_s == 50.0
    assert history.effective_time_ratio(400.0) == pytest.approx(30 / 200)
    assert history.reliability(400.0)["restarts/killed"] == 1


# --- several processes -------------------------------------------------------------------------------------------


def launch(folder: Path, data: str, out: Path, ranks: int) -> list[subprocess.Popen]:
    """What torchrun would start."""
    asked = config(batches_per_step=2, steps=6, checkpoint_every=2, parallel="ddp")
    (folder / "config.json").write_text(asked.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-W", "ignore", "-m", "components.train", "--config", str(folder / "config.json"),
        "--data", data, "--out", str(out),
    ]  # fmt: skip
    same = {"WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command, cwd=REPO, env={**os.environ, **same, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen]) -> list[int]:
    outputs = [process.communicate(timeout=280)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 75, -signal.SIGKILL}, "\n".join(outputs)
    return codes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_killed_or_stopped_end_with_the_same_bytes_and_one_goes_on_for_two(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ended(launch(tmp_path, data, whole, 2)) == [0, 0]
    for number in (signal.SIGKILL, signal.SIGTERM):
        processes = launch(tmp_path, data, killed, 2)
        step = "step-00000002" if number == signal.SIGKILL else "step-00000004"
        while not (killed / step / "manifest.json").exists() and processes[0].poll() is None:
            time.sleep(0.001)
        for process in processes[: 2 if number == signal.SIGKILL else 1]:  # one told to stop stops all
            process.send_signal(number)
        codes = ended(processes)
        assert codes in ([-9, -9], [75, 75], [75, 0], [0, 0])  # it may have come too late for one or both
        assert number != signal.SIGKILL or codes == [-9, -9]
    assert ended(launch(tmp_path, data, killed, 2)) == [0, 0]
    end = "step-00000006"
    assert digests(str(killed / end)) == digests(str(whole / end))
    shutil.rmtree(killed / end)
    (killed / "report.json").unlink()
    assert ended(launch(tmp_path, data, killed, 1)) == [0]
    one, two = (load_checkpoint(folder / end) for folder in (killed, whole))
    for name, tensor in two.weights.items():
        torch.testing.assert_close(one.weights[name], tensor, rtol=1e-3, atol=1e-5)
