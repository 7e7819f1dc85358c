"""Per-frame autoencoders with stride 8: a released `AutoencoderKL`, or a small one fitted to the data.

Both live in a folder whose config.json names the class in `_class_name`, and both are used through
`Autoencoder`. Frames are flattened into the batch, so time is never compressed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.encoder_config import AutoencoderConfig

SPATIAL_STRIDE = 8
PATCH_CHANNELS = 3 * SPATIAL_STRIDE * SPATIAL_STRIDE
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PIXELS_AT_ONCE = 2**20
WHOLE_PIXELS, TILE_PX = 768 * 768, 512
"""Frames of more pixels are decoded by an AutoencoderKL in tiles of that side, which overlap by a quarter."""
KL_BYTES_PER_PIXEL, PATCH_BYTES_PER_PIXEL = 5_500, 100
"""Memory of decoding one pixel in float32: measured with the released widths, and with the demo's."""
PCA_PATCHES = 40_000
STATISTICS_CROPS = 256

Progress = Callable[[int, int, float], None]
"""Called as progress(step, steps, psnr_db) after every optimiser step."""


class _Refine(nn.Module):
    """Convolutions across neighbouring patches, added to the linear part; starts as zero."""

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(hidden_channels, hidden_channels, 1),
            )
            for _ in range(depth)
        )
        self.leave = nn.Conv2d(hidden_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.leave(F.silu(x))
        return out


class PatchAutoencoder(nn.Module):
    """A linear map of 8 x 8 patches (principal components) refined by small convolutions.

    Latents are shifted to mean 0 per channel and divided by one common factor, which brings them to standard
    deviation 1 over the fitted data; the statistics are part of the state.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.project = nn.Conv2d(PATCH_CHANNELS, config.latent_channels, 1)
        self.expand = nn.Conv2d(config.latent_channels, PATCH_CHANNELS, 1)
        self.refine_latents = _Refine(PATCH_CHANNELS, config.latent_channels, config.hidden_channels, config.depth)
        self.refine_patches = _Refine(config.latent_channels, PATCH_CHANNELS, config.hidden_channels, config.depth)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def raw_latents(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] to latents (N, C, H//8, W//8) before normalisation."""
        height, width = (side - side % SPATIAL_STRIDE for side in frames.shape[-2:])
        patches = F.pixel_unshuffle(frames[..., :height, :width], SPATIAL_STRIDE)
        latents: Tensor = self.project(patches) + self.refine_latents(patches)
        return latents

    def raw_frames(self, latents: Tensor) -> Tensor:
        """Latents before normalisation (N, C, h, w) to frames (N, 3, 8h, 8w), not clipped."""
        return F.pixel_shuffle(self.expand(latents) + self.refine_patches(latents), SPATIAL_STRIDE)

    def encode_frames(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] to normalised latents (N, C, H//8, W//8).

        The map is deterministic, so `generator` changes nothing.
        """
        latents = self.raw_latents(frames.to(self.latent_mean.dtype))
        return (latents - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode_frames(self, latents: Tensor) -> Tensor:
        """Normalised latents (N, C, h, w) to frames (N, 3, 8h, 8w) clipped to [-1, 1]."""
        raw = latents.to(self.latent_mean.dtype) * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        return self.raw_frames(raw).clamp(-1, 1)

    def decoding_bytes(self, frames: int, height: int, width: int) -> int:
        """Memory that decoding so many frames at once takes."""
        return PATCH_BYTES_PER_PIXEL * frames * height * width

    def save(self, folder: Path) -> None:
        """Write config.json and the weights."""
        document = {"_class_name": type(self).__name__, **self.config.model_dump()}
        (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path, document: dict[str, Any]) -> Self:
        """Read back what `save` wrote; `document` is the parsed config.json."""
        settings = {key: value for key, value in document.items() if not key.startswith("_")}
        network = cls(AutoencoderConfig.model_validate(settings))
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return network


class KLAutoencoder(nn.Module):
    """A diffusers `AutoencoderKL`: latents are (posterior - shift) * scaling factor of its own config."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        stride = 2 ** (len(network.config.block_out_channels) - 1)
        if stride != SPATIAL_STRIDE:
            raise ValueError(f"The AutoencoderKL has stride {stride}; only stride {SPATIAL_STRIDE} is supported.")
        self.latent_channels = int(network.config.latent_channels)
        self.scaling_factor = float(network.config.scaling_factor)
        network.tile_sample_min_size, network.tile_latent_min_size = TILE_PX, TILE_PX // stride
        self.shift_factor = float(network.config.shift_factor or 0.0)

    def encode_frames(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] to scaled latents: the posterior's mode, or a sample with a generator."""
        self.network.use_tiling = False
        posterior = self.network.encode(frames.to(self.network.dtype)).latent_dist
        latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - self.shift_factor) * self.scaling_factor

    def decode_frames(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, C, h, w) to frames (N, 3, 8h, 8w) clipped to [-1, 1]."""
        self.network.use_tiling = latents.shape[-2] * latents.shape[-1] * SPATIAL_STRIDE**2 > WHOLE_PIXELS
        frames: Tensor = self.network.decode(
            latents.to(self.network.dtype) / self.scaling_factor + self.shift_factor
        ).sample
        return frames.clamp(-1, 1)

    def decoding_bytes(self, frames: int, height: int, width: int) -> int:
        """Memory that decoding so many frames at once takes."""
        whole = height * width
        held = 24 * whole if whole > WHOLE_PIXELS else 0  # all tiles, before they are joined
        pixels = TILE_PX**2 if whole > WHOLE_PIXELS else whole
        return frames * (KL_BYTES_PER_PIXEL * pixels * int(self.network.dtype.itemsize) // 4 + held)

    def save(self, folder: Path) -> None:
        """Write the folder the way diffusers does."""
        self.network.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a diffusers folder; only safetensors weights are accepted."""
        from diffusers import AutoencoderKL

        network = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
        return cls(network)


class Autoencoder:
    """Videos to latents and back, a few frames at a time, without gradients.

    Args:
        codec: the network, on any device.
        micro_batch_size: frames handled at once.
    """

    def __init__(self, codec: PatchAutoencoder | KLAutoencoder, micro_batch_size: int = 4) -> None:
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={micro_batch_size} must be at least 1.")
        self.codec = codec.eval().requires_grad_(False)
        self.micro_batch_size = micro_batch_size
        self.latent_channels = codec.latent_channels
        self.stride = (1, SPATIAL_STRIDE, SPATIAL_STRIDE)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the network; returns self."""
        self.codec.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode videos.

        Args:
            pixels: (B, 3, T, H, W) in [-1, 1].
            generator: samples the posterior; without one its mode is returned.
        Returns:
            (B, C, T, H//8, W//8) float32 latents of about unit standard deviation.
        """
        if pixels.ndim != 5 or pixels.shape[1] != 3 or min(pixels.shape[-2:]) < SPATIAL_STRIDE:
            raise ValueError(f"Expected pixels (B, 3, T, H, W) of at least 8 x 8, got {tuple(pixels.shape)}.")
        device = next(self.codec.parameters()).device
        frames = rearrange(pixels, "B C T H W -> (B T) C H W").to(device)
        parts = [self.codec.encode_frames(part, generator).float() for part in frames.split(self.micro_batch_size)]
        return rearrange(torch.cat(parts), "(B T) C H W -> B C T H W", B=len(pixels))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, T, h, w) to pixels (B, 3, T, 8h, 8w), float32 in [-1, 1].

        Frames are decoded a few at a time, fewer when they are large, and very large ones in tiles.
        """
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(f"Expected latents (B, {self.latent_channels}, T, h, w), got {tuple(latents.shape)}.")
        device = next(self.codec.parameters()).device
        frames = rearrange(latents, "B C T H W -> (B T) C H W").to(device)
        together = self.frames_at_once(*(SPATIAL_STRIDE * side for side in latents.shape[-2:]))
        parts = [self.codec.decode_frames(part).float() for part in frames.split(together)]
        return rearrange(torch.cat(parts), "(B T) C H W -> B C T H W", B=len(latents))

    def frames_at_once(self, height: int, width: int) -> int:
        """How many frames of that size in pixels are decoded together."""
        return max(1, min(self.micro_batch_size, PIXELS_AT_ONCE // (height * width)))

    def decoding_bytes(self, height: int, width: int) -> int:
        """Memory that decoding takes at its peak for frames of that size in pixels, whatever their number."""
        frames = self.frames_at_once(height, width)
        return frames * height * width * 24 + self.codec.decoding_bytes(frames, height, width)

    def save(self, folder: str | Path) -> None:
        """Write config.json and safetensors weights into `folder`, made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.codec.save(Path(folder))

    @property
    def digest(self) -> str:
        """SHA-256 over the names and values of all weights: same digest, same latents."""
        return state_digest(self.codec)


def state_digest(network: nn.Module) -> str:
    """SHA-256 (hex) over a network's class name, tensor names, shapes, types and bytes."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_autoencoder(folder: str | Path, micro_batch_size: int = 4) -> Autoencoder:
    """Load the autoencoder of a folder, whichever of the two kinds it holds.

    Raises:
        ValueError: the folder holds no autoencoder, an unknown one, or one that cannot be read.
    """
    path = Path(folder)
    try:
        document = json.loads((path / CONFIG_FILE).read_text())
        kind = document["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an autoencoder folder: it needs a config.json with _class_name and safetensors weights."
        ) from error
    if kind not in ("PatchAutoencoder", "AutoencoderKL"):
        raise ValueError(f"{path} holds a {kind}; give the folder of an AutoencoderKL or a PatchAutoencoder.")
    try:
        codec = PatchAutoencoder.load(path, document) if kind == "PatchAutoencoder" else KLAutoencoder.load(path)
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"The weights of the {kind} in {path} cannot be read: {error}") from error
    return Autoencoder(codec, micro_batch_size)


class _Crops:
    """Seeded square crops of frames of any sizes, batched at one size."""

    def __init__(self, frames: Sequence[Tensor], config: AutoencoderConfig) -> None:
        if not frames or any(frame.ndim != 3 or frame.shape[0] != 3 for frame in frames):
            raise ValueError("fit_autoencoder needs at least one frame, each (3, H, W) in [-1, 1].")
        shortest = min(min(frame.shape[1:]) for frame in frames)
        self.side = min(config.crop_px, shortest - shortest % SPATIAL_STRIDE)
        if self.side < SPATIAL_STRIDE:
            raise ValueError(f"The smallest frame has a side of {shortest} pixels; frames need at least 8.")
        self.frames = frames
        self.generator = torch.Generator().manual_seed(config.seed)

    def draw(self, count: int) -> Tensor:
        """(count, 3, side, side) crops."""
        crops = []
        for pick in torch.randint(len(self.frames), (count,), generator=self.generator).tolist():
            frame = self.frames[pick]
            top, left = (
                int(torch.randint(size - self.side + 1, (), generator=self.generator)) for size in frame.shape[1:]
            )
            crops.append(frame[:, top : top + self.side, left : left + self.side].float())
        return torch.stack(crops)


@torch.no_grad()
def _initialise(network: PatchAutoencoder, crops: _Crops) -> None:
    """Principal components for the linear part, zero for what the convolutions add."""
    generator = torch.Generator().manual_seed(network.config.seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for refine in (network.refine_latents, network.refine_patches):
        nn.init.zeros_(refine.leave.weight)
        for block in refine.blocks:
            nn.init.zeros_(block[-1].weight)  # type: ignore[index]
    patches_per_crop = (crops.side // SPATIAL_STRIDE) ** 2
    sample = F.pixel_unshuffle(crops.draw(max(1, PCA_PATCHES // patches_per_crop)), SPATIAL_STRIDE)
    rows = rearrange(sample, "N P H W -> (N H W) P").double()
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values, vectors = (t.flip(-1)[..., : network.latent_channels] for t in (values, vectors))
    vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    scales = values.clamp_min(1e-6).sqrt()
    network.project.weight.copy_((vectors / scales).T[:, :, None, None])
    network.project.bias.copy_(-(mean @ vectors) / scales)  # type: ignore[union-attr]
    network.expand.weight.copy_((vectors * scales)[:, :, None, None])
    network.expand.bias.copy_(mean)  # type: ignore[union-attr]


@torch.no_grad()
def _normalise(network: PatchAutoencoder, crops: _Crops) -> None:
    latents = network.raw_latents(crops.draw(STATISTICS_CROPS))
    network.latent_mean.copy_(latents.mean((0, 2, 3)))
    network.latent_std.fill_(latents.var((0, 2, 3)).mean().sqrt().clamp_min(1e-4))


def fit_autoencoder(
    frames: Sequence[Tensor], config: AutoencoderConfig, progress: Progress | None = None
) -> Autoencoder:
    """Fit a `PatchAutoencoder` to frames; same frames and config, same weights.

    Args:
        frames: tensors (3, H, W) in [-1, 1], of any sizes from 8 x 8.
        config: shape and schedule; the work is bounded by `steps`.
        progress: called after every step with (step, steps, psnr_db of the step's crops).
    """
    crops = _Crops(frames, config)
    network = PatchAutoencoder(config)
    _initialise(network, crops)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=max(2, config.steps), pct_start=max(0.05, 2 / max(2, config.steps))
    )
    for step in range(1, config.steps + 1):
        pixels = crops.draw(config.batch_size)
        latents = network.raw_latents(pixels)
        scale = latents.detach().std((0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=crops.generator)
        loss = F.mse_loss(network.raw_frames(latents + config.latent_noise * scale * noise), pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, config.steps, float(10 * torch.log10(4.0 / loss.detach())))
    _normalise(network, crops)
    return Autoencoder(network)
