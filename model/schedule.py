"""The noise schedule of Open-Sora 1.1: linear betas, respacing, and the tables derived from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

NUM_TRAIN_STEPS = 1000


def linear_betas(num_steps: int = NUM_TRAIN_STEPS) -> Tensor:
    """Linear betas from 1e-4 to 0.02 for 1000 steps; other counts scale both ends by 1000 / num_steps.

    Returns:
        (num_steps,) float64 (DDPM's schedule, as in Open-Sora 1.1).
    """
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)


def space_timesteps(num_steps: int, respacing: str | int | Sequence[int] | None) -> list[int]:
    """Which of the base steps are kept (IDDPM's respacing rule).

    Args:
        num_steps: number of base steps.
        respacing: None or "" keeps all; a count (8 or "8") spreads that many over the whole range; a list
            ([10, 15] or "10,15") splits the range into equal sections with so many steps each; "ddimN" keeps N
            steps at one whole-number stride.

    Returns:
        The kept base steps, ascending.

    Raises:
        ValueError: when the rule cannot be met or read.
    """
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        return _integer_stride(num_steps, _parse_counts(respacing.removeprefix("ddim"), respacing)[0])
    if respacing is None or respacing == "":
        counts = [num_steps]
    elif isinstance(respacing, str):
        counts = _parse_counts(respacing, respacing)
    else:
        counts = [respacing] if isinstance(respacing, int) else list(respacing)
    section_size, remainder = divmod(num_steps, max(len(counts), 1))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = section_size + (index < remainder)
        kept += _spread(start, size, count)
        start += size
    if not kept:
        raise ValueError(f"Respacing {respacing!r} keeps no step at all; ask for at least one.")
    return kept


def _parse_counts(text: str, respacing: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"Respacing {respacing!r} is not understood; write a count ('100'), a comma list ('10,15,20') or 'ddim50'."
        ) from None


def _integer_stride(num_steps: int, count: int) -> list[int]:
    for stride in range(1, num_steps + 1):
        steps = range(0, num_steps, stride)
        if len(steps) == count:
            return list(steps)
    raise ValueError(f"No whole-number stride over {num_steps} steps keeps exactly {count} of them; try another count.")


def _spread(start: int, size: int, count: int) -> list[int]:
    if count < 0 or count > size:
        raise ValueError(f"Cannot keep {count} steps of a section of {size}; the count must lie between 0 and {size}.")
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    steps = []
    position = 0.0
    for _ in range(count):
        steps.append(start + round(position))
        position += stride  # repeated addition, not j * stride: its rounding decides which step is kept
    return steps


@dataclass(frozen=True)
class Schedule:
    """Tables over the K kept steps. All are (K,) float32 but `timestep_map`, (K,) int64.

    With a_t = 1 - beta_t and abar_t their running product ("alphas_cumprod"), the posterior q(x_{t-1} | x_t, x_0)
    has variance beta_t (1 - abar_{t-1}) / (1 - abar_t) and mean coef1_t x_0 + coef2_t x_t (DDPM, eq. 7).
    """

    timestep_map: Tensor
    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    alphas_cumprod_next: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    @classmethod
    def respaced(
        cls, respacing: str | int | Sequence[int] | None = None, num_train_steps: int = NUM_TRAIN_STEPS
    ) -> Schedule:
        """Keep the steps `space_timesteps` chooses, with betas that preserve abar at those steps.

        As in the reference the new betas are rounded to float32 and everything else is computed from them in
        float32, also when all steps are kept.
        """
        kept = torch.tensor(space_timesteps(num_train_steps, respacing))
        base_alphas_cumprod = torch.cumprod(1.0 - linear_betas(num_train_steps), dim=0)[kept]
        previous = torch.cat([base_alphas_cumprod.new_ones(1), base_alphas_cumprod[:-1]])
        return cls.from_betas((1.0 - base_alphas_cumprod / previous).float(), kept)

    @classmethod
    def from_betas(cls, betas: Tensor, timestep_map: Tensor) -> Schedule:
        """Derive every table from betas (K,) float32 and the base steps they stand for (K,) int64."""
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        previous = torch.cat([betas.new_ones(1), alphas_cumprod[:-1]])
        posterior_variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
        # The first posterior variance is 0; its logarithm borrows the second (or beta, if there is one step only).
        first = posterior_variance[1:2] if len(betas) > 1 else betas
        clipped = torch.cat([first, posterior_variance[1:]])
        return cls(
            timestep_map=timestep_map,
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=previous,
            alphas_cumprod_next=torch.cat([alphas_cumprod[1:], betas.new_zeros(1)]),
            sqrt_alphas_cumprod=torch.sqrt(alphas_cumprod),
            sqrt_one_minus_alphas_cumprod=torch.sqrt(1.0 - alphas_cumprod),
            log_one_minus_alphas_cumprod=torch.log(1.0 - alphas_cumprod),
            sqrt_recip_alphas_cumprod=torch.sqrt(1.0 / alphas_cumprod),
            sqrt_recipm1_alphas_cumprod=torch.sqrt(1.0 / alphas_cumprod - 1),
            posterior_variance=posterior_variance,
            posterior_log_variance_clipped=torch.log(clipped),
            posterior_mean_coef1=betas * torch.sqrt(previous) / (1.0 - alphas_cumprod),
            posterior_mean_coef2=(1.0 - previous) * torch.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
        )

    @property
    def num_timesteps(self) -> int:
        """How many steps are kept, K."""
        return len(self.betas)

    def to(self, device: torch.device) -> Schedule:
        """The same tables on another device."""
        return Schedule(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def look_up(table: Tensor, timesteps: Tensor) -> Tensor:
    """Table values shaped to meet latents (B, C, T, H, W).

    Args:
        table: (K,), on the device of `timesteps`.
        timesteps: (B,) one step per sample, or (B, T) one per frame.

    Returns:
        (B, 1, 1, 1, 1) or (B, 1, T, 1, 1).
    """
    values = table[timesteps]
    return values[:, None, :, None, None] if values.ndim == 2 else values[:, None, None, None, None]
