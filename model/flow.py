"""Rectified flow as later versions of Open-Sora train it: straight paths, velocity target, Euler sampling.

Source: Open-Sora 1.2. With tau = timestep / 1000 in [0, 1]: x_tau = (1 - tau) x_0 + tau noise, and the network
predicts the velocity x_0 - noise.
Shapes: latents (B, C, T, H, W); frame masks (B, T) with 1/True = generate the frame, 0/False = condition frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from model.process import (
    Denoiser,
    LatentSize,
    LossTerms,
    NoiseSource,
    SamplingStep,
    broadcast_frames,
    check_frame_mask,
    draw_normal,
    last_sample,
    masked_mean,
)

TimestepDensity = Literal["uniform", "discrete", "logit-normal"]
FlowShift = float | Literal["resolution"] | None

TIMESTEP_SCALE = 1000.0


def resolution_shift(size: LatentSize, scale: float = 1.0) -> float:
    """How much more noise larger and longer clips need: r = sqrt(H W / 512^2) sqrt(F) scale (Open-Sora 1.2).

    Args:
        size: (latent frames F, height in pixels, width in pixels).
        scale: factor on top.
    """
    num_frames, height, width = size
    return math.sqrt(height * width / 512**2) * math.sqrt(num_frames) * scale


def shift_timesteps(timesteps: Tensor, ratio: float) -> Tensor:
    """Move timesteps (any shape, 0..1000) towards noise: tau' = r tau / (1 + (r - 1) tau); 0 and 1000 stay."""
    tau = timesteps / TIMESTEP_SCALE
    return ratio * tau / (1 + (ratio - 1) * tau) * TIMESTEP_SCALE


class RectifiedFlow:
    """Straight paths between latents and noise.

    Args:
        num_sampling_steps: Euler steps of the sampler.
        timestep_density: how training timesteps are drawn: "uniform" over 0..1000, "discrete" over the whole
            numbers 0..999, or "logit-normal", the sigmoid of a standard normal.
        flow_shift: None; a constant ratio r > 0; or "resolution" for `resolution_shift` of the clip at hand. Used
            in training and sampling alike.

    Raises:
        ValueError: for an option it does not know.
    """

    draws_noise_for_both_halves = False

    def __init__(
        self,
        num_sampling_steps: int = 30,
        timestep_density: TimestepDensity = "uniform",
        flow_shift: FlowShift = None,
    ) -> None:
        if num_sampling_steps < 1:
            raise ValueError(f"Rectified flow needs at least one sampling step, got {num_sampling_steps}.")
        if timestep_density not in ("uniform", "discrete", "logit-normal"):
            raise ValueError(f"Timestep density {timestep_density!r} is not one of uniform, discrete, logit-normal.")
        if not (flow_shift in (None, "resolution") or (isinstance(flow_shift, int | float) and flow_shift > 0)):
            raise ValueError(f"flow_shift must be a number above 0, 'resolution' or None; got {flow_shift!r}.")
        self.num_sampling_steps = num_sampling_steps
        self.timestep_density = timestep_density
        self.flow_shift = flow_shift

    # --- training ------------------------------------------------------------------------------------------

    def sample_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        size: LatentSize | None = None,
    ) -> Tensor:
        """Training timesteps, (batch_size,) float32 in 0..1000.

        Args:
            batch_size: how many.
            generator: source of the randomness.
            device: where the result goes.
            size: (latent frames, height, width in pixels) of the batch; needed for flow_shift="resolution".
        """
        source = generator.device if generator is not None else device
        shape = (batch_size,)
        if self.timestep_density == "logit-normal":
            timesteps = torch.sigmoid(draw_normal(shape, generator=generator, device=source, dtype=torch.float32))
            timesteps = timesteps * TIMESTEP_SCALE
        elif self.timestep_density == "discrete":
            timesteps = torch.randint(0, int(TIMESTEP_SCALE), shape, generator=generator, device=source).float()
        else:
            timesteps = torch.rand(shape, generator=generator, device=source) * TIMESTEP_SCALE
        return self._shift(timesteps, size).to(device)

    def _shift(self, timesteps: Tensor, size: LatentSize | None) -> Tensor:
        if self.flow_shift is None:
            return timesteps
        if not isinstance(self.flow_shift, str):
            return shift_timesteps(timesteps, self.flow_shift)
        if size is None:
            raise ValueError("flow_shift='resolution' needs the clip's size (latent frames, height, width in pixels).")
        return shift_timesteps(timesteps, resolution_shift(size))

    def add_noise(self, x_start: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """x_tau = (1 - tau) x_0 + tau noise, in float32.

        Args:
            x_start: (B, C, T, H, W).
            timesteps: (B,) one per sample, or (B, T) one per frame; 0..1000.
            noise: (B, C, T, H, W).
        """
        tau = (timesteps.float() / TIMESTEP_SCALE).reshape(timesteps.shape[0], 1, -1, 1, 1)
        return (1 - tau) * x_start + tau * noise

    def training_losses(
        self, denoise: Denoiser, x_start: Tensor, timesteps: Tensor, noise: Tensor, x_mask: Tensor | None = None
    ) -> LossTerms:
        """Squared error of the velocity x_0 - noise; condition frames stay exactly clean and do not count.

        Args:
            denoise: gets x_tau, timesteps and `x_mask`; of 2C output channels the first C are the velocity.
            x_start: (B, C, T, H, W), clean latents.
            timesteps: (B,), 0..1000.
            noise: (B, C, T, H, W), standard normal.
            x_mask: (B, T) bool, True = generated frame; None = all.
        """
        check_frame_mask(x_mask, x_start)
        x_mask = None if x_mask is None else x_mask.bool()
        x_t = self.add_noise(x_start, timesteps if x_mask is None else timesteps[:, None] * x_mask, noise)
        velocity = self._velocity(denoise, x_t, timesteps, x_mask)
        mse = masked_mean((velocity - (x_start.float() - noise.float())) ** 2, x_mask)
        return LossTerms(loss=mse, mse=mse)

    def _velocity(self, denoise: Denoiser, x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        return denoise(x, timesteps, x_mask)[:, : x.shape[1]].float()

    # --- sampling ------------------------------------------------------------------------------------------

    def sampling_timesteps(self, size: LatentSize | None = None) -> list[float]:
        """The N timesteps the sampler visits, from 1000 down: (1 - i / N) 1000, shifted."""
        count = self.num_sampling_steps
        timesteps = TIMESTEP_SCALE * (1 - torch.arange(count, dtype=torch.float64) / count)
        if self.timestep_density == "discrete":
            timesteps = timesteps.round()
        return [float(t) for t in self._shift(timesteps, size)]

    @torch.no_grad()
    def sample_steps(
        self,
        denoise: Denoiser,
        latents: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | None = None,
        size: LatentSize | None = None,
    ) -> Iterator[SamplingStep]:
        """The sampling loop, yielding after each step; arguments as in `sample`."""
        check_frame_mask(mask, latents)
        source = NoiseSource(generator, noise)
        visited = self.sampling_timesteps(size)
        x = latents
        levels = None if mask is None else mask.float() * TIMESTEP_SCALE
        joined = None if mask is None else mask == 1
        for timestep, following in zip(visited, [*visited[1:], 0.0], strict=True):
            timesteps = torch.full((x.shape[0],), timestep, device=x.device)
            x_mask = None
            if levels is not None and joined is not None:
                x_mask = levels >= timestep
                renoised = self.add_noise(x, timesteps, source.draw_like(x))
                x = torch.where(broadcast_frames(x_mask & ~joined), renoised, x)
                joined = x_mask
            velocity = self._velocity(denoise, x, timesteps, x_mask)
            moved = x + velocity * ((timestep - following) / TIMESTEP_SCALE)
            pred_xstart = x + velocity * (timestep / TIMESTEP_SCALE)
            x = moved if x_mask is None else torch.where(broadcast_frames(x_mask), moved, x)
            yield SamplingStep(x, pred_xstart)

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
        """Follow the velocity from noise to clean latents in Euler steps (Open-Sora 1.2's loop).

        With a mask, a frame is a frozen condition while mask * 1000 < t, is noised once at the first t it
        reaches, and is generated from there; frames with mask 0 come out exactly as they went in.

        Args:
            latents: (B, C, T, H, W), standard normal, references already written over the frames that have them.
            mask: (B, T) float, 1 = generate, 0 = keep, between = edit ratio.
            generator: source of the noise of edited frames: with a mask one draw per step, without none.
            noise: recorded noise to replay instead.
            keep_condition_frames: they are kept anyway.
            size: (latent frames, height, width in pixels); needed for flow_shift="resolution".
            on_step: called with the number of steps done.

        Returns:
            (B, C, T, H, W).
        """
        return last_sample(
            self.sample_steps(denoise, latents, mask=mask, generator=generator, noise=noise, size=size), on_step
        )
