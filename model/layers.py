"""Layers of the ST-DiT-2 network around its attention: embedders, MLP, modulation, final layer.

Shapes: B batch, T frames, S tokens per frame, D width, H' x W' token rows and columns of a frame.
Formulas follow Open-Sora 1.1 (ST-DiT-2).
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cpu_kernels import multiply_add

LAYER_NORM_EPS = 1e-6


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``, no learned affine; `x` (..., D), the others broadcast to it."""
    normalised = F.layer_norm(x, (x.shape[-1],), eps=LAYER_NORM_EPS)
    return multiply_add(shift, 1 + scale, normalised)


def sinusoidal_embedding(values: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """``[cos(s f_0 ..), sin(s f_0 ..)]`` with ``f_k = max_period ** (-k / (dim // 2))``.

    Args:
        values: (N,) numbers of any type.
        dim: features per number; an odd one ends in a zero.

    Returns:
        (N, dim) float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) * (-math.log(max_period) / half)
    angles = values.float()[:, None] * exponents.exp()
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, 1)) if dim % 2 else embedding


class TimestepEmbedder(nn.Module):
    """Embeds one number per row: sinusoids, then Linear, SiLU, Linear.

    Args:
        hidden_size: width of the result.
        frequency_embedding_size: number of sinusoids.
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, values: Tensor) -> Tensor:
        """Embed `values` (N,); returns (N, hidden_size) in the type of the weights."""
        return self.embed_features(sinusoidal_embedding(values, self.frequency_embedding_size))

    def embed_features(self, features: Tensor) -> Tensor:
        """Embed sinusoids computed elsewhere, (N, frequency_embedding_size) to (N, hidden_size)."""
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class SizeEmbedder(TimestepEmbedder):
    """Embeds several numbers per row with the same weights and joins the results."""

    def forward(self, values: Tensor, batch_size: int | None = None) -> Tensor:
        """Embed `values` (N,) or (N, n).

        Args:
            batch_size: rows of the result; fewer rows in `values` are tiled.

        Returns:
            (batch_size, n * hidden_size).
        """
        if values.ndim == 1:
            values = values[:, None]
        if batch_size is not None:
            values = tile_batch(values, batch_size)
        return super().forward(values.flatten()).view(values.shape[0], -1)


def tile_batch(values: Tensor, batch_size: int) -> Tensor:
    """Repeat rows `values` (B / k, ...) k times along the first axis, as guidance batches need.

    Raises:
        ValueError: if `batch_size` is no multiple of the rows.
    """
    rows = values.shape[0]
    if rows == batch_size:
        return values
    if batch_size % rows:
        raise ValueError(f"cannot tile {rows} rows to a batch of {batch_size}; give {batch_size} or a divisor of it")
    return values.repeat(batch_size // rows, *[1] * (values.ndim - 1))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), Linear.

    Args:
        in_features, hidden_features, out_features: widths.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., in_features) to (..., out_features)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class CaptionEmbedder(nn.Module):
    """Projects text features to the width of the network and holds the null text.

    Args:
        in_channels: width of the text encoder's features.
        hidden_size: width of the network.
        token_num: tokens of the null text.
    """

    y_embedding: Tensor

    def __init__(self, in_channels: int, hidden_size: int, token_num: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", torch.zeros(token_num, in_channels))

    def replace_dropped(self, y: Tensor, drop: Tensor | None) -> Tensor:
        """Replace the text of dropped samples by the null text.

        Args:
            y: (B, 1, M, in_channels), M at most `token_num`.
            drop: (B,), True or 1 where the null text takes the place, or None.
        """
        if drop is None:
            return y
        null_text = self.y_embedding[: y.shape[-2]].to(y.dtype)
        return torch.where(drop.bool()[:, None, None, None], null_text, y)

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """Project `y` (B, 1, M, in_channels), after `replace_dropped`, to (B, 1, M, hidden_size)."""
        projected: Tensor = self.y_proj(self.replace_dropped(y, drop))
        return projected


class PatchEmbed3D(nn.Module):
    """Cuts latents into patches and projects them; zero-pads at the end of each axis to whole patches.

    Args:
        patch_size: (time, height, width).
        in_channels: latent channels.
        hidden_size: width of a token.
    """

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `x` (B, C, T, H, W) to tokens (B, T' H' W', hidden_size), frames outermost, then rows."""
        return self.grid(x).flatten(1, 3)

    def grid(self, x: Tensor) -> Tensor:
        """Embed `x` (B, C, T, H, W) to (B, T', H', W', hidden_size)."""
        pt, ph, pw = self.patch_size
        batch, channels, frames, height, width = x.shape
        if frames % pt or height % ph or width % pw:
            x = F.pad(x, (0, -width % pw, 0, -height % ph, 0, -frames % pt))
        patches = x.view(batch, channels, x.shape[2] // pt, pt, x.shape[3] // ph, ph, x.shape[4] // pw, pw)
        # One matrix product instead of the convolution: stride equals kernel, so no patch overlaps another.
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PositionEmbedding2D(nn.Module):
    """Absolute sine-cosine table of token places, not learned and not stored.

    The first half of the channels carries the column, the second half the row; each half is sines, then
    cosines.

    Args:
        dim: channels, divisible by 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self,
        height: int,
        width: int,
        scale: float = 1.0,
        base_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        frequency_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The table for `height` x `width` tokens.

        Args:
            scale: pixels per reference pixel, ``sqrt(height_px * width_px) / input_sq_size``.
            base_size: tokens a side is stretched to, ``round(sqrt(height * width))``; None leaves it.
            dtype: type of the result.
            frequency_dtype: type the frequencies are rounded to, `dtype` when None; coordinates stay float32.

        Returns:
            (1, height * width, dim), rows outermost.
        """
        arguments = (self.dim, height, width, scale, base_size, torch.device(device or "cpu"))
        types = (dtype, frequency_dtype or dtype)
        if torch.compiler.is_compiling():
            return _position_table(*arguments, *types)
        with torch.inference_mode(False):  # a cached inference tensor could not be used in training later
            return _cached_position_table(*arguments, *types)


def _position_table(
    dim: int,
    height: int,
    width: int,
    scale: float,
    base_size: int | None,
    device: torch.device,
    dtype: torch.dtype,
    frequency_dtype: torch.dtype,
) -> Tensor:
    half = dim // 2
    frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2, device=device).float() / half)
    frequencies = frequencies.to(frequency_dtype)

    def sines(length: int) -> Tensor:
        places = torch.arange(length, device=device, dtype=torch.float32) / scale
        if base_size is not None:
            places = places * base_size / length
        angles = places[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    columns = sines(width)[None].expand(height, -1, -1)
    rows = sines(height)[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)[None].to(dtype)


_cached_position_table = functools.lru_cache(maxsize=128)(_position_table)


class FinalLayer(nn.Module):
    """Modulates and projects tokens to patches of the output.

    Frames being generated are modulated by the bare timestep embedding. Condition frames are, on top of that,
    normalised and modulated a second time by the embedding of timestep 0 with the size information, as in
    Open-Sora 1.1.

    Args:
        hidden_size: width D.
        patch_volume: latent places per patch.
        out_channels: channels of the output.
    """

    def __init__(self, hidden_size: int, patch_volume: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_volume * out_channels)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden_size))

    def forward(self, x: Tensor, t: Tensor, x_mask: Tensor | None = None, t0: Tensor | None = None) -> Tensor:
        """Project tokens.

        Args:
            x: (B, T, S, D).
            t: (B, D), embedding of the timestep.
            x_mask: (B, T) bool, True = generated; None = all generated.
            t0: (B, D), embedding of timestep 0 plus size information; needed with `x_mask`.

        Returns:
            (B, T, S, patch_volume * out_channels), channels fastest.
        """
        shift, scale = (self.scale_shift_table + t[:, None])[:, :, None, None].unbind(1)
        out = modulated_norm(x, shift, scale)
        if x_mask is not None and t0 is not None:
            shift, scale = (self.scale_shift_table + t0[:, None])[:, :, None, None].unbind(1)
            out = torch.where(x_mask[:, :, None, None], out, modulated_norm(out, shift, scale))
        projected: Tensor = self.linear(out)
        return projected
