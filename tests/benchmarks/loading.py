"""Data loading: samples per second from shards over plain files, and what training waits for a store far away."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import torch
from torch import Tensor

from components import store
from components.batches import BatchReader
from components.plan_file import PlanFile, text_key
from components.shards import LOCATIONS_FILE, ShardIndex, ShardWriter
from tests.benchmarks.measuring import Figure, Settings, by_turns, matmul
from tests.components.plans import plan_of
from tests.conftest import run_s3_server
from tests.s3_process import s3_environment
from tests.slow_link import slow_link

MEGABYTE = 1e6
BATCH_SIZE = 8
LATENCIES_MS = (0, 20)
STEP_S = 0.1
"""Of the steps that data are waited for: a little less than a step of the demo's first stage."""
BEFORE_FIRST_STEP_S = 1.0
"""A stage begins to read, then measures its processor for about this long."""


def measure_loading(scratch: Path, settings: Settings) -> list[Figure]:
    """Random batches from a local disk, then the demo's batches from a real S3 server."""
    return measure_batches(scratch / "local", settings) + measure_waits(scratch / "remote", settings)


def measure_batches(scratch: Path, settings: Settings) -> list[Figure]:
    """Batches of 8 latents (4, 16, 18, 32) in random order, hashes checked, over one .npy file a sample."""
    count = 32 if settings.toy else 2_000
    keys = [f"clip-{number:05d}" for number in range(count)]
    latents = {key: torch.randn(4, 16, 18, 32) for key in keys}
    caption = torch.randn(8, 64)
    files, shards = scratch / "files", scratch / "shards"
    files.mkdir(parents=True)

    def write_shards() -> None:
        shutil.rmtree(shards, ignore_errors=True)
        write(shards, latents, {"caption": caption})

    def write_files() -> None:
        for key, tensor in latents.items():
            np.save(files / f"{key}.npy", tensor.numpy())

    written = by_turns({"shards": write_shards, "files": write_files}, settings, "shards, writing")
    order = [keys[index] for index in np.random.default_rng(0).permutation(count)]
    plan = plan_for([order[start : start + BATCH_SIZE] for start in range(0, count, BATCH_SIZE)], ["caption"])

    def read_shards() -> int:
        with BatchReader(ShardIndex(shards / LOCATIONS_FILE, str(shards)), plan) as batches:
            batches.schedule(range(len(batches)))
            return sum(len(batches.read(index)) for index in range(len(batches)))

    def read_files() -> int:
        samples = 0
        for start in range(0, count, BATCH_SIZE):
            part = [torch.from_numpy(np.load(files / f"{key}.npy")) for key in order[start : start + BATCH_SIZE]]
            samples += len(torch.stack(part))
        return samples

    read = by_turns({"shards": read_shards, "files": read_files}, settings, "shards, reading")
    megabytes = sum(tensor.nbytes for tensor in latents.values()) / MEGABYTE
    return [
        read.rate("shards", count, "shards: random batches of 147 kB samples, hashes checked", "samples/s"),
        read.speed_ratio("shards", "files", "shards: reading over one .npy file a sample, unchecked"),
        written.rate("shards", megabytes, "shards: writing, hashes taken", "MB/s"),
        written.speed_ratio("shards", "files", "shards: writing over one .npy file a sample"),
    ]


def measure_waits(scratch: Path, settings: Settings) -> list[Figure]:
    """Share of the time that a loop of 100 ms steps waits, from its first step on, with the store near and far.

    The data are the demo's third stage: 24 latents (8, 1, 8, 8) or 8 of (8, 8, 8, 8) a batch, 110 captions.
    """
    steps = 5 if settings.toy else 200
    generator = torch.Generator().manual_seed(0)
    latents = {f"video-{i}": torch.randn(8, 8, 8, 8, generator=generator) for i in range(400)}
    latents |= {f"image-{i}": torch.randn(8, 1, 8, 8, generator=generator) for i in range(80)}
    captions = {f"caption-{i}": torch.randn(8 + i % 8, 64, generator=generator) for i in range(110)}
    write(scratch / "shards", latents, captions)
    draws = np.random.default_rng(0)
    kinds = [("image", 24, 80) if number % 5 == 0 else ("video", 8, 400) for number in range(steps)]
    rows = [[f"{kind}-{i}" for i in draws.choice(count, size, replace=False)] for kind, size, count in kinds]
    plan = plan_for(rows, list(captions))
    figures = []
    with far_store(scratch, scratch / "shards") as (endpoint, remote):
        for latency_ms in LATENCIES_MS:
            shares = [waited(scratch, endpoint, remote, plan, latency_ms) for _ in range(settings.rounds)]
            shares = sorted(100 * share for share in shares)
            name = f"data wait of {steps} steps of {STEP_S * 1e3:.0f} ms, S3 server {latency_ms} ms away"
            figures.append(Figure(name, shares[len(shares) // 2], "% of the time", shares[0], shares[-1]))
    return figures


def waited(scratch: Path, endpoint: str, remote: str, plan: PlanFile, latency_ms: int) -> float:
    """Share of the time that `read` took."""
    with slow_link(endpoint, latency_ms / 1e3) as address:
        os.environ["AWS_ENDPOINT_URL_S3"] = address
        with BatchReader(ShardIndex(scratch / "shards" / LOCATIONS_FILE, remote), plan) as batches:
            batches.schedule(range(len(batches)))
            work(BEFORE_FIRST_STEP_S)
            began_s = time.perf_counter()
            for index in range(len(batches)):
                batches.read(index)
                work(STEP_S)
        return batches.wait_s / (time.perf_counter() - began_s)


def work(seconds: float) -> None:
    """Keep torch's threads as busy as a training step does."""
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        matmul(256, torch.float32)


@contextmanager
def far_store(scratch: Path, shards: Path) -> Iterator[tuple[str, str]]:
    """Address of a real S3 server that holds the shards, and their URI there."""
    before = dict(os.environ)
    try:
        with run_s3_server(scratch) as endpoint:
            os.environ.update(s3_environment(endpoint))
            boto3.client("s3").create_bucket(Bucket="bench")
            for item in store.list_objects(str(shards)):
                store.upload(shards / item.key, f"s3://bench/shards/{item.key}")
            yield endpoint, "s3://bench/shards"
    finally:
        os.environ.clear()
        os.environ.update(before)


def write(folder: Path, latents: dict[str, Tensor], captions: dict[str, Tensor]) -> None:
    """Write shards of both kinds, under the keys that a plan of these clips and captions asks for."""
    with ShardWriter(folder) as writer:
        for clip, tensor in latents.items():
            writer.add("latents", f"{clip}@0+2/2x32x32", tensor)
        for caption, tensor in captions.items():
            writer.add("text", text_key(caption), tensor)


def plan_for(batches: list[list[str]], captions: list[str]) -> PlanFile:
    """A plan of batches of these clips, all said to be of one size; captions take turns."""
    clips = list(dict.fromkeys(clip for batch in batches for clip in batch))
    caption = {clip: captions[number % len(captions)] for number, clip in enumerate(clips)}
    return plan_of([[{"clip_id": clip, "caption": caption[clip]} for clip in batch] for batch in batches])
