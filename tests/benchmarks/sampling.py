"""Sampling with the demo's network: guidance in one batched pass over two passes, many samples at once over one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import yaml
from torch import Tensor

from components.config import SamplingConfig
from model.config import STDiT2Config
from model.flow import RectifiedFlow
from model.process import Denoiser
from model.sampling import ClassifierFreeGuidance, TextConditionedDenoiser, guide, sample_latents
from model.stdit2 import STDiT2
from tests.benchmarks.buckets import PRESETS
from tests.benchmarks.measuring import Figure, Settings, by_turns

LATENTS = (8, 8, 8)
"""Latent (frames, height, width) of the demo's 8 frames of 64 x 64 pixels."""


def run(settings: Settings) -> list[Figure]:
    """Seconds a sample, samples a second, and what batching the guidance gains."""
    preset = yaml.safe_load((PRESETS / "demo.yaml").read_text(encoding="utf-8"))
    config = STDiT2Config.model_validate(preset["network"])
    sampling = SamplingConfig.model_validate(preset["evaluate"]["sampling"])
    steps, many = sampling.num_inference_steps, 8
    if settings.toy:
        config = config.model_copy(update={"hidden_size": 48, "depth": 1})
        steps, many = 2, 2
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():  # fresh weights predict zero; these do not
        network.final_layer.linear.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    network.eval()
    cases: dict[str, Callable[[], Tensor]] = {}
    scale = sampling.guidance_scale
    for batch in (1, many):
        one, two = f"one pass, {batch}", f"two passes, {batch}"
        cases[one] = sampler(network, one_pass(network, batch, scale), batch, steps)
        cases[two] = sampler(network, two_passes(network, batch, scale), batch, steps)
        torch.testing.assert_close(cases[one](), cases[two](), rtol=1e-3, atol=1e-3)
    timings = by_turns(cases, settings, "sampling")
    what = f"{steps} steps, 8 frames of 64 x 64"
    alone, together = "one pass, 1", f"one pass, {many}"
    return [
        timings.rate(alone, 0, f"one guided sample, {what}", "s"),
        timings.rate(together, many, f"{many} guided samples at once, {what}", "samples/s"),
        timings.speed_ratio(together, alone, f"{many} at once over one, samples/s", many, 1),
        timings.speed_ratio(alone, "two passes, 1", "one sample: guidance in one pass over two"),
        timings.speed_ratio(together, f"two passes, {many}", f"{many} samples: guidance in one pass over two"),
    ]


def sampler(network: STDiT2, denoise: Denoiser, batch: int, steps: int) -> Callable[[], Tensor]:
    """What draws `batch` samples, the same ones at every call."""
    process = RectifiedFlow(steps)
    noise = torch.randn(batch, network.config.in_channels, *LATENTS, generator=torch.Generator().manual_seed(2))

    def draw() -> Tensor:
        with torch.no_grad():
            return sample_latents(process, denoise, noise)

    return draw


def one_pass(network: STDiT2, batch: int, scale: float) -> Denoiser:
    """Conditional and null text in one batch of twice the size, as the product samples."""
    features, info = conditions(network, batch)
    return ClassifierFreeGuidance(network, features, scale=scale, **info)


def two_passes(network: STDiT2, batch: int, scale: float) -> Denoiser:
    """The same guidance by calling the network twice."""
    features, info = conditions(network, batch)
    null = network.y_embedder.y_embedding[: features.shape[1]].expand_as(features)
    conditional = TextConditionedDenoiser(network, features, **info)
    unconditional = TextConditionedDenoiser(network, null, **info)

    def denoise(x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        both = torch.cat((conditional(x, timesteps, x_mask), unconditional(x, timesteps, x_mask)))
        return guide(both, scale, network.config.in_channels)[: x.shape[0]]

    return denoise


def conditions(network: STDiT2, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Random text features (B, M, Cy) and the clip's numbers."""
    config, generator = network.config, torch.Generator().manual_seed(3)
    features = torch.randn(batch, config.model_max_length, config.caption_channels, generator=generator)
    numbers = {"num_frames": 8.0, "height": 64.0, "width": 64.0, "ar": 1.0, "fps": 24.0}
    return features, {name: torch.full((batch,), value) for name, value in numbers.items()}
