"""Clips of one length: noise, text, references and guidance become latents, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from components import video
from components.caption import clean_caption
from components.errors import KinoflowError
from components.generation.bundle import Bundle, to_frames, to_pixels
from components.media import Frames
from components.sampling_config import SamplingConfig
from model.masks import apply_mask_strategy
from model.process import build_sampler
from model.sampling import ClassifierFreeGuidance, TextConditionedDenoiser, sample_latents

IMAGE_FPS = 120.0  # what Open-Sora 1.1 tells the network about stills
IMAGE_TO_VIDEO = "0"  # mask strategy: reference 0 becomes frame 0


@dataclass(frozen=True)
class Request:
    """One video to generate.

    Attributes:
        prompt: text, cleaned like the training captions before it is encoded.
        seed: of this sample's noise; the same seed gives the same video whatever else is in the batch.
        references: (T_ref, H, W, 3) uint8 each; a still has T_ref = 1.
        mask_strategy: Open-Sora 1.1's string, for example "0" for image to video.
    """

    prompt: str
    seed: int
    references: tuple[Frames, ...] = field(default=(), repr=False)
    mask_strategy: str | None = None


@dataclass(frozen=True)
class ClipSize:
    """Size of a clip in pixels, and the latents that hold it.

    A side that does not divide by the stride is sampled a little larger and cut on the right or at the bottom.
    """

    num_frames: int
    height: int
    width: int
    stride: int
    channels: int

    @classmethod
    def of(cls, bundle: Bundle, num_frames: int, height: int, width: int) -> ClipSize:
        """That size for the bundle's autoencoder."""
        return cls(num_frames, height, width, bundle.autoencoder.stride[1], bundle.autoencoder.latent_channels)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w)."""
        return self.channels, self.num_frames, -(-self.height // self.stride), -(-self.width // self.stride)

    def cut(self, pixels: Tensor) -> Tensor:
        """Decoded pixels (..., 8h, 8w) without what was sampled beyond the size."""
        return pixels[..., : self.height, : self.width]

    def fit(self, frames: Frames) -> Frames:
        """Frames (T, H, W, 3) of any size as the latents hold them: cropped to this size, the rest repeats the edge."""
        fitted = video.resize_crop(frames, self.height, self.width, is_image=len(frames) == 1)
        below, beside = -self.height % self.stride, -self.width % self.stride
        return np.pad(fitted, ((0, 0), (0, below), (0, beside), (0, 0)), mode="edge")


@dataclass(frozen=True)
class Text:
    """Encoded prompts.

    Attributes:
        features: (N, M, Cy).
        mask: (N, M).
        null_features: (M, Cy), of the negative prompt; the network's own null text when None.
        null_mask: (M,), of the negative prompt.
    """

    features: Tensor
    mask: Tensor
    null_features: Tensor | None = None
    null_mask: Tensor | None = None

    def pick(self, row: int) -> Text:
        """One of the prompts."""
        return Text(self.features[row : row + 1], self.mask[row : row + 1], self.null_features, self.null_mask)


@torch.no_grad()
def generate(
    bundle: Bundle,
    requests: Sequence[Request],
    *,
    num_frames: int,
    height: int,
    width: int,
    sampling: SamplingConfig,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[Frames]:
    """Generate one clip per request.

    Args:
        bundle: from `load_bundle`.
        requests: what to generate.
        num_frames: frames of each clip; 1 makes stills.
        height: in pixels.
        width: likewise.
        sampling: steps, guidance, frame rate.
        batch_size: requests sampled at once.
        on_batch: called with the number of requests just finished.

    Returns:
        (num_frames, height, width, 3) uint8 for each request, in order.
    """
    size = ClipSize.of(bundle, num_frames, height, width)
    clips: list[Frames] = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        latents = _sample_batch(bundle, batch, size, sampling)
        with bundle.at_work("autoencoder"):
            clips += list(to_frames(size.cut(bundle.autoencoder.decode(latents))))
        if on_batch is not None:
            on_batch(len(batch))
    return clips


def _sample_batch(bundle: Bundle, batch: Sequence[Request], size: ClipSize, sampling: SamplingConfig) -> Tensor:
    generators = [torch.Generator().manual_seed(request.seed) for request in batch]
    latents = draw_noise(generators, size)
    mask = None
    if any(request.mask_strategy for request in batch):
        with bundle.at_work("autoencoder"):
            references = [[encode_frames(bundle, frames, size) for frames in request.references] for request in batch]
        mask = apply_mask_strategy(latents, references, [request.mask_strategy for request in batch])
    text = encode_text(bundle, [request.prompt for request in batch])
    return sample_clips(bundle, text, latents, mask, generators, size=size, sampling=sampling)


def encode_text(bundle: Bundle, prompts: Sequence[str], negative_prompt: str | None = None) -> Text:
    """Clean and encode prompts, and what to steer away from."""
    texts = [clean_caption(prompt) for prompt in (*prompts, *([negative_prompt] if negative_prompt else []))]
    with bundle.at_work("text_encoder"):
        features, mask = bundle.text_encoder.encode(texts)
    if len(texts) == len(prompts):
        return Text(features, mask)
    return Text(features[:-1], mask[:-1], features[-1], mask[-1])


def encode_frames(bundle: Bundle, frames: Frames, size: ClipSize) -> Tensor:
    """Reference frames (T, H, W, 3) of any size -> latents (C, T, h, w)."""
    return bundle.autoencoder.encode(to_pixels(size.fit(frames))[None])[0]


def draw_noise(generators: Sequence[torch.Generator], size: ClipSize) -> Tensor:
    """Fresh latents (B, C, T, h, w), each sample's from its own generator."""
    return torch.stack([torch.randn(size.latent_shape, generator=generator) for generator in generators])


@torch.no_grad()
def sample_clips(
    bundle: Bundle,
    text: Text,
    latents: Tensor,
    mask: Tensor | None,
    generators: Sequence[torch.Generator],
    *,
    size: ClipSize,
    sampling: SamplingConfig,
    inverted_aspect: bool = False,
    precision: str = "fp32",
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Denoise clips; the noise comes from the samples' generators, so that it is the same on every device.

    Args:
        bundle: what computes.
        text: of every sample.
        latents: (B, C, T, h, w), noise with the references written in.
        mask: (B, T); None = everything is generated.
        generators: one for each sample.
        size: of the clips.
        sampling: steps, guidance, frame rate.
        inverted_aspect: tell the network height / width.
        precision: "bf16" computes the network's products in it.
        on_step: called with the number of steps done.

    Returns:
        (B, C, T, h, w) float32.
    """
    try:
        process = build_sampler(bundle.diffusion, sampling.num_inference_steps, sampling.method)
    except ValueError as error:
        raise KinoflowError(str(error)) from error
    denoise = _denoiser(bundle, text, size, sampling, inverted_aspect)
    doubled = isinstance(denoise, ClassifierFreeGuidance) and process.draws_noise_for_both_halves
    with (
        bundle.at_work("network"),
        torch.autocast(bundle.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
    ):
        sampled = sample_latents(
            process, denoise, latents.to(bundle.device), None if mask is None else mask.to(bundle.device),
            noise=_noise(generators, size, copies=2 if doubled else 1), size=(size.num_frames, size.height, size.width),
            keep_condition_frames=sampling.keep_condition_frames, on_step=on_step,
        )  # fmt: skip
    return sampled.float()


def _noise(generators: Sequence[torch.Generator], size: ClipSize, copies: int) -> Iterator[Tensor]:
    """Each sample's noise from its own generator; samplers that hold both guidance halves want it twice."""
    while True:
        yield torch.cat([draw_noise(generators, size)] * copies)


def _denoiser(
    bundle: Bundle, text: Text, size: ClipSize, sampling: SamplingConfig, inverted_aspect: bool
) -> ClassifierFreeGuidance | TextConditionedDenoiser:
    count, device = len(text.features), bundle.device
    aspect = size.height / size.width if inverted_aspect else size.width / size.height
    fps = IMAGE_FPS if size.num_frames == 1 else sampling.fps
    told = {
        "num_frames": size.num_frames, "height": size.height, "width": size.width, "ar": aspect, "fps": fps,
    }  # fmt: skip
    info = {name: torch.full((count,), float(value), device=device) for name, value in told.items()}
    features, mask = text.features.to(device), text.mask.to(device)
    if sampling.guidance_scale == 1:
        return TextConditionedDenoiser(bundle.network, features, mask, **info)
    null_mask = None if text.null_mask is None else text.null_mask.to(device).expand_as(mask)
    return ClassifierFreeGuidance(
        bundle.network, features, mask, scale=sampling.guidance_scale, cfg_channel=sampling.cfg_channel,
        null_features=None if text.null_features is None else text.null_features.to(device), null_mask=null_mask,
        **info,
    )  # fmt: skip
