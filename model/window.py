"""Sums over the optimizer steps since the last log point, kept by each rank and put together when they are told."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from model.batch import Batch
from model.config import STDiT2Config
from model.geometry import num_tokens
from model.metrics import BucketPoint, LogPoint, training_flops
from model.objective import BatchLoss
from model.parallel import Ranks

QUARTILES = 4
TIMESTEP_SCALE = 1000


@dataclass
class _Bucket:
    """What one rank saw of one bucket."""

    batches: int = 0
    samples: int = 0
    tokens: int = 0
    flops: float = 0.0
    loss: float = 0.0  # sum over samples of applied steps
    losses: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, other: _Bucket) -> None:
        """Take in what another rank saw."""
        for name in ("batches", "samples", "tokens", "flops", "loss", "losses", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


@dataclass
class _Turn:
    """One batch of the step under way."""

    bucket: str
    loss: Tensor
    timesteps: Tensor
    mark: _Mark


@dataclass
class _Own:
    """What one rank saw, as it is told to the others."""

    buckets: dict[str, _Bucket] = field(default_factory=dict)
    quartile_loss: list[float] = field(default_factory=lambda: [0.0] * QUARTILES)
    quartile_samples: list[int] = field(default_factory=lambda: [0] * QUARTILES)
    wait_s: float = 0.0
    resident_bytes: int = 0


class Window:
    """The steps since the last log point.

    Args:
        step: the first of them.
        network: to count arithmetic by.
        ranks: who trains together.
    """

    def __init__(self, step: int, network: STDiT2Config, ranks: Ranks) -> None:
        self._first_step, self._network, self._ranks = step, network, ranks
        self._applied = 0
        self._loss = self._grad_norm = 0.0
        self._own, self._turns = _Own(), list[_Turn]()
        self._started_s = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Count time in which a batch was waited for."""
        self._own.wait_s += seconds

    def begin_batch(self) -> _Mark:
        """Mark the moment before a batch's forward pass."""
        return _Mark(self._ranks.device)

    def end_batch(self, mark: _Mark, batch: Batch, loss: BatchLoss) -> None:
        """Count one batch of this rank, its backward pass done."""
        mark.end()
        seen = self._own.buckets.setdefault(batch.bucket, _Bucket())
        clip = (batch.num_frames, batch.height, batch.width)
        seen.batches += 1
        seen.samples += len(batch)
        seen.tokens += len(batch) * num_tokens(*clip, patch_size=self._network.patch_size)
        seen.flops += len(batch) * training_flops(self._network, *clip, text_tokens=batch.text_features.shape[1])
        self._turns.append(_Turn(batch.bucket, loss.per_sample, loss.timesteps, mark))

    def end_step(self, loss: float, grad_norm: float, *, applied: bool) -> None:
        """Count one step; the losses of one that was not applied are not worth averaging."""
        self._own.resident_bytes = max(self._own.resident_bytes, resident_bytes())
        for turn in self._turns:
            seen = self._own.buckets[turn.bucket]
            seen.seconds += turn.mark.seconds()
            seen.peak_bytes = max(seen.peak_bytes, turn.mark.peak_bytes)
            if applied:
                self._add_losses(seen, turn)
        self._turns.clear()
        if applied:
            self._applied += 1
            self._loss += loss
            self._grad_norm += grad_norm

    def _add_losses(self, seen: _Bucket, turn: _Turn) -> None:
        for loss, timestep in zip(turn.loss.tolist(), turn.timesteps.tolist(), strict=True):
            quartile = min(int(timestep * QUARTILES / TIMESTEP_SCALE), QUARTILES - 1)
            self._own.quartile_loss[quartile] += loss
            self._own.quartile_samples[quartile] += 1
            seen.loss += loss
            seen.losses += 1

    def point(self, step: int, learning_rate: float) -> LogPoint:
        """The means of these steps over all ranks; all of them must call it together."""
        seconds = time.perf_counter() - self._started_s
        told = [_parsed(text) for text in texts_of_ranks(json.dumps(asdict(self._own)), self._ranks)]
        buckets: dict[str, _Bucket] = {}
        for own in told[:: self._ranks.sequence_parallel]:  # ranks that share tokens count the same clips
            for name, seen in own.buckets.items():
                buckets.setdefault(name, _Bucket()).add(seen)
        return LogPoint(
            step=step,
            steps=step - self._first_step,
            loss=self._loss / self._applied if self._applied else math.nan,
            grad_norm=self._grad_norm / self._applied if self._applied else math.nan,
            learning_rate=learning_rate,
            samples=sum(seen.samples for seen in buckets.values()),
            tokens=sum(seen.tokens for seen in buckets.values()),
            flops=sum(seen.flops for seen in buckets.values()),
            seconds=seconds,
            wait_s=max(own.wait_s for own in told),
            resident_bytes=tuple(own.resident_bytes for own in told),
            quartile_losses=_quartile_means(told),
            buckets=tuple(_bucket_point(name, seen) for name, seen in sorted(buckets.items())),
        )


def _parsed(text: str) -> _Own:
    values = json.loads(text)
    return _Own(**values | {"buckets": {name: _Bucket(**seen) for name, seen in values["buckets"].items()}})


def _quartile_means(told: Sequence[_Own]) -> tuple[float | None, ...]:
    sums = [sum(own.quartile_loss[q] for own in told) for q in range(QUARTILES)]
    counts = [sum(own.quartile_samples[q] for own in told) for q in range(QUARTILES)]
    return tuple(total / count if count else None for total, count in zip(sums, counts, strict=True))


def _bucket_point(name: str, seen: _Bucket) -> BucketPoint:
    return BucketPoint(
        bucket=name,
        batches=seen.batches,
        samples=seen.samples,
        loss=seen.loss / seen.losses if seen.losses else None,
        seconds=seen.seconds / seen.batches,
        peak_bytes=seen.peak_bytes or None,
    )


class _Mark:
    """Time and peak memory between two points of the device's own course."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.peak_bytes = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._began_s = self._ended_s = time.perf_counter()

    def end(self) -> None:
        """The second point; nothing waits for the device."""
        if self._device.type == "cuda":
            self._events[1].record()
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self.peak_bytes = resident_bytes()
        self._ended_s = time.perf_counter()

    def seconds(self) -> float:
        """Between the two; the device must have come past the second one."""
        if self._device.type == "cuda":
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._ended_s - self._began_s


def texts_of_ranks(text: str, ranks: Ranks) -> list[str]:
    """A short text of every rank, on each of them."""
    if ranks.world_size == 1:
        return [text]
    own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=ranks.device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=ranks.device) for _ in range(ranks.world_size)]
    dist.all_gather(lengths, torch.tensor([len(own)], device=ranks.device))
    longest = int(torch.cat(lengths).max())
    padded = [torch.zeros(longest, dtype=torch.uint8, device=ranks.device) for _ in range(ranks.world_size)]
    dist.all_gather(padded, torch.nn.functional.pad(own, (0, longest - len(own))))
    return [bytes(row[: int(length)].tolist()).decode() for row, length in zip(padded, lengths, strict=True)]


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # read after every batch
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
