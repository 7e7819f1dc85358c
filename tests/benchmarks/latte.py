"""The peer for sampling: diffusers' Latte transformer under its DDIM scheduler, with guidance in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, LatteTransformer3DModel
from torch import Tensor

from model.config import STDiT2Config

BLOCK, PAIR = 20, 28
"""Squares of the width in the weights of one of our blocks, and of one of Latte's spatial and temporal pairs."""


def peer(config: STDiT2Config, latents: tuple[int, int, int]) -> LatteTransformer3DModel:
    """A fresh Latte network of our width and about as many weights, for latents (frames, height, width).

    Args:
        config: of our network.
        latents: what it denoises; as high as wide.
    """
    frames, height, _ = latents
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LatteTransformer3DModel(
            num_attention_heads=config.num_heads, attention_head_dim=config.hidden_size // config.num_heads,
            in_channels=config.in_channels, out_channels=config.in_channels,
            num_layers=max(1, round(config.depth * BLOCK / PAIR)), cross_attention_dim=config.hidden_size,
            attention_bias=True, sample_size=height, patch_size=config.patch_size[-1],
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=config.caption_channels,
            video_length=frames,
        ).eval()  # fmt: skip


def peer_sampler(
    network: LatteTransformer3DModel, config: STDiT2Config, noise: Tensor, steps: int, scale: float
) -> Callable[[], Tensor]:
    """What draws samples with the peer as `LattePipeline` does, text already encoded."""
    text = torch.randn(
        2 * len(noise), config.model_max_length, config.caption_channels, generator=torch.Generator().manual_seed(3)
    )
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")

    @torch.no_grad()
    def draw() -> Tensor:
        scheduler.set_timesteps(steps)
        latents = noise
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, latents])
            predicted = network(both, timestep.expand(len(both)), text, return_dict=False)[0]
            unconditional, conditional = predicted.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents

    return draw
