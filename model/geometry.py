"""Whole-number geometry shared by bucketing, training and sampling; importing this needs no torch.

Sizes are (num_frames, height, width). Pixels become latents by the autoencoder's stride, latents become
tokens by the network's patch.
"""

from typing import NamedTuple

import numpy as np

from model.config import STDiT2Config

VAE_STRIDE = (1, 8, 8)
PATCH_SIZE = (1, 2, 2)
TIMESTEP_FEATURES = 256


class ResizeCrop(NamedTuple):
    """Resize to (scaled_height, scaled_width), then cut the target at (top, left); all in pixels."""

    scaled_height: int
    scaled_width: int
    top: int
    left: int


def latent_size(
    num_frames: int, height: int, width: int, stride: tuple[int, int, int] = VAE_STRIDE
) -> tuple[int, int, int]:
    """Latent (num_frames, height, width) of a clip in pixels: each divided by the stride, rounded down."""
    return num_frames // stride[0], height // stride[1], width // stride[2]


def token_grid(
    num_frames: int, height: int, width: int, patch_size: tuple[int, int, int] = PATCH_SIZE
) -> tuple[int, int, int]:
    """Tokens (frames, rows, columns) of a **latent** of the given size, padded up to whole patches."""
    return -(-num_frames // patch_size[0]), -(-height // patch_size[1]), -(-width // patch_size[2])


def num_tokens(
    num_frames: int,
    height: int,
    width: int,
    stride: tuple[int, int, int] = VAE_STRIDE,
    patch_size: tuple[int, int, int] = PATCH_SIZE,
) -> int:
    """Tokens of a clip whose size is given in **pixels**."""
    frames, rows, columns = token_grid(*latent_size(num_frames, height, width, stride), patch_size)
    return frames * rows * columns


def resize_crop_geometry(
    source_height: int, source_width: int, height: int, width: int, *, is_image: bool = False
) -> ResizeCrop:
    """Scale to cover (height, width) keeping the aspect ratio, then crop the centre (Open-Sora 1.1 loading).

    Args:
        source_height, source_width: size of the decoded frame in pixels.
        height, width: target size in pixels.
        is_image: still images round the crop offset half to even, videos round it down.

    Raises:
        ValueError: if a size is not positive.
    """
    if min(source_height, source_width, height, width) <= 0:
        raise ValueError(
            f"cannot resize {source_height}x{source_width} to {height}x{width}: every side must be positive"
        )
    vertical, horizontal = height / source_height, width / source_width
    if vertical > horizontal:
        scaled_height, scaled_width = height, round(source_width * vertical)
    else:
        scaled_height, scaled_width = round(source_height * horizontal), width
    extra_height, extra_width = scaled_height - height, scaled_width - width
    if is_image:
        return ResizeCrop(scaled_height, scaled_width, round(extra_height / 2), round(extra_width / 2))
    return ResizeCrop(scaled_height, scaled_width, extra_height // 2, extra_width // 2)


def frame_indices(start: int, end: int, num_frames: int) -> list[int]:
    """Source frames of a training window [start, end): whole parts of an even spread (Open-Sora 1.1 loading).

    The spread runs from the first to the last frame of the window, so the step is not exactly constant:
    16 frames of a 48-frame window are 0, 3, ..., 21, 25, ..., 43, 47.

    Raises:
        ValueError: if the window is empty or no frame is asked for.
    """
    if end <= start or num_frames <= 0:
        raise ValueError(f"cannot take {num_frames} frames from the window [{start}, {end})")
    return [int(index) for index in np.linspace(start, end - 1, num_frames, dtype=np.int64)]


def forward_flops(
    config: STDiT2Config,
    num_frames: int,
    height: int,
    width: int,
    text_tokens: int,
    stride: tuple[int, int, int] = VAE_STRIDE,
) -> int:
    """Floating-point operations of one forward pass for one sample.

    Matrix products only, 2 operations per multiply-add. Attention's score and value products are counted:
    spatial over the tokens of a frame, temporal over the frames, cross over the caption. A backward pass
    costs twice as much again.

    Args:
        num_frames, height, width: clip size in pixels.
        text_tokens: tokens of the caption that are attended to.
    """
    frames, rows, columns = token_grid(*latent_size(num_frames, height, width, stride), config.patch_size)
    per_frame = rows * columns
    tokens = frames * per_frame
    d = config.hidden_size
    patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    self_attentions = 2 * tokens * 4 * d * d + 2 * tokens * d * (per_frame + frames)
    if frames == 1:  # a softmax over one frame is 1: only the value and output projections are needed
        self_attentions -= tokens * (2 * d * d + 2 * d)
    cross_attention = tokens * 2 * d * d + text_tokens * 2 * d * d + 2 * tokens * text_tokens * d
    mlp = 2 * tokens * d * int(d * config.mlp_ratio)
    per_block = self_attentions + cross_attention + mlp
    third = d // 3
    embedders = 3 * (TIMESTEP_FEATURES * d + d * d) + 3 * (TIMESTEP_FEATURES * third + third * third)
    text = text_tokens * (config.caption_channels * d + d * d)
    ends = tokens * patch_volume * d * (config.in_channels + config.out_channels)
    return 2 * (config.depth * per_block + embedders + 9 * d * d + text + ends)
