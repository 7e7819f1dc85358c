"""Sampling with the demo's network against Latte's, guidance in one pass over two, and what decoding holds."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
import yaml
from torch import Tensor

from components.config import SamplingConfig
from model.autoencoder import Autoencoder, PatchAutoencoder
from model.config import STDiT2Config
from model.encoder_config import AutoencoderConfig
from model.flow import RectifiedFlow
from model.probe import peak_bytes, reset_peak
from model.process import Denoiser
from model.sampling import ClassifierFreeGuidance, TextConditionedDenoiser, guide, sample_latents
from model.stdit2 import STDiT2
from tests.benchmarks.buckets import PRESETS
from tests.benchmarks.latte import peer, peer_sampler
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
    other = peer(config, LATENTS)
    cases["latte"] = peer_sampler(other, config, noise_of(network, many), steps, scale)
    timings = by_turns(cases, settings, "sampling")
    what = f"{steps} steps, 8 frames of 64 x 64"
    alone, together = "one pass, 1", f"one pass, {many}"
    return [
        timings.rate(alone, 0, f"one guided sample, {what}", "s"),
        timings.rate(together, many, f"{many} guided samples at once, {what}", "samples/s"),
        timings.speed_ratio(together, alone, f"{many} at once over one, samples/s", many, 1),
        timings.speed_ratio(alone, "two passes, 1", "one sample: guidance in one pass over two"),
        timings.speed_ratio(together, f"two passes, {many}", f"{many} samples: guidance in one pass over two"),
        timings.speed_ratio(together, "latte", f"{many} samples: ours over diffusers' Latte, samples/s"),
        Figure("weights: Latte over ours", weights(other) / weights(network)),
        Figure("peak memory: ours over Latte", peak_mib(cases[together]) / peak_mib(cases["latte"])),
        *decoding(settings),
    ]


def decoding(settings: Settings) -> list[Figure]:
    """Peak memory of decoding a short and a long 720p clip, frame after frame as a file is written."""
    short, long, height, width = (1, 3, 64, 64) if settings.toy else (2, 16, 720, 1280)
    autoencoder = Autoencoder(PatchAutoencoder(AutoencoderConfig(latent_channels=8, hidden_channels=128, depth=2)))

    def decode(frames: int) -> Callable[[], None]:
        latents = torch.zeros(1, 8, frames, height // 8, width // 8)

        def run() -> None:
            for frame in latents.split(1, dim=2):
                autoencoder.decode(frame)

        return run

    peaks = {frames: peak_mib(decode(frames)) for frames in (short, long)}
    size = f"{height} x {width}"
    return [
        Figure(f"decoding {long} frames of {size}, peak memory", peaks[long], "MiB"),
        Figure(f"decoding {long} frames over {short}, peak memory", peaks[long] / peaks[short]),
    ]


def peak_mib(work: Callable[[], object]) -> float:
    """Most memory that `work` takes beside what the process holds before it, at least one MiB."""
    device = torch.device("cpu")
    gc.collect()
    reset_peak(device)
    before = peak_bytes(device)
    work()
    return max(1.0, (peak_bytes(device) - before) / 2**20)


def weights(network: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def noise_of(network: STDiT2, batch: int) -> Tensor:
    """Noise for `batch` samples, the same at every call."""
    return torch.randn(batch, network.config.in_channels, *LATENTS, generator=torch.Generator().manual_seed(2))


def sampler(network: STDiT2, denoise: Denoiser, batch: int, steps: int) -> Callable[[], Tensor]:
    """What draws `batch` samples, the same ones at every call."""
    process = RectifiedFlow(steps)
    noise = noise_of(network, batch)

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
