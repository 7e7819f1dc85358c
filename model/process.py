"""What every diffusion process shares: the denoiser it calls, its loss terms, its random numbers.

Shapes: latents (B, C, T, H, W); frame masks (B, T) with 1/True = generate the frame, 0/False = condition frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.diffusion_config import DiffusionConfig, IDDPMConfig, SamplingMethod

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`denoise(x, timesteps, x_mask)`: x (B, C, T, H, W), timesteps (B,) on the 0..1000 scale, x_mask (B, T) bool
or None -> (B, Cout, T, H, W)."""

LatentSize = tuple[int, int, int]
"""(latent frames, height in pixels, width in pixels): what a timestep shift by resolution looks at."""


class LossTerms(NamedTuple):
    """Per-sample loss terms of one batch; train on `loss.mean()`.

    Attributes:
        loss: (B,) float32, what is minimised.
        mse: (B,) float32, squared error of the predicted noise or velocity.
        vb: (B,) float32, variational term in bits per element, or None where the process has none.
    """

    loss: Tensor
    mse: Tensor
    vb: Tensor | None = None


class SamplingStep(NamedTuple):
    """State after one sampling step.

    Attributes:
        sample: (B, C, T, H, W), the latents after the step.
        pred_xstart: (B, C, T, H, W), the clean latents predicted in this step.
    """

    sample: Tensor
    pred_xstart: Tensor


class NoiseSource:
    """Standard normal noise, drawn from a generator or replayed from recorded tensors in drawing order."""

    def __init__(self, generator: torch.Generator | None = None, recorded: Iterable[Tensor] | None = None) -> None:
        self._generator = generator
        self._recorded: Iterator[Tensor] | None = None if recorded is None else iter(recorded)

    def draw_like(self, x: Tensor) -> Tensor:
        """Noise of the shape, dtype and device of x, drawn on the generator's device if there is one.

        Raises:
            ValueError: when the recorded noise runs out or has another shape.
        """
        if self._recorded is None:
            return draw_normal(x.shape, generator=self._generator, device=x.device, dtype=x.dtype)
        noise = next(self._recorded, None)
        if noise is None:
            raise ValueError("The recorded noise ran out before the last sampling step; record one tensor per draw.")
        if noise.shape != x.shape:
            raise ValueError(f"Recorded noise has shape {tuple(noise.shape)}, but the latents are {tuple(x.shape)}.")
        return noise.to(device=x.device, dtype=x.dtype)


def last_sample(steps: Iterable[SamplingStep], on_step: Callable[[int], None] | None) -> Tensor:
    """What a sampling loop ends with, (B, C, T, H, W); `on_step` is called with the number of steps done."""
    for done, step in enumerate(steps, start=1):
        sample = step.sample
        if on_step is not None:
            on_step(done)
    return sample


class LatentSampler(Protocol):
    """From noise to clean latents."""

    @property
    def draws_noise_for_both_halves(self) -> bool:
        """Whether guided sampling draws noise for the conditional and the null half alike."""

    def sample(
        self,
        denoise: Denoiser,
        latents: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | None = None,
        keep_condition_frames: bool = False,
        size: LatentSize | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Denoise latents (B, C, T, H, W) all the way."""


class DiffusionProcess(LatentSampler, Protocol):
    """What the trainer and the samplers need of a process; `IDDPM` and `RectifiedFlow` are the two there are."""

    def sample_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        size: LatentSize | None = None,
    ) -> Tensor:
        """Training timesteps (B,)."""

    def training_losses(
        self, denoise: Denoiser, x_start: Tensor, timesteps: Tensor, noise: Tensor, x_mask: Tensor | None = None
    ) -> LossTerms:
        """Loss terms of one batch."""


def draw_normal(
    shape: Iterable[int], *, generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
) -> Tensor:
    """Standard normal tensor; drawn where the generator lives, so a CPU generator gives the same on any device."""
    source = generator.device if generator is not None else device
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean per sample over channels, pixels and the frames that are generated (Open-Sora 1.1, masked loss).

    Args:
        x: (B, C, T, H, W).
        mask: (B, T) bool, True = the frame counts; None = all count.

    Returns:
        (B,). A sample without any generated frame gives 0 (where the reference divides 0 by 0).
    """
    if mask is None:
        return x.flatten(1).mean(dim=1)
    weights = mask.to(x.dtype)
    per_frame = x.mean(dim=(1, 3, 4))
    return (per_frame * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def check_frame_mask(mask: Tensor | None, latents: Tensor) -> None:
    """Refuse a frame mask that is not (B, T) for latents (B, C, T, H, W).

    Raises:
        ValueError: naming both shapes.
    """
    expected = (latents.shape[0], latents.shape[2])
    if mask is not None and tuple(mask.shape) != expected:
        raise ValueError(
            f"The frame mask must be (batch, frames) = {expected} for latents {tuple(latents.shape)}; "
            f"got {tuple(mask.shape)}."
        )


def broadcast_frames(mask: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1), to meet latents."""
    return mask[:, None, :, None, None]


def build_process(config: DiffusionConfig, num_sampling_steps: int | None = None) -> DiffusionProcess:
    """The process a config names; without a number of sampling steps it is the one to train with."""
    from model.flow import RectifiedFlow  # here, since both modules build on this one
    from model.iddpm import IDDPM

    if isinstance(config, IDDPMConfig):
        return IDDPM(num_sampling_steps, rescale_learned_sigmas=config.rescale_learned_sigmas)
    steps = {} if num_sampling_steps is None else {"num_sampling_steps": num_sampling_steps}
    return RectifiedFlow(timestep_density=config.timestep_density, flow_shift=config.flow_shift, **steps)


def build_sampler(config: DiffusionConfig, num_sampling_steps: int, method: SamplingMethod = "own") -> LatentSampler:
    """What samples a network that was trained with this process.

    Args:
        config: the process.
        num_sampling_steps: denoising steps.
        method: "own" is ancestral for IDDPM and Euler for a flow; "dpm-solver++" needs IDDPM.

    Raises:
        ValueError: the method does not belong to the process.
    """
    if method == "own":
        return build_process(config, num_sampling_steps)
    from model.dpm_solver import DPMSolver
    from model.iddpm import IDDPM

    if not isinstance(config, IDDPMConfig):
        raise ValueError(f"{method} samples IDDPM, and this network was trained as a flow; choose the method own.")
    return DPMSolver(IDDPM(num_sampling_steps))
