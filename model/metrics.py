"""What a training run reports about itself: smoothed loss, throughput, use of the hardware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import STDiT2Config
from model.geometry import VAE_STRIDE, forward_flops

BACKWARD_OVER_FORWARD = 2  # two matrix products of the same size for each one of the forward pass


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

    def rates(self) -> dict[str, float]:
        """The numbers worth a curve, by name."""
        seconds = max(self.seconds, 1e-9)
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "tflops_per_s": self.flops / seconds / 1e12,
        }


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
