"""What the network is trained and measured on: encoded clips of one size with their captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips of one size.

    Attributes:
        latents: (B, C, T, h, w) float32, scaled.
        text_features: (B, M, Cy) float32, zero-padded; M at most the network's `model_max_length`.
        text_mask: (B, M) int64, 1 where a token counts.
        num_frames, height, width: size of the clips in pixels.
        fps: (B,) float32, of the source videos; 120 for images.
        bucket: name that its figures are reported under; its size when absent.
    """

    latents: Tensor
    text_features: Tensor
    text_mask: Tensor
    num_frames: int
    height: int
    width: int
    fps: Tensor
    bucket: str = ""

    def __post_init__(self) -> None:
        """Name a batch without a bucket by its size."""
        if not self.bucket:
            object.__setattr__(self, "bucket", f"{self.num_frames}x{self.height}x{self.width}")

    def __len__(self) -> int:
        """Number of clips B."""
        return self.latents.shape[0]

    @property
    def clip_info(self) -> dict[str, Tensor]:
        """What the network is told of each clip, (B,) float32 each; `ar` is width / height, as Open-Sora 1.1 trains."""
        numbers = {
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "ar": self.width / self.height,
        }
        told = {name: torch.full((len(self),), float(value)) for name, value in numbers.items()}
        return {**told, "fps": self.fps}
