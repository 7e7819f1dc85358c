"""Whole-number geometry: golden numbers and the operation count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model.config import STDiT2Config
from model.geometry import (
    forward_flops,
    frame_indices,
    latent_size,
    num_tokens,
    resize_crop_geometry,
    token_grid,
)
from model.stdit2 import STDiT2

INTERVAL_3_OF_16 = [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47]


def test_240p_grid() -> None:
    assert latent_size(16, 240, 426) == (16, 30, 53)
    assert token_grid(16, 30, 53) == (16, 15, 27)
    assert num_tokens(16, 240, 426) == 16 * 15 * 27
    assert num_tokens(16, 256, 256, stride=(4, 8, 8)) == 4 * 16 * 16


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((720, 1280), (240, 426), (240, 427, 0, 0)),
        ((1080, 1920), (392, 1046), (588, 1046, 98, 0)),
        ((480, 854), (320, 320), (320, 569, 0, 124)),
        ((240, 426), (262, 393), (262, 465, 0, 36)),
    ],
)
def test_resize_crop_golden_numbers(
    source: tuple[int, int], target: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert resize_crop_geometry(*source, *target) == expected


def test_images_round_the_crop_half_to_even() -> None:
    assert resize_crop_geometry(103, 100, 100, 100).top == 1
    assert resize_crop_geometry(103, 100, 100, 100, is_image=True).top == 2


@given(*[st.integers(8, 4000)] * 4, st.booleans())
def test_crop_lies_within_the_scaled_frame(h0: int, w0: int, h: int, w: int, is_image: bool) -> None:
    geometry = resize_crop_geometry(h0, w0, h, w, is_image=is_image)
    assert 0 <= geometry.top and geometry.top + h <= geometry.scaled_height
    assert 0 <= geometry.left and geometry.left + w <= geometry.scaled_width
    assert geometry.scaled_height == h or geometry.scaled_width == w


def test_resize_rejects_empty_frames() -> None:
    with pytest.raises(ValueError, match="every side must be positive"):
        resize_crop_geometry(0, 10, 8, 8)


def test_frame_indices_golden_numbers() -> None:
    assert frame_indices(0, 48, 16) == INTERVAL_3_OF_16
    assert frame_indices(100, 148, 16) == [100 + index for index in INTERVAL_3_OF_16]
    thirty_two = frame_indices(0, 96, 32)
    assert thirty_two[15:18] == [45, 49, 52] and thirty_two[-2:] == [91, 95]
    assert frame_indices(5, 6, 1) == [5]
    with pytest.raises(ValueError, match="cannot take 4 frames"):
        frame_indices(3, 3, 4)


@given(st.integers(0, 1000), st.integers(1, 600), st.integers(1, 128))
def test_frame_indices_are_sorted_and_inside_the_window(start: int, length: int, num_frames: int) -> None:
    indices = frame_indices(start, start + length, num_frames)
    assert len(indices) == num_frames and indices == sorted(indices)
    assert indices[0] == start and indices[-1] < start + length


@pytest.mark.parametrize("num_frames", [1, 6])
def test_flops_equal_what_torch_counts(num_frames: int) -> None:
    config = STDiT2Config(hidden_size=48, depth=2, num_heads=2, caption_channels=16, model_max_length=7, qk_norm=True)
    meta = {name: torch.ones(1) for name in ("num_frames", "height", "width", "ar", "fps")}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        STDiT2(config)(torch.zeros(1, 4, num_frames, 9, 6), torch.zeros(1), torch.zeros(1, 1, 7, 16), **meta)
    assert forward_flops(config, num_frames, 72, 48, text_tokens=7) == counter.get_total_flops()
