"""IDDPM as Open-Sora 1.1 uses it: noise prediction with a learned variance, its loss and its samplers.

Source of the formulas: "Improved Denoising Diffusion Probabilistic Models" in the form of Open-Sora 1.1, whose
numbers are kept, its oddities included, so that released weights behave the same.
Shapes: latents (B, C, T, H, W); frame masks (B, T) with 1/True = generate the frame, 0/False = condition frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.gaussian import discretized_gaussian_log_likelihood, gaussian_kl
from model.process import (
    Denoiser,
    LatentSize,
    LossTerms,
    NoiseSource,
    SamplingStep,
    broadcast_frames,
    check_frame_mask,
    last_sample,
    masked_mean,
)
from model.schedule import NUM_TRAIN_STEPS, Schedule, look_up


class Prediction(NamedTuple):
    """The reverse step p(x_{t-1} | x_t) a model output stands for; every tensor is (B, C, T, H, W) float32."""

    mean: Tensor
    log_variance: Tensor
    pred_xstart: Tensor


class IDDPM:
    """Gaussian diffusion with linear betas, noise prediction and learned-range variance.

    Args:
        num_sampling_steps: which of the 1000 base steps are kept: None for all (training), a count (100), or a
            respacing rule ("10,15,20", "ddim50"; see `model.schedule.space_timesteps`).
        rescale_learned_sigmas: multiply the variational term by kept steps / 1000.
        num_train_steps: number of base steps.

    Every `timesteps` argument below indexes the kept steps, 0..num_timesteps-1; the denoiser is always given the
    original step, `schedule.timestep_map[timesteps]`.
    """

    draws_noise_for_both_halves = True

    def __init__(
        self,
        num_sampling_steps: int | str | Sequence[int] | None = None,
        rescale_learned_sigmas: bool = False,
        num_train_steps: int = NUM_TRAIN_STEPS,
    ) -> None:
        self.schedule = Schedule.respaced(num_sampling_steps, num_train_steps)
        self.num_timesteps = self.schedule.num_timesteps
        self.rescale_learned_sigmas = rescale_learned_sigmas
        self._schedules: dict[torch.device, Schedule] = {self.schedule.betas.device: self.schedule}

    def schedule_on(self, device: torch.device) -> Schedule:
        """The tables on a device; copied there once, so that look-ups never wait for a transfer."""
        if device not in self._schedules:
            self._schedules[device] = self.schedule.to(device)
        return self._schedules[device]

    # --- the forward process -------------------------------------------------------------------------------

    def q_sample(self, x_start: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Noise clean latents: sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, in float32 at least.

        Args:
            x_start: (B, C, T, H, W).
            timesteps: (B,) one step per sample, or (B, T) one per frame.
            noise: (B, C, T, H, W).
        """
        tables = self.schedule_on(x_start.device)
        signal = look_up(tables.sqrt_alphas_cumprod, timesteps)
        return signal * x_start + look_up(tables.sqrt_one_minus_alphas_cumprod, timesteps) * noise

    def q_mean_variance(self, x_start: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (B, C, T, H, W), variance and log variance (B, 1, 1, 1, 1) of q(x_t | x_0)."""
        tables = self.schedule_on(x_start.device)
        mean = look_up(tables.sqrt_alphas_cumprod, timesteps) * x_start
        variance = 1.0 - look_up(tables.alphas_cumprod, timesteps)
        return mean, variance, look_up(tables.log_one_minus_alphas_cumprod, timesteps)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (B, C, T, H, W), variance and clipped log variance (B, 1, 1, 1, 1) of q(x_{t-1} | x_t, x_0)."""
        tables = self.schedule_on(x_t.device)
        mean = look_up(tables.posterior_mean_coef1, timesteps) * x_start
        mean = mean + look_up(tables.posterior_mean_coef2, timesteps) * x_t
        variance = look_up(tables.posterior_variance, timesteps)
        return mean, variance, look_up(tables.posterior_log_variance_clipped, timesteps)

    def predict_xstart(self, x_t: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The clean latents x_t and its noise imply: x_t / sqrt(abar_t) - sqrt(1 / abar_t - 1) noise."""
        tables = self.schedule_on(x_t.device)
        scaled = look_up(tables.sqrt_recip_alphas_cumprod, timesteps) * x_t
        return scaled - look_up(tables.sqrt_recipm1_alphas_cumprod, timesteps) * noise

    def predict_noise(self, x_t: Tensor, timesteps: Tensor, x_start: Tensor) -> Tensor:
        """The noise x_t and its clean latents imply, the inverse of `predict_xstart`."""
        tables = self.schedule_on(x_t.device)
        scaled = look_up(tables.sqrt_recip_alphas_cumprod, timesteps) * x_t
        return (scaled - x_start) / look_up(tables.sqrt_recipm1_alphas_cumprod, timesteps)

    # --- training ------------------------------------------------------------------------------------------

    def sample_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        size: LatentSize | None = None,
    ) -> Tensor:
        """Uniform training timesteps, (batch_size,) int64 in 0..num_timesteps-1; `size` makes no difference here."""
        source = generator.device if generator is not None else device
        return torch.randint(0, self.num_timesteps, (batch_size,), generator=generator, device=source).to(device)

    def training_losses(
        self, denoise: Denoiser, x_start: Tensor, timesteps: Tensor, noise: Tensor, x_mask: Tensor | None = None
    ) -> LossTerms:
        """Loss of one batch: squared error of the noise plus the variational term (Open-Sora 1.1, IDDPM loss).

        Condition frames are noised at step 0 with the same noise (so they are almost clean) and do not count.

        Args:
            denoise: gets x_t, the original timesteps and `x_mask`; must return 2C channels (noise, variance).
            x_start: (B, C, T, H, W), clean latents.
            timesteps: (B,) int64.
            noise: (B, C, T, H, W), standard normal.
            x_mask: (B, T) bool, True = generated frame; None = all.

        Raises:
            ValueError: when mask or model output have the wrong shape.
        """
        check_frame_mask(x_mask, x_start)
        x_mask = None if x_mask is None else x_mask.bool()
        frame_steps = timesteps if x_mask is None else timesteps[:, None] * x_mask
        x_t = self.q_sample(x_start, frame_steps, noise)
        output = self.call(denoise, x_t, timesteps, x_mask)
        predicted_noise, variance_fraction = output.chunk(2, dim=1)
        mse = masked_mean((noise.float() - predicted_noise) ** 2, x_mask)
        # Only the variance learns from the variational term: the noise prediction enters it detached.
        frozen_output = torch.cat([predicted_noise.detach(), variance_fraction], dim=1)
        vb = self.variational_bound(frozen_output, x_start.float(), x_t, timesteps, x_mask)
        if self.rescale_learned_sigmas:
            vb = vb * (self.num_timesteps / 1000)
        return LossTerms(loss=self.weigh_error(mse, timesteps) + vb, mse=mse, vb=vb)

    def weigh_error(self, mse: Tensor, timesteps: Tensor) -> Tensor:
        """What the squared error (B,) counts in the loss at each timestep: always 1 in plain IDDPM."""
        return mse

    def variational_bound(
        self, output: Tensor, x_start: Tensor, x_t: Tensor, timesteps: Tensor, x_mask: Tensor | None = None
    ) -> Tensor:
        """One term of the variational bound, (B,) in bits per element.

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, the discretised Gaussian's -log p(x_0 | x_1) for
        t = 0; both are computed and chosen from per sample, which keeps the host out of it.
        """
        true_mean, _, true_log_variance = self.q_posterior(x_start, x_t, timesteps)
        predicted = self.predict(output, x_t, timesteps)
        kl = gaussian_kl(true_mean, true_log_variance, predicted.mean, predicted.log_variance)
        log_likelihood = discretized_gaussian_log_likelihood(x_start, predicted.mean, 0.5 * predicted.log_variance)
        is_last = (timesteps == 0)[:, None, None, None, None]
        return masked_mean(torch.where(is_last, -log_likelihood, kl), x_mask) / math.log(2.0)

    # --- the reverse process -------------------------------------------------------------------------------

    def predict(self, output: Tensor, x_t: Tensor, timesteps: Tensor, clip_denoised: bool = False) -> Prediction:
        """Read a model output (B, 2C, T, H, W) as the reverse step at x_t.

        The log variance is f log(beta_t) + (1 - f) log(posterior variance), f = (v + 1) / 2 with v unbounded.
        `clip_denoised` limits the predicted clean latents to [-1, 1]; no shipped configuration does.
        """
        tables = self.schedule_on(x_t.device)
        predicted_noise, variance_fraction = output.float().chunk(2, dim=1)
        low = look_up(tables.posterior_log_variance_clipped, timesteps)
        high = torch.log(look_up(tables.betas, timesteps))
        fraction = (variance_fraction + 1) / 2
        pred_xstart = self.predict_xstart(x_t, timesteps, predicted_noise)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        mean, _, _ = self.q_posterior(pred_xstart, x_t, timesteps)
        return Prediction(mean, fraction * high + (1 - fraction) * low, pred_xstart)

    @torch.no_grad()
    def p_sample(
        self,
        denoise: Denoiser,
        x: Tensor,
        timesteps: Tensor,
        *,
        mask: Tensor | None = None,
        clip_denoised: bool = False,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | NoiseSource | None = None,
        eta: float | None = None,
    ) -> SamplingStep:
        """One step from x_t to x_{t-1}; ancestral, or DDIM when `eta` is given.

        With a mask, `a = int(mask * num_timesteps)` says when each frame joins: at t == a the frame is noised to
        its own level, above it is a frozen condition (the denoiser sees x_mask False for a <= t), below it is
        generated like the others. A frame with mask 0 joins at t = 0 and so ends as the model's prediction.

        Args:
            x: (B, C, T, H, W).
            timesteps: (B,) int64.
            mask: (B, T) float, 1 = generate, 0 = keep, between = edit ratio.
            noise: replayed noise; per step the mask's (only with a mask), then the step's.
            eta: DDIM's noise level, 0 = deterministic; None = ancestral sampling.
        """
        check_frame_mask(mask, x)
        source = noise if isinstance(noise, NoiseSource) else NoiseSource(generator, noise)
        if mask is None:
            return self._step(denoise, x, timesteps, None, clip_denoised, source, eta)
        joins_at = (mask.float() * self.num_timesteps).to(torch.int64)
        frozen = x
        renoised = self.q_sample(x, timesteps, source.draw_like(x))
        x = torch.where(broadcast_frames(joins_at == timesteps[:, None]), renoised, x)
        step = self._step(denoise, x, timesteps, joins_at > timesteps[:, None], clip_denoised, source, eta)
        moves = broadcast_frames(joins_at >= timesteps[:, None])
        return SamplingStep(torch.where(moves, step.sample, frozen), step.pred_xstart)

    def _step(
        self,
        denoise: Denoiser,
        x: Tensor,
        timesteps: Tensor,
        x_mask: Tensor | None,
        clip_denoised: bool,
        source: NoiseSource,
        eta: float | None,
    ) -> SamplingStep:
        predicted = self.predict(self.call(denoise, x, timesteps, x_mask), x, timesteps, clip_denoised)
        if eta is None:
            mean, sigma = predicted.mean, torch.exp(0.5 * predicted.log_variance)
        else:
            mean, sigma = self._ddim_mean_sigma(x, timesteps, predicted.pred_xstart, eta)
        not_last = (timesteps != 0)[:, None, None, None, None]
        return SamplingStep(mean + not_last * sigma * source.draw_like(x), predicted.pred_xstart)

    def _ddim_mean_sigma(self, x: Tensor, timesteps: Tensor, pred_xstart: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a DDIM step ("Denoising Diffusion Implicit Models", eq. 12 and 16)."""
        tables = self.schedule_on(x.device)
        abar = look_up(tables.alphas_cumprod, timesteps)
        abar_prev = look_up(tables.alphas_cumprod_prev, timesteps)
        predicted_noise = self.predict_noise(x, timesteps, pred_xstart)
        sigma = eta * torch.sqrt((1 - abar_prev) / (1 - abar)) * torch.sqrt(1 - abar / abar_prev)
        mean = pred_xstart * torch.sqrt(abar_prev) + torch.sqrt(1 - abar_prev - sigma**2) * predicted_noise
        return mean, sigma

    def sample_steps(
        self,
        denoise: Denoiser,
        latents: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Iterable[Tensor] | None = None,
        clip_denoised: bool = False,
        eta: float | None = None,
    ) -> Iterator[SamplingStep]:
        """The sampling loop, yielding after each of the num_timesteps steps; arguments as in `sample`."""
        source = NoiseSource(generator, noise)
        x = latents
        for index in reversed(range(self.num_timesteps)):
            timesteps = torch.full((x.shape[0],), index, device=x.device)
            step = self.p_sample(denoise, x, timesteps, mask=mask, clip_denoised=clip_denoised, noise=source, eta=eta)
            x = step.sample
            yield step

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
        clip_denoised: bool = False,
        eta: float | None = None,
    ) -> Tensor:
        """Denoise from pure noise to clean latents (Open-Sora 1.1's loop, diffusion with masks and edit ratios).

        Args:
            latents: (B, C, T, H, W), standard normal, references already written over the frames that have them.
            mask: (B, T) float, 1 = generate, 0 = keep, between = edit ratio; see `p_sample`.
            generator: source of the noise; one draw of the latents' shape per step, with a mask two, the mask's
                first.
            noise: recorded noise to replay instead, one tensor per draw.
            keep_condition_frames: put frames with mask 0 back as they came; without it they end, as in the
                reference, as the model's prediction of themselves.
            size: not needed here.
            on_step: called with the number of steps done.
            clip_denoised: limit predicted clean latents to [-1, 1].
            eta: DDIM's noise level; None = ancestral sampling.

        Returns:
            (B, C, T, H, W).
        """
        x = last_sample(
            self.sample_steps(
                denoise, latents, mask=mask, generator=generator, noise=noise, clip_denoised=clip_denoised, eta=eta
            ),
            on_step,
        )
        if keep_condition_frames and mask is not None:
            x = torch.where(broadcast_frames(mask == 0), latents.to(x.dtype), x)
        return x

    def call(self, denoise: Denoiser, x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        """The denoiser's output (B, 2C, T, H, W) at kept steps (B,).

        Raises:
            ValueError: when it has no variance channels.
        """
        output = denoise(x, self.schedule_on(x.device).timestep_map[timesteps], x_mask)
        if output.shape[1] != 2 * x.shape[1]:
            raise ValueError(
                f"IDDPM needs a noise and a variance channel per latent channel, {2 * x.shape[1]} in all; the "
                f"network returned {output.shape[1]} (is pred_sigma on?)."
            )
        return output.float()


class IDDPMSpeed(IDDPM):
    """SpeeD, the variant for early pre-training: IDDPM with another timestep density and error weight.

    Source: Open-Sora 1.1, scheduler "iddpm-speed". Timesteps where the noise level still rises fast are five
    times as likely as the flat rest, and every drawn step brings its mirror image about `turning_point`; the
    squared error is weighted by 1 / (1 + SNR) = 1 - abar_t. It only trains.
    """

    def __init__(self, rescale_learned_sigmas: bool = False) -> None:
        super().__init__(None, rescale_learned_sigmas)
        slope = torch.gradient(self.schedule.sqrt_one_minus_alphas_cumprod.double())[0]
        self.turning_point = 1 + int((slope < 5e-5).to(torch.int64).argmax())
        self.timestep_weights = torch.tanh(1e6 * (slope - 1e-4)) + 1.5

    def sample_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        size: LatentSize | None = None,
    ) -> Tensor:
        """Training timesteps (batch_size,) int64: half drawn by weight, then their mirror images."""
        source = generator.device if generator is not None else torch.device("cpu")
        weights = self.timestep_weights.to(source)
        drawn = torch.multinomial(weights, batch_size // 2 + 1, replacement=True, generator=generator)
        mirrored = (drawn - self.turning_point).abs()
        return torch.cat([drawn, mirrored])[:batch_size].to(device)

    def weigh_error(self, mse: Tensor, timesteps: Tensor) -> Tensor:
        """The squared error (B,) times 1 - abar_t."""
        return mse * (1.0 - self.schedule_on(mse.device).alphas_cumprod[timesteps])

    def p_sample(self, *args: object, **options: object) -> SamplingStep:
        """Refused.

        Raises:
            ValueError: always; sampling is `IDDPM`'s.
        """
        raise ValueError("IDDPMSpeed only trains; sample with IDDPM(num_sampling_steps=...) instead.")
