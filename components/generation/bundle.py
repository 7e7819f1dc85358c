"""A checkpoint with the encoders it was trained beside: everything that makes pixels, and where it computes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from components import manifest
from components.errors import KinoflowError
from components.layout import CHECKPOINT
from components.media import Frames
from model.autoencoder import Autoencoder, load_autoencoder
from model.checkpoint import load_network, read_state
from model.diffusion_config import DiffusionConfig
from model.stdit2 import STDiT2
from model.text import TextEncoder, load_text_encoder

Part = Literal["network", "autoencoder", "text_encoder"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bundle:
    """Everything a checkpoint needs to make pixels.

    Attributes:
        device: where each part computes while it is needed.
        offload: parts wait in the host's memory while they are not needed.
    """

    network: STDiT2
    diffusion: DiffusionConfig
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    checkpoint: str
    checkpoint_digest: str
    data: str
    device: torch.device = CPU
    offload: bool = True

    @contextmanager
    def at_work(self, part: Part) -> Iterator[None]:
        """Have one part on the device while the body runs."""
        module: STDiT2 | Autoencoder | TextEncoder = getattr(self, part)
        if self.device.type == "cpu":
            yield
            return
        module.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                module.to(CPU)
                torch.cuda.empty_cache()


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; without one the GPU, where torch sees one.

    Raises:
        KinoflowError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise KinoflowError(f"There is no device {name!r}; use cpu, cuda, or cuda with a number.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise KinoflowError(f"torch sees {torch.cuda.device_count()} GPUs here, so there is no {name}; use cpu.")
    return device


def load_bundle(
    checkpoint: str, data: str | None = None, *, use_ema: bool = True, device: torch.device = CPU, offload: bool = True
) -> Bundle:
    """Load network and encoders.

    Args:
        checkpoint: URI of a checkpoint prefix.
        data: URI of the bucket output with the encoders; the one the checkpoint was trained on when absent.
        use_ema: take the averaged weights.
        device: where to compute.
        offload: keep each part off the device while it is not needed.
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
            device=device,
            offload=offload,
        )


def to_pixels(frames: Frames) -> Tensor:
    """(T, H, W, 3) uint8 -> (3, T, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Frames:
    """(B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8."""
    scaled = (pixels.clamp(-1, 1) + 1) * 127.5 + 0.5
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()
