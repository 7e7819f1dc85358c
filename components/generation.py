"""From a checkpoint and prompts to pixels: the one way samples are drawn, by evaluation and by `kinoflow generate`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components import manifest, progress, video
from components.caption import clean_caption
from components.config import SamplingConfig
from components.errors import KinoflowError
from components.layout import CHECKPOINT
from model.autoencoder import Autoencoder, load_autoencoder
from model.checkpoint import load_network, read_state
from model.diffusion_config import DiffusionConfig, SamplingMethod
from model.masks import apply_mask_strategy
from model.process import build_sampler
from model.sampling import ClassifierFreeGuidance, TextConditionedDenoiser, sample_latents
from model.stdit2 import STDiT2
from model.text import TextEncoder, load_text_encoder

logger = logging.getLogger(__name__)
Frames = NDArray[np.uint8]
IMAGE_FPS = 120.0  # what Open-Sora 1.1 tells the network about stills
IMAGE_TO_VIDEO = "0"  # mask strategy: reference 0 becomes frame 0


@dataclass(frozen=True)
class Bundle:
    """Everything a checkpoint needs to make pixels."""

    network: STDiT2
    diffusion: DiffusionConfig
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    checkpoint: str
    checkpoint_digest: str
    data: str


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


def load_bundle(checkpoint: str, data: str | None = None, *, use_ema: bool = True) -> Bundle:
    """Load network and encoders.

    Args:
        checkpoint: URI of a checkpoint prefix.
        data: URI of the bucket output with the encoders; the one the checkpoint was trained on when absent.
        use_ema: take the averaged weights.
    """
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        folder = Path(scratch) / "checkpoint"
        weights = "ema.safetensors" if use_ema else "model.safetensors"
        names = [weights, "config.json", "state.json"]
        published = manifest.fetch(checkpoint, folder, names, kind=CHECKPOINT)
        data = data or published.annotations.get("data")
        if not data:
            raise KinoflowError(f"{checkpoint} does not say which encoders it needs; name the data it was trained on.")
        encoders = Path(scratch) / "encoders"
        wanted = [n for n in manifest.load(data).files if n.split("/")[0] in ("autoencoder", "text_encoder")]
        manifest.fetch(data, encoders, wanted, kind="dataset")
        return Bundle(
            network=load_network(folder, use_ema=use_ema).eval(),
            diffusion=read_state(folder).diffusion,
            autoencoder=load_autoencoder(encoders / "autoencoder"),
            text_encoder=load_text_encoder(encoders / "text_encoder"),
            checkpoint=checkpoint,
            checkpoint_digest=published.digest,
            data=data,
        )


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
        height: in pixels, a multiple of the autoencoder's stride.
        width: likewise.
        sampling: steps, guidance, frame rate.
        batch_size: requests sampled at once.
        on_batch: called with the number of requests just finished.

    Returns:
        (num_frames, height, width, 3) uint8 for each request, in order.
    """
    stride = bundle.autoencoder.stride[1]
    if height % stride or width % stride:
        raise KinoflowError(f"A size of {height}x{width} does not divide by the autoencoder's stride {stride}.")
    clips: list[Frames] = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        latents = _sample_batch(bundle, batch, (num_frames, height, width), sampling)
        clips += list(to_frames(bundle.autoencoder.decode(latents)))
        if on_batch is not None:
            on_batch(len(batch))
    return clips


def _sample_batch(
    bundle: Bundle, batch: Sequence[Request], size: tuple[int, int, int], sampling: SamplingConfig
) -> Tensor:
    num_frames, height, width = size
    stride = bundle.autoencoder.stride[1]
    shape = (bundle.autoencoder.latent_channels, num_frames, height // stride, width // stride)
    generators = [torch.Generator().manual_seed(request.seed) for request in batch]
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    mask = None
    if any(request.mask_strategy for request in batch):
        references = [[_encode(bundle, frames, height, width) for frames in request.references] for request in batch]
        mask = apply_mask_strategy(latents, references, [request.mask_strategy for request in batch])
    try:
        process = build_sampler(bundle.diffusion, sampling.num_inference_steps, sampling.method)
    except ValueError as error:
        raise KinoflowError(str(error)) from error
    denoise = _denoiser(bundle, batch, size, sampling)
    doubled = isinstance(denoise, ClassifierFreeGuidance) and process.draws_noise_for_both_halves
    noise = _noise(generators, shape, copies=2 if doubled else 1)
    return sample_latents(
        process, denoise, latents, mask, noise=noise, size=size, keep_condition_frames=sampling.keep_condition_frames
    )


def _noise(generators: list[torch.Generator], shape: tuple[int, ...], copies: int) -> Iterator[Tensor]:
    """Each sample's noise from its own generator; samplers that hold both guidance halves want it twice."""
    while True:
        drawn = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        yield torch.cat([drawn] * copies)


def _denoiser(
    bundle: Bundle, batch: Sequence[Request], size: tuple[int, int, int], sampling: SamplingConfig
) -> ClassifierFreeGuidance | TextConditionedDenoiser:
    num_frames, height, width = size
    features, text_mask = bundle.text_encoder.encode([clean_caption(request.prompt) for request in batch])
    fps = IMAGE_FPS if num_frames == 1 else sampling.fps
    told = {"num_frames": num_frames, "height": height, "width": width, "ar": width / height, "fps": fps}
    info = {name: torch.full((len(batch),), float(value)) for name, value in told.items()}
    if sampling.guidance_scale == 1:
        return TextConditionedDenoiser(bundle.network, features, text_mask, **info)
    return ClassifierFreeGuidance(
        bundle.network, features, text_mask, scale=sampling.guidance_scale, cfg_channel=sampling.cfg_channel, **info
    )


def _encode(bundle: Bundle, frames: Frames, height: int, width: int) -> Tensor:
    """Reference frames (T, H, W, 3) of any size -> latents (C, T, h, w)."""
    fitted = video.resize_crop(frames, height, width, is_image=len(frames) == 1)
    return bundle.autoencoder.encode(to_pixels(fitted)[None])[0]


def to_pixels(frames: Frames) -> Tensor:
    """(T, H, W, 3) uint8 -> (3, T, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Frames:
    """(B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8."""
    scaled = (pixels.clamp(-1, 1) + 1) * 127.5 + 0.5
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()


def generate_command(
    *,
    checkpoint: str,
    prompts: Sequence[str],
    out: str,
    num_frames: int,
    height: int,
    width: int,
    seed: int,
    guidance_scale: float,
    num_inference_steps: int,
    method: SamplingMethod = "own",
    reference: str | None = None,
    mask_strategy: str | None = None,
    fps: float = 24.0,
    saved_fps: float = 8.0,
) -> list[Path]:
    """Generate one file per prompt into the folder `out`: PNG for one frame, MP4 for more.

    A reference without a mask strategy becomes the first frame.

    Raises:
        KinoflowError: an empty prompt, an unreadable reference, a strategy that does not fit, a size that does not
            divide.
    """
    for prompt in prompts:
        if not clean_caption(prompt):
            raise KinoflowError(f"The prompt {prompt!r} is empty once it is cleaned; describe what to show.")
    references = () if reference is None else (np.stack(list(video.decode_frames(Path(reference)))),)
    strategy = mask_strategy or (IMAGE_TO_VIDEO if references else None)
    bundle = load_bundle(checkpoint)
    sampling = SamplingConfig(
        guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, method=method, fps=fps,
        saved_fps=saved_fps,
    )  # fmt: skip
    requests = [
        Request(prompt, seed + index, references=references, mask_strategy=strategy)
        for index, prompt in enumerate(prompts)
    ]
    with progress.task("generate", len(requests)) as bar:
        clips = generate(
            bundle, requests, num_frames=num_frames, height=height, width=width, sampling=sampling,
            on_batch=bar.advance,
        )  # fmt: skip
    return [_save(Path(out) / f"sample_{index:04d}", clip, saved_fps) for index, clip in enumerate(clips)]


def _save(stem: Path, clip: Frames, fps: float) -> Path:
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_suffix(".png" if len(clip) == 1 else ".mp4")
    if len(clip) == 1:
        video.write_image(path, clip[0])
    else:
        video.write_video(path, clip, fps)
    return path
