"""How much memory a video takes, before it is begun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from components.errors import KinoflowError
from components.generation.bundle import Bundle
from components.generation.clips import ClipSize
from components.generation.settings import GenerationConfig
from model.cost import GIB
from model.geometry import num_tokens

FORWARD_BYTES = 64
"""Per token and channel of the network while one block computes, measured from 3,000 to 50,000 tokens in float32."""
MARGIN = 1.15


@dataclass(frozen=True)
class Need:
    """Bytes that a video takes beside what is loaded already.

    Attributes:
        sampling: weights that come to the device, and one pass of the network.
        decoding: likewise, and the frames that are decoded at once.
    """

    sampling: int
    decoding: int

    @property
    def peak(self) -> int:
        """The larger of the two: they do not happen at once."""
        return max(self.sampling, self.decoding)


def predict_memory(bundle: Bundle, config: GenerationConfig) -> Need:
    """What one sample takes on the bundle's device; weights count where they are not there yet."""
    size = ClipSize.of(bundle, config.clip_frames, config.height, config.width)
    passes = 1 if config.sampling.guidance_scale == 1 else 2
    network = bundle.network.config
    _, frames, rows, columns = size.latent_shape
    height, width = rows * size.stride, columns * size.stride
    tokens = passes * num_tokens(frames, height, width, patch_size=network.patch_size)
    latents = 4 * size.channels * frames * rows * columns * (4 + 2 * passes)
    elsewhere = bundle.device.type != "cpu"
    codec = bundle.autoencoder.codec
    decoding = bundle.autoencoder.decoding_bytes(height, width)
    kept = 12 * config.carried_frames * height * width if config.loops > 1 else 0
    return Need(
        round(MARGIN * (tokens * network.hidden_size * FORWARD_BYTES + latents) + elsewhere * _weights(bundle.network)),
        round(MARGIN * (decoding + kept) + elsewhere * _weights(codec)),
    )


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of the host and the container this runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    free = [_kibibytes(meminfo, "MemAvailable:") * 1024] if meminfo.is_file() else []
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return min(free, default=1 << 62)


def check_memory(bundle: Bundle, config: GenerationConfig, memory_gib: float | None = None) -> None:
    """Refuse a video that will not fit.

    Args:
        bundle: what computes, and where.
        config: of the video.
        memory_gib: what may be used; measured when absent.

    Raises:
        KinoflowError: naming the size, the need and what is there.
    """
    need = predict_memory(bundle, config)
    there = available_bytes(bundle.device) if memory_gib is None else memory_gib * GIB
    if need.peak > there:
        what = "sampling" if need.sampling >= need.decoding else "decoding"
        raise KinoflowError(
            f"{config.clip_frames} frames of {config.height}x{config.width} need about {need.peak / GIB:.1f} GiB for "
            f"{what}, and {bundle.device} has {there / GIB:.1f} GiB free; ask for a smaller size or shorter clips in "
            "more loops."
        )


def _weights(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _kibibytes(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 1 << 52
