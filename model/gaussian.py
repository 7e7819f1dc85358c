"""Divergence and likelihood of diagonal Gaussians, elementwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PIXEL_HALF_WIDTH = 1.0 / 255.0
"""Half a bin of an 8-bit image in [-1, 1]; Open-Sora 1.1 keeps it for latents."""


def gaussian_kl(mean_a: Tensor, log_variance_a: Tensor, mean_b: Tensor, log_variance_b: Tensor) -> Tensor:
    """KL(a || b) in nats, elementwise over broadcast shapes."""
    return 0.5 * (
        -1.0
        + log_variance_b
        - log_variance_a
        + torch.exp(log_variance_a - log_variance_b)
        + (mean_a - mean_b) ** 2 * torch.exp(-log_variance_b)
    )


def approximate_normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function, by its tanh approximation."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, in nats, of the bin of half-width 1/255 around x under N(mean, exp(log_scale)^2).

    Values below -0.999 own the whole lower tail, values above 0.999 the upper one; probabilities are held above
    1e-12 (IDDPM's decoder term).
    """
    inverse_scale = torch.exp(-log_scale)
    centred = x - mean
    below_upper = approximate_normal_cdf(inverse_scale * (centred + PIXEL_HALF_WIDTH))
    below_lower = approximate_normal_cdf(inverse_scale * (centred - PIXEL_HALF_WIDTH))
    inside = torch.where(x > 0.999, 1.0 - below_lower, below_upper - below_lower)
    return torch.log(torch.where(x < -0.999, below_upper, inside).clamp(min=1e-12))
