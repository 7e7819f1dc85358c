"""Checkpoints on the embedded object store: how long training stands still, how fast they go up, how soon after SIGKILL
training is back. Run as a module it is the process that is killed, and the one that comes back.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from components import store
from components.train.checkpoints import StageCheckpoints
from components.train.saving import AsyncCheckpoints
from model.batch import Batch
from model.checkpoint import TrainingState
from model.config import STDiT2Config
from model.diffusion_config import IDDPMConfig
from model.optimizer_config import OptimizerConfig
from model.stdit2 import STDiT2
from model.tensor_file import TensorFile
from model.trainer import Trainer, TrainerOptions
from tests.benchmarks.measuring import Figure, Settings, by_turns, matmul
from tests.s3_process import free_port, s3_environment, start_s3_server

MEGABYTE = 1e6
INTERVAL_S = 60.0
BUCKET = "s3://benchmark"
STEP_SIDE = 1024


def measure_saving(scratch: Path, settings: Settings) -> list[Figure]:
    """Standstill, upload and recovery for a network of 100 million parameters with moving average and AdamW."""
    with _embedded_store(scratch):
        figures, trainer = measure_standstill(settings)
        figures += measure_upload(scratch, trainer.state(), settings)
        del trainer
        return figures + measure_recovery(scratch, settings)


def measure_standstill(settings: Settings) -> tuple[list[Figure], Trainer]:
    """Time the loop is blocked by a save, and how much slower products are while it goes on in the background."""
    trainer = make_trainer(settings.toy)
    blocked_s, computed_s, saving_s, slowed = [], [], [], []
    free = _products_per_s(lambda: False, 0.2 if settings.toy else 5.0)
    with AsyncCheckpoints(StageCheckpoints(f"{BUCKET}/standstill", {}, {}), keep=1) as saver:
        for turn in range(settings.rounds + 1):
            trainer.step = turn
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            saver.save(trainer.state(), {}, {})
            held_s, held_cpu_s = time.perf_counter() - began_s, time.thread_time() - began_cpu_s
            busy = _products_per_s(lambda: saver._running is not None and saver._running.done(), 600.0)
            saver.wait()
            if turn:  # the first save takes the memory that the others use again
                blocked_s.append(held_s)
                computed_s.append(held_cpu_s)
                saving_s.append(time.perf_counter() - began_s)
                slowed.append(busy / free)
    percent = [100 * (held + max(0.0, whole - INTERVAL_S)) / INTERVAL_S for held, whole in zip(blocked_s, saving_s)]
    size = f"{sum(p.numel() for p in trainer.network.parameters()) / 1e6:.0f} M parameters"
    return [
        _median(f"{size}: loop blocked at one checkpoint a minute", percent, "%"),
        _median(f"{size}: loop blocked by a save", blocked_s, "s"),
        _median(f"{size}: processor time of the loop in a save", computed_s, "s"),
        _median(f"{size}: save in the background", saving_s, "s"),
        _median(f"{size}: products while a save goes on over products alone", slowed, "x"),
    ], trainer


def measure_upload(scratch: Path, state: TrainingState, settings: Settings) -> list[Figure]:
    """Sending one file of the checkpoint, over what s5cmd needs for it on the same server."""
    path, content = scratch / "model.safetensors", TensorFile(state.weights)
    content.write_to(path)
    cases = {
        "file": lambda: store.upload(path, f"{BUCKET}/upload/ours"),
        "memory": lambda: store.write(f"{BUCKET}/upload/memory", content),
        "back": lambda: store.checksum(f"{BUCKET}/upload/memory"),
    }
    tool = shutil.which("s5cmd", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if tool:
        address = ["--endpoint-url", os.environ["AWS_ENDPOINT_URL_S3"], "--log", "error"]
        theirs = [tool, *address, "cp", str(path), f"{BUCKET}/upload/theirs"]
        cases["s5cmd"] = lambda: subprocess.run(theirs, check=True)
    timings = by_turns(cases, settings, "upload")
    megabytes = content.size_bytes / MEGABYTE
    size = f"file of {megabytes:.0f} MB"
    figures = [
        timings.rate("file", megabytes, f"{size}: upload, hashed on the way", "MB/s"),
        timings.rate("memory", megabytes, f"{size}: upload from tensors in memory", "MB/s"),
        timings.rate("back", megabytes, f"{size}: download, hashed on the way", "MB/s"),
    ]
    if tool:
        figures.append(timings.speed_ratio("file", "s5cmd", f"{size}: upload over s5cmd"))
        figures.append(timings.speed_ratio("memory", "s5cmd", f"{size}: upload from memory over s5cmd from a file"))
    return figures


def measure_recovery(scratch: Path, settings: Settings) -> list[Figure]:
    """A process is killed in the middle of its second save; how soon another one has everything back."""
    seconds = []
    for turn in range(settings.rounds):
        out = f"{BUCKET}/recovery-{turn}"
        with _child(out, "save", settings) as process:
            while not any(item.key.startswith("step-00000002/") for item in store.list_objects(out)):
                assert process.poll() is None, "the process to be killed has ended by itself"
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        began_s = time.perf_counter()
        with _child(out, "return", settings) as process:
            assert process.wait() == 0
        seconds.append(time.perf_counter() - began_s)
    return [_median("SIGKILL in the middle of a save: from a new process to a trainer that can go on", seconds, "s")]


@contextmanager
def _child(out: str, what: str, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.benchmarks.saving", out, what, "toy" if settings.toy else "full"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def _embedded_store(scratch: Path) -> Iterator[None]:
    port, before = free_port(), dict(os.environ)
    root = scratch / "s3"
    root.mkdir()
    server = start_s3_server(root, port)
    os.environ.update(s3_environment(f"http://127.0.0.1:{port}"))
    try:
        store.ensure_bucket(BUCKET)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.kill()
        server.wait()
        shutil.rmtree(root)


def make_trainer(toy: bool) -> Trainer:
    """A trainer that has done one step, so that AdamW's moments are there."""
    size = (24, 1, 2) if toy else (768, 8, 12)
    config = STDiT2Config(
        hidden_size=size[0], depth=size[1], num_heads=size[2], qk_norm=True, caption_channels=64, model_max_length=8
    )
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(0))
    options = TrainerOptions(
        stage="stage1", steps=1, seed=0, optimizer=OptimizerConfig(learning_rate=1e-4), diffusion=IDDPMConfig()
    )
    trainer = Trainer(network, options)
    trainer.fit(_batch, log=lambda point: None, save=lambda state: state.release())
    return trainer


def _batch(index: int) -> Batch:
    return Batch(
        latents=torch.randn(1, 4, 2, 4, 4),
        text_features=torch.randn(1, 8, 64),
        text_mask=torch.ones(1, 8, dtype=torch.long),
        num_frames=2,
        height=32,
        width=32,
        fps=torch.full((1,), 24.0),
    )


def _products_per_s(enough: Callable[[], bool], limit_s: float) -> float:
    """Matrix products done in the foreground until `enough()` or the time is up, by the second."""
    began_s, count = time.perf_counter(), 0
    while count == 0 or (not enough() and time.perf_counter() - began_s < limit_s):
        matmul(STEP_SIDE, torch.float32)
        count += 1
    return count / (time.perf_counter() - began_s)


def _median(name: str, values: list[float], unit: str) -> Figure:
    return Figure(name, statistics.median(values), unit, min(values), max(values))


def main(out: str, what: str, size: str) -> None:
    """Save step 1 whole and begin to save step 2 until killed, or come back from what is there."""
    checkpoints = StageCheckpoints(out, {}, {})
    if what == "return":
        with tempfile.TemporaryDirectory(prefix="kinoflow-bench-") as scratch:
            found = checkpoints.newest_good(Path(scratch))
            assert found is not None
            state = found[1]
            options = TrainerOptions("stage1", 9, 0, state.progress.optimizer, state.progress.diffusion)
            Trainer(STDiT2(state.config), options).restore(state)
        return
    trainer = make_trainer(size == "toy")
    for step in (1, 2):
        trainer.step = step
        checkpoints.publish(trainer.state(), facts={}, annotations={})
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
