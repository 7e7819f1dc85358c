"""What a training run reports about itself: smoothed loss, throughput, use of the hardware."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.config import STDiT2Config
from model.geometry import VAE_STRIDE, forward_flops

BACKWARD_OVER_FORWARD = 2  # two matrix products of the same size for each one of the forward pass


@dataclass(frozen=True)
class BucketPoint:
    """One bucket over the steps of a log point.

    Attributes:
        bucket: its name.
        batches, samples: seen over all ranks.
        loss: mean over the samples of applied steps; None without any.
        seconds: mean time of a batch's forward and backward pass, and of exchanging its gradients.
        peak_bytes: largest memory of any rank: peak of the allocator on a GPU, resident memory of the process after the
            backward pass on a CPU; None where it is not known.
    """

    bucket: str
    batches: int
    samples: int
    loss: float | None
    seconds: float
    peak_bytes: int | None

    def rates(self) -> dict[str, float]:
        """The numbers worth a curve, by name."""
        name = self.bucket.replace(" ", "_")
        told = {f"step_time_s/{name}": self.seconds}
        if self.loss is not None:
            told[f"loss_bucket/{name}"] = self.loss
        if self.peak_bytes is not None:
            told[f"peak_mib/{name}"] = self.peak_bytes / 2**20
        return told


@dataclass(frozen=True)
class LogPoint:
    """Means over the optimizer steps since the previous point.

    Attributes:
        step: optimizer steps done.
        steps: how many of them this point covers.
        loss, grad_norm: means over the steps that were applied; the norm is taken before clipping.
        learning_rate: of the last step.
        samples, tokens: latent clips and their tokens seen, over all ranks.
        flops: floating-point operations of forward and backward passes, over all ranks.
        seconds: wall time, of saving checkpoints not included.
        wait_s: of it, in which the slowest rank waited for data.
        resident_bytes: of each rank's process, the largest seen.
        quartile_losses: mean loss of the samples with a timestep in each quarter of 0..1000; None without any.
        buckets: the same steps by bucket.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    samples: int
    tokens: int
    flops: float
    seconds: float
    wait_s: float = 0.0
    resident_bytes: tuple[int, ...] = ()
    quartile_losses: tuple[float | None, ...] = ()
    buckets: tuple[BucketPoint, ...] = ()

    def rates(self, peak_flops_per_s: float | None = None, devices: int = 1) -> dict[str, float]:
        """The numbers worth a curve, by name; with the peak of a device also the share of it that is used (MFU)."""
        seconds = max(self.seconds, 1e-9)
        told = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "tflops_per_s": self.flops / seconds / 1e12,
            "data_wait_share": self.wait_s / seconds,
        }
        if peak_flops_per_s is not None:
            told["mfu"] = model_flops_utilisation(self.flops, seconds, peak_flops_per_s, devices)
        for number, loss in enumerate(self.quartile_losses, 1):
            if loss is not None:
                told[f"loss_timestep/quartile_{number}"] = loss
        for rank, size in enumerate(self.resident_bytes):
            told[f"resident_mib/rank_{rank}"] = size / 2**20
        for bucket in self.buckets:
            told |= bucket.rates()
        return told


def training_flops(
    config: STDiT2Config,
    num_frames: int,
    height: int,
    width: int,
    text_tokens: int,
    stride: tuple[int, int, int] = VAE_STRIDE,
) -> int:
    """Floating-point operations of one sample's forward and backward pass; sizes in pixels.

    Recomputed activations are not counted, as is usual for model-FLOPs utilisation (PaLM, appendix B).
    """
    return (1 + BACKWARD_OVER_FORWARD) * forward_flops(config, num_frames, height, width, text_tokens, stride)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best_s = math.inf
    for _ in range(4):
        began_s = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2.0 * size**3 / best_s


def model_flops_utilisation(flops: float, seconds: float, peak_flops_per_s: float, devices: int = 1) -> float:
    """Share of the devices' peak that went into the model's own arithmetic (MFU; PaLM, appendix B).

    Raises:
        ValueError: if time, peak or the number of devices is not positive.
    """
    if min(seconds, peak_flops_per_s, devices) <= 0:
        raise ValueError("utilisation needs a positive time, peak and number of devices")
    return flops / seconds / (peak_flops_per_s * devices)


def mean_loss(history: Sequence[LogPoint], first_step: int, last_step: int) -> float | None:
    """Mean loss over the points that end in steps [first_step, last_step], weighted by the steps they cover.

    Points without a finite loss do not count; None when nothing is left.
    """
    points = [p for p in history if first_step <= p.step <= last_step and math.isfinite(p.loss)]
    covered = sum(point.steps for point in points)
    return sum(point.loss * point.steps for point in points) / covered if covered else None


def loss_ends(history: Sequence[LogPoint], share: float = 0.05) -> tuple[float | None, float | None]:
    """Mean loss over the first and over the last `share` of the steps (at least one point each)."""
    if not history:
        return None, None
    span = share * history[-1].step
    head = max(round(span), history[0].step)
    tail = min(round(history[-1].step - span) + 1, history[-1].step)
    return mean_loss(history, 0, head), mean_loss(history, tail, history[-1].step)
