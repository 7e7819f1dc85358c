"""Attention of the ST-DiT-2 network: self-attention and cross-attention.

Shapes: B batch, T frames, S tokens per frame, D width, H heads, d = D / H, N sequences of L tokens.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

from model.cpu_kernels import FRAME_ORDER, TOKEN_ORDER, SplitHeads
from model.kernels import attention, packed_attention


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x**2) + eps)`` over the last axis; the statistic is in float32.

    Args:
        dim: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., dim); the result is cast to the type of `x` before the weight multiplies it."""
        return rms_normalise(x, self.eps) * self.weight.to(x.dtype)


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """`x` (..., d) over the root of its mean square along the last axis, computed in float32; type of `x`."""
    x32 = x.float()
    inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * inverse).to(x.dtype)


@dataclass(frozen=True)
class RotaryTable:
    """Angles of the rotary embedding for L positions: `cos` and `sin`, each (L, d / 2)."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Turn the channel pairs (0, 1), (2, 3), ... of `x` (..., L, d) by the angle of their position."""
        if x.dtype == self.cos.dtype == torch.float32 and not is_compiling():
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * torch.complex(self.cos, self.sin)).flatten(-2)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * self.cos - odd * self.sin, odd * self.cos + even * self.sin), dim=-1)
        return turned.flatten(-2).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding over frames, all channels of a head turned in interleaved pairs.

    The frequencies ``theta ** (-2k / d)`` are a frozen parameter, stored as ``freqs`` (d / 2). Positions,
    angles, cosines and sines are computed in the type of `freqs`, as in Open-Sora 1.1.

    Args:
        dim: channels d per head, even.
        theta: base of the frequencies.
    """

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.dim = dim
        self.theta = theta
        self.freqs = nn.Parameter(self.frequencies(), requires_grad=False)

    def frequencies(self) -> Tensor:
        """The d / 2 frequencies in float32."""
        return 1.0 / self.theta ** (torch.arange(0, self.dim, 2).float() / self.dim)

    def table(self, length: int) -> RotaryTable:
        """Cosines and sines of positions 0 .. length - 1."""
        positions = torch.arange(length, device=self.freqs.device, dtype=self.freqs.dtype)
        angles = positions[:, None] * self.freqs
        return RotaryTable(angles.cos(), angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Rotate `x` (..., L, d) along its second-to-last axis; same shape and type."""
        return self.table(x.shape[-2]).rotate(x)


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary embedding and q/k RMSNorm, in that order.

    Rotating before normalising is what Open-Sora 1.1 weights were trained with; the order matters because the
    norm has a weight per channel.

    Args:
        dim: width D.
        num_heads: heads H; D / H channels each.
        qk_norm: normalise q and k, with weights shared by all heads.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm: nn.Module = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: RotaryEmbedding | RotaryTable | None = None) -> Tensor:
        """Attend along the second-to-last axis.

        Args:
            x: (N, L, D), or (B, T, S, D) whose every frame attends within its own S tokens.
            rotary: turns q and k by their position along that axis.

        Returns:
            The shape of `x`.
        """
        return self.over_tokens(x, rotary) if x.ndim == 4 else self.over_tokens(x[None], rotary)[0]

    def over_tokens(self, x: Tensor, rotary: RotaryEmbedding | RotaryTable | None = None) -> Tensor:
        """Spatial attention: `x` (B, T, S, D), every frame attends within its own S tokens. Same shape."""
        out = attention(*self._queries_keys_values(x, rotary, over_frames=False), scale=1.0)
        out = out.view(*x.shape[:2], self.num_heads, -1, self.head_dim).transpose(2, 3)
        projected: Tensor = self.proj(out.flatten(3))
        return projected

    def over_frames(self, x: Tensor, rotary: RotaryEmbedding | RotaryTable | None = None) -> Tensor:
        """Temporal attention: `x` (B, T, S, D), every token place attends along its T frames. Same shape."""
        batch, frames, tokens, dim = x.shape
        if frames == 1:
            out = self._values_only(x)
        else:
            out = attention(*self._queries_keys_values(x, rotary, over_frames=True), scale=1.0)
            out = out.view(batch, tokens, self.num_heads, frames, self.head_dim).permute(0, 3, 1, 2, 4)
        projected: Tensor = self.proj(out.reshape(batch, frames, tokens, dim))
        return projected

    def _queries_keys_values(
        self, x: Tensor, rotary: RotaryEmbedding | RotaryTable | None, *, over_frames: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of `x` (B, T, S, D), each (sequences, H, L, d), L the frames or the tokens of a frame."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        table = rotary.table(x.shape[1 if over_frames else 2]) if isinstance(rotary, RotaryEmbedding) else rotary
        q_norm, k_norm = self.q_norm, self.k_norm
        by_hand = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and not is_compiling()
        if by_hand and isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            weight = q_norm.weight * k_norm.weight * self.head_dim**-0.5
            rotation = None if table is None else torch.complex(table.cos, table.sin)
            q, k, v = SplitHeads.apply(qkv, weight, rotation, over_frames, q_norm.eps)
            return q, k, v
        q, k, v = qkv.permute(FRAME_ORDER if over_frames else TOKEN_ORDER).flatten(1, 2).unbind(0)
        if table is not None:
            q, k = table.rotate(q), table.rotate(k)
        return q_norm(q) * self.head_dim**-0.5, k_norm(k), v

    def _values_only(self, x: Tensor) -> Tensor:
        """Self-attention over a single token is its value: the softmax of one score is 1."""
        dim = x.shape[-1]
        bias = self.qkv.bias[2 * dim :]
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm) and torch.is_grad_enabled():
            # Keeps the gradient of the norms at zero instead of absent, which data parallelism requires.
            bias = bias + 0.0 * (self.q_norm.weight.sum() + self.k_norm.weight.sum())
        return F.linear(x, self.qkv.weight[2 * dim :], bias)


@dataclass(frozen=True)
class PaddedText:
    """Text as a rectangle.

    Attributes:
        tokens: (B, M, D).
        bias: (B, 1, 1, M), 0 where a token is attended to and hugely negative elsewhere; None when all are.
        has_tokens: (B, 1, 1, 1), 0 for a sample without any token, else 1; None when all have some.
    """

    tokens: Tensor
    bias: Tensor | None = None
    has_tokens: Tensor | None = None

    @classmethod
    def masked(cls, tokens: Tensor, keep: Tensor) -> Self:
        """Text of which only the tokens with `keep` (B, M) True are attended to."""
        # Not -inf: a row without any token must stay finite.
        bias = torch.zeros_like(keep, dtype=tokens.dtype).masked_fill_(~keep, torch.finfo(tokens.dtype).min)
        return cls(tokens, bias[:, None, None], keep.any(1).to(tokens.dtype)[:, None, None, None])


@dataclass(frozen=True)
class PackedText:
    """Text without padding: the tokens of all samples in a row.

    Attributes:
        tokens: (sum of lengths, D).
        lengths: tokens of each sample.
    """

    tokens: Tensor
    lengths: tuple[int, ...]


class CrossAttention(nn.Module):
    """Multi-head attention of video tokens to their own sample's text tokens; no q/k norm.

    Args:
        dim: width D.
        num_heads: heads H.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: PaddedText | PackedText) -> Tensor:
        """Attend from `x` (B, N, D) to the text of the same sample; returns (B, N, D).

        A sample without text tokens receives zeros before the output projection.
        """
        queries = self.q_linear(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        kv = self.kv_linear(text.tokens).unflatten(-1, (2, self.num_heads, self.head_dim))
        if isinstance(text, PaddedText):
            k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
            if text.has_tokens is not None:
                v = v * text.has_tokens
            out = attention(queries, k, v, text.bias)
        else:
            k, v = kv.unbind(1)
            out = packed_attention(queries, k, v, text.lengths)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(x.shape))
        return projected
