"""Sequence parallelism: the ranks of a group hold parts of the same clips' tokens.

Every rank holds all T frames of its share of the S token places, (B, T, S / n, D). That is all that temporal
attention, cross-attention, MLP, modulation and final layer need: they run unchanged and without a word to other
ranks. Only spatial attention looks at whole frames: before it, an all-to-all turns shares of the places into shares
of the B T frames, and after it another one turns them back. So a block sends 2 D (n - 1) / n numbers per token and
pass. The usual form (DeepSpeed-Ulysses), which trades tokens for heads around the attention, would send 4 D (q, k, v
and the result) and ask n to divide the heads; keeping shares of the frames instead moves the same 2 D around
temporal attention but idles ranks when clips have fewer frames than a group has ranks.

Frames and places are filled with zeros to equal shares; what the filling yields is cut off again and has no gradient.

The work is done by hooks on a finished network. Each rank computes the gradient of its own tokens, the group's sum
is the whole: the output's gradient is multiplied by n so that a mean over all ranks, as data parallelism takes it, is
that sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.stdit2 import STDiT2


def share_tokens(network: STDiT2, group: dist.ProcessGroup) -> None:
    """Let the ranks of `group` share the tokens of every input; all must call the network with the same one.

    With recomputed activations, the backward pass of an input must come before the forward pass of the next.
    """
    shares = _TokenShares(group)
    network.blocks[0].register_forward_pre_hook(shares.take)
    for block in network.blocks:
        spatial: nn.Module = block.get_submodule("attn")
        spatial.register_forward_pre_hook(shares.to_frames)
        spatial.register_forward_hook(shares.to_places)
    network.final_layer.register_forward_hook(shares.gather)


class _TokenShares:
    """The hooks, and the sizes of the input that is passing through.

    Shapes: n ranks, P = ceil(S / n) places and Q = ceil(B T / n) frames on each.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._num_ranks, self._rank = group, dist.get_world_size(group), dist.get_rank(group)
        self._num_places = 0
        self._clips = (0, 0)

    def take(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before the first block: all tokens (B, T, S, D) to this rank's (B, T, P, D)."""
        tokens, *rest = args
        self._num_places = tokens.shape[2]
        filled = _fill(tokens, 2, self._num_ranks)
        return filled.chunk(self._num_ranks, 2)[self._rank].contiguous(), *rest

    def to_frames(self, attention: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Before spatial attention: (B, T, P, D) to whole frames (1, Q, S, D)."""
        tokens, *rest = args
        self._clips = tokens.shape[:2]
        if torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))  # what the projection does anyway
        frames = _fill(tokens.flatten(0, 1), 0, self._num_ranks)
        parts = _Exchange.apply(frames.unflatten(0, (self._num_ranks, -1)), self._group)
        whole = parts.permute(1, 0, 2, 3).flatten(1, 2)[:, : self._num_places]
        return whole[None], *rest

    def to_places(self, attention: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """After spatial attention: (1, Q, S, D) back to (B, T, P, D)."""
        places = _fill(output[0], 1, self._num_ranks)
        parts = places.unflatten(1, (self._num_ranks, -1)).permute(1, 0, 2, 3)
        batch, frames = self._clips
        share: Tensor = _Exchange.apply(parts, self._group)
        return share.flatten(0, 1)[: batch * frames].view(batch, frames, *share.shape[2:])

    def gather(self, layer: nn.Module, args: tuple[Any, ...], patches: Tensor) -> Tensor:
        """After the final layer: (B, T, P, C) of each rank to (B, T, S, C) on all."""
        whole: Tensor = _Gather.apply(patches, self._group)
        return whole[:, :, : self._num_places]


def _fill(x: Tensor, axis: int, parts: int) -> Tensor:
    """`x` with zeros at the end of an axis, so that it splits into equal parts."""
    missing = -x.shape[axis] % parts
    return F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, missing)) if missing else x


class _Exchange(torch.autograd.Function):
    """Row i of `x` (n, ...) to rank i; row i of the result comes from rank i. Its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received


class _Gather(torch.autograd.Function):
    """Join the ranks' (B, T, P, C) along the places; the gradient is this rank's part, times the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        num_ranks = dist.get_world_size(ctx.group)
        return gradients[0].chunk(num_ranks, 2)[dist.get_rank(ctx.group)] * num_ranks, None
