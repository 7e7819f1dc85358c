"""The loss of one batch, with every random draw made from the batch's own streams.

A draw is a pure function of (seed, stage, batch, purpose): which process computes a batch, after how many restarts,
does not matter.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.batch import Batch
from model.diffusion_config import DiffusionConfig
from model.mask_config import MaskRatios
from model.masks import sample_frame_masks
from model.process import build_process

RANDOM_STREAM = "blake2b-64(seed/stage/batch/purpose) seeds mt19937"
Precision = Literal["fp32", "bf16"]


class BatchLoss(NamedTuple):
    """Loss of one batch.

    Attributes:
        mean: () with its graph, what is minimised.
        per_sample: (B,) detached.
        timesteps: (B,) on the 0..1000 scale.
    """

    mean: Tensor
    per_sample: Tensor
    timesteps: Tensor


def stream_seed(seed: int, stage: str, batch: int, purpose: str) -> int:
    """Seed of one random stream: the first 63 bits of a hash of what the stream is for."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{batch}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class Objective:
    """What one stage minimises.

    Attributes:
        model: the network as it is called.
        stage, seed: name the random streams.
        caption_dropout: share of captions replaced by the null text.
        masks: mixture of frame masks, or None to generate every frame.
        precision: "bf16" computes under autocast.
    """

    model: nn.Module
    diffusion: DiffusionConfig
    stage: str
    seed: int
    caption_dropout: float
    masks: MaskRatios | None
    precision: Precision
    device: torch.device

    def __post_init__(self) -> None:
        """Prepare the process and the one generator that every stream reuses."""
        self._process = build_process(self.diffusion)
        self._generator = torch.Generator()

    def __call__(self, batch: Batch, index: int) -> BatchLoss:
        """The loss of the batch of that global index."""
        size, frames = len(batch), batch.latents.shape[2]
        clip_size = (frames, batch.height, batch.width)
        stream, device = self._stream, self.device
        timesteps = self._process.sample_timesteps(size, stream(index, "timesteps"), device=device, size=clip_size)
        noise = torch.randn(batch.latents.shape, generator=stream(index, "noise")).to(device)
        dropped = torch.rand(size, generator=stream(index, "captions")) < self.caption_dropout
        conditions = {name: value.to(device) for name, value in batch.clip_info.items()}
        conditions |= {"y": batch.text_features[:, None].to(device), "mask": batch.text_mask.to(device)}
        if bool(dropped.any()):
            conditions["drop_caption"] = dropped.to(device)

        def denoise(x: Tensor, t: Tensor, x_mask: Tensor | None) -> Tensor:
            with self._autocast():
                output: Tensor = self.model(x, t, x_mask=x_mask, **conditions)
            return output

        frame_mask = self._frame_mask(index, size, frames)
        loss = self._process.training_losses(denoise, batch.latents.to(device), timesteps, noise, frame_mask).loss
        return BatchLoss(loss.mean(), loss.detach(), timesteps)

    def _frame_mask(self, index: int, size: int, frames: int) -> Tensor | None:
        """(B, T) bool, or None when every frame of every clip is generated."""
        if self.masks is None or frames == 1:
            return None
        draws = random.Random(stream_seed(self.seed, self.stage, index, "frames"))
        mask = sample_frame_masks(self.masks, frames, size, draws)
        return None if bool(mask.all()) else mask.to(self.device)

    def _stream(self, index: int, purpose: str) -> torch.Generator:
        return self._generator.manual_seed(stream_seed(self.seed, self.stage, index, purpose))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
