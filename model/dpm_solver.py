"""DPM-Solver++ for a noise-predicting process: the same network, a quarter of the steps.

Source: "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2 (2M), on the
kept steps of `IDDPM`. The learned variance is not used: the probability-flow equation has none.
Shapes: latents (B, C, T, H, W); frame masks (B, T), 1 = generate, 0 = keep, between = edit ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from model.iddpm import IDDPM
from model.process import (
    Denoiser,
    LatentSize,
    NoiseSource,
    SamplingStep,
    broadcast_frames,
    check_frame_mask,
    last_sample,
)


class DPMSolver:
    """DPM-Solver++(2M), deterministic but for the noise of edited frames.

    Args:
        process: whose kept steps are visited, for example `IDDPM(25)`.
    """

    draws_noise_for_both_halves = False

    def __init__(self, process: IDDPM) -> None:
        self.process = process
        abar = process.schedule.alphas_cumprod.double()
        self._alpha: list[float] = abar.sqrt().tolist()
        self._sigma: list[float] = (1 - abar).sqrt().tolist()
        self._log_snr = [math.log(alpha / sigma) for alpha, sigma in zip(self._alpha, self._sigma, strict=True)]

    @torch.no_grad()
    def sample_steps(
        self,
        denoise: Denoiser,
        latents: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | None = None,
    ) -> Iterator[SamplingStep]:
        """The sampling loop, yielding after each kept step; arguments as in `sample`."""
        check_frame_mask(mask, latents)
        count = self.process.num_timesteps
        source = NoiseSource(generator, noise)
        joins_at = None if mask is None else torch.where(mask > 0, (mask.float() * count).long(), -1)
        x, before = latents, None
        for index in reversed(range(count)):
            timesteps = torch.full((x.shape[0],), index, device=x.device)
            x_mask = None if joins_at is None else joins_at >= index
            if joins_at is not None:
                renoised = self.process.q_sample(x, timesteps, source.draw_like(x))
                x = torch.where(broadcast_frames(joins_at == index), renoised, x)
            output = self.process.call(denoise, x, timesteps, x_mask)
            pred_xstart = self.process.predict_xstart(x, timesteps, output[:, : x.shape[1]].float())
            moved = self._move(x, pred_xstart, before, index)
            if joins_at is not None:
                if before is not None:  # a frame that has just joined has no step before this one
                    first = self._move(x, pred_xstart, None, index)
                    moved = torch.where(broadcast_frames(joins_at == index), first, moved)
                moved = torch.where(broadcast_frames(joins_at >= index), moved, x)
            x, before = moved, pred_xstart
            yield SamplingStep(x, pred_xstart)

    def _move(self, x: Tensor, pred_xstart: Tensor, before: Tensor | None, index: int) -> Tensor:
        """From kept step `index` to the one below: second order with the prediction before, first order without."""
        if index == 0:
            return pred_xstart
        below = index - 1
        step = self._log_snr[below] - self._log_snr[index]
        direction = pred_xstart
        if before is not None:
            step_before = self._log_snr[index] - self._log_snr[index + 1]
            direction = pred_xstart + step / (2 * step_before) * (pred_xstart - before)
        return self._sigma[below] / self._sigma[index] * x - self._alpha[below] * math.expm1(-step) * direction

    def sample(
        self,
        denoise: Denoiser,
        latents: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | None = None,
        keep_condition_frames: bool = True,
        size: LatentSize | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Denoise from pure noise to clean latents.

        With a mask, a frame is a frozen condition above its level `int(mask * steps)`, is noised once when it is
        reached, and is generated from there; frames with mask 0 come out exactly as they went in.

        Args:
            latents: (B, C, T, H, W), standard normal, references already written over the frames that have them.
            mask: (B, T) float.
            generator: source of the noise of edited frames: with a mask one draw per step, without none.
            noise: recorded noise to replay instead.
            keep_condition_frames: they are kept anyway.
            size: not needed here.
            on_step: called with the number of steps done.

        Returns:
            (B, C, T, H, W).
        """
        steps = self.sample_steps(denoise, latents, mask=mask, generator=generator, noise=noise)
        return last_sample(steps, on_step)
