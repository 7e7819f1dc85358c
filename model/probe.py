"""Measures what training steps cost: the real trainer on random batches of given shapes, a few steps each."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from model.batch import Batch
from model.batch_sizes import kept_buckets, listed_sizes, outermost
from model.buckets import Bucket, BucketTable
from model.cost import Measurement, Workload
from model.diffusion_config import DiffusionConfig
from model.geometry import latent_size
from model.mask_config import MaskRatios
from model.metrics import LogPoint
from model.optimizer_config import OptimizerConfig
from model.parallel import Ranks, parallelize
from model.sentinel_config import SentinelConfig
from model.stdit2 import STDiT2
from model.trainer import Trainer, TrainerOptions

NEVER = 2**40
MEMORY_SOURCES = {"cuda": "peak of torch's allocator", "cpu": "peak resident memory of the whole process"}


class Case(NamedTuple):
    """A batch shape to measure."""

    bucket: Bucket
    batch_size: int


def small_cases(table: BucketTable) -> list[Case]:
    """Two small batches for each (resolution, num_frames): a quarter and a half of what is listed.

    They are of the squarest aspect, and a third of the longest one where its token count differs.
    """
    listed = listed_sizes(table)
    cases = []
    for buckets in kept_buckets(table).values():
        square, *longest = outermost(buckets)
        small = max(1, listed[square] // 4)
        large = max(small + 1, listed[square] // 2)
        cases += [Case(square, small), *(Case(bucket, large) for bucket in (square, *longest))]
    return cases


def probe_trainer(
    workload: Workload,
    *,
    diffusion: DiffusionConfig,
    optimizer: OptimizerConfig | None = None,
    masks: MaskRatios | None = None,
    device: torch.device | None = None,
    compile_blocks: bool = False,
) -> Trainer:
    """The trainer of a stage with fresh weights, on one device; nobody logs or saves."""
    ranks = Ranks(device=device or torch.device("cpu"))
    with ranks.device:
        network = STDiT2(workload.network)
    network.initialize(torch.Generator(ranks.device).manual_seed(0))
    model = parallelize(
        network, ranks, activation_checkpointing=workload.activation_checkpointing, compile_blocks=compile_blocks
    )
    options = TrainerOptions(
        stage="probe", steps=NEVER, seed=0, optimizer=optimizer or OptimizerConfig(), diffusion=diffusion, masks=masks,
        precision=workload.precision, log_every=1, save_every=NEVER,
        sentinel=SentinelConfig(spike_threshold=None),
    )  # fmt: skip
    return Trainer(network, options, model=model, ranks=ranks)


class _EnoughStepsError(Exception):
    """Ends the trainer's loop from within."""


def measure(
    trainer: Trainer,
    cases: Sequence[Case],
    workload: Workload,
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Typical step time and peak memory of every case.

    Each case runs once before, the smallest first. On a CPU the cases then take turns, so that other work on the
    machine meets all of them alike; on a GPU each runs alone.

    Args:
        trainer: of `probe_trainer`.
        cases: batch shapes.
        workload: as the trainer was made for; says how long captions are.
        rounds: timed steps of each case.
        clock: seconds.

    Returns:
        One measurement for each case, in their order; those too large for the device's memory say so.
    """
    order = sorted(range(len(cases)), key=lambda i: cases[i].batch_size * workload.activation_bytes(cases[i].bucket))
    on_gpu = trainer.ranks.device.type == "cuda"
    turns = [i for i in order for _ in range(1 + rounds)] if on_gpu else order * (1 + rounds)
    if not on_gpu:
        turns = order[:1] + turns  # the optimizer's state appears with the first step
    batches = [random_batch(workload, case) for case in cases]
    steps = _Steps(trainer, batches, clock)
    steps.run(turns)
    seconds = _typical_seconds([taken[-rounds:] for taken in steps.seconds], steps.too_large)
    results = []
    for i, case in enumerate(cases):
        if i in steps.too_large:
            results.append(Measurement(*case, float("nan"), None))
            continue
        peaks = steps.peak_bytes[i] if on_gpu else steps.peak_bytes[i][:1]
        results.append(Measurement(*case, seconds[i], max(peaks)))
    return results


def _typical_seconds(taken: Sequence[Sequence[float]], left_out: set[int]) -> dict[int, float]:
    """The median time of every case over the rounds, after the mood of each round is taken out.

    A round in which the machine was busy slows all its cases alike, so each time is taken relative to its round.
    """
    kept = [i for i in range(len(taken)) if i not in left_out]
    rounds = range(min((len(taken[i]) for i in kept), default=0))
    moods = [statistics.geometric_mean(taken[i][r] for i in kept) for r in rounds]
    usual = statistics.median(moods) if moods else 0.0
    return {i: usual * statistics.median(taken[i][r] / moods[r] for r in rounds) for i in kept}


class _Steps:
    """Runs the trainer's loop through a list of batches and watches every step."""

    def __init__(self, trainer: Trainer, batches: Sequence[Batch], clock: Callable[[], float]) -> None:
        self.trainer, self.batches, self.clock = trainer, batches, clock
        self.seconds: list[list[float]] = [[] for _ in batches]
        self.peak_bytes: list[list[int]] = [[] for _ in batches]
        self.too_large: set[int] = set()

    def run(self, turns: Sequence[int]) -> None:
        """Take one step for each entry, an index into the batches."""
        self._turns = iter(turns)
        self._advance()
        while self._turn is not None:
            try:
                with suppress(_EnoughStepsError):
                    self._start()
                    self.trainer.fit(self._batch, log=self._end, save=lambda _: None)
            except torch.OutOfMemoryError:
                self.too_large.add(self._turn)
                self.trainer.network.zero_grad(set_to_none=True)
                self._advance()

    def _advance(self) -> None:
        self._turn = next((turn for turn in self._turns if turn not in self.too_large), None)
        if self.trainer.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(self, _: int) -> Batch:
        assert self._turn is not None
        return self.batches[self._turn]

    def _start(self) -> None:
        reset_peak(self.trainer.ranks.device)
        self._began = self.clock()

    def _end(self, _: LogPoint) -> None:
        device = self.trainer.ranks.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        assert self._turn is not None
        self.seconds[self._turn].append(self.clock() - self._began)
        self.peak_bytes[self._turn].append(peak_bytes(device))
        self._advance()
        if self._turn is None:
            raise _EnoughStepsError
        self._start()


def random_batch(workload: Workload, case: Case) -> Batch:
    """Random latents and captions of full length, in the host's memory as real ones are."""
    bucket, size = case
    network = workload.network
    generator = torch.Generator().manual_seed(0)
    latents = (size, network.in_channels, *latent_size(bucket.num_frames, bucket.height, bucket.width))
    text = (size, workload.text_tokens, network.caption_channels)
    return Batch(
        latents=torch.randn(latents, generator=generator),
        text_features=torch.randn(text, generator=generator),
        text_mask=torch.ones(text[:2], dtype=torch.int64),
        num_frames=bucket.num_frames,
        height=bucket.height,
        width=bucket.width,
        fps=torch.full((size,), 24.0),
    )


def reset_peak(device: torch.device) -> None:
    """Forget the peak memory so far; where the system cannot, the peak is that of the process's life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux, proc(5): VmHWM := VmRSS


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`: `MEMORY_SOURCES` says of what."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
