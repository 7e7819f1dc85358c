"""What is measured on pixels: known pictures give known numbers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.curate.fingerprint import parse
from components.curate.scores import FrameScorer, ShotScores, analysis_size

Pixels = NDArray[np.uint8]


def drifting_texture(step_px: int, num_frames: int = 6, height: int = 128, width: int = 256) -> Pixels:
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (height, width + 100, 3)).astype(np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(wide, (0, 0), 4))
    return np.stack([smooth[:, 50 - index * step_px : 50 - index * step_px + width] for index in range(num_frames)])


def scores(frames: Pixels, long_side_px: int = 256) -> ShotScores:
    scorer = FrameScorer(long_side_px)
    for frame in frames:
        scorer.add(frame)
    return scorer.shot(0, len(frames))


@pytest.mark.parametrize("step_px", [0, 1, 3])
def test_motion_is_in_pixels_per_frame(step_px: int) -> None:
    assert scores(drifting_texture(step_px)).motion == pytest.approx(step_px, abs=0.15)


def test_motion_does_not_depend_on_the_size_of_the_picture() -> None:
    frames = drifting_texture(4, height=256, width=512)
    half = np.stack([cv2.resize(frame, (256, 128), interpolation=cv2.INTER_AREA) for frame in frames])
    quarter = np.stack([cv2.resize(frame, (128, 64), interpolation=cv2.INTER_AREA) for frame in frames])
    for size in (frames, half, quarter):
        assert scores(size.astype(np.uint8)).motion == pytest.approx(2, abs=0.3)


def test_motion_into_the_first_frame_belongs_to_no_shot() -> None:
    still, other = drifting_texture(0, 4), np.flip(drifting_texture(0, 4), axis=2)
    scorer = FrameScorer(256)
    for frame in np.concatenate([still, other]):
        scorer.add(np.ascontiguousarray(frame))
    assert scorer.shot(0, 4).motion == pytest.approx(0, abs=0.05)
    assert scorer.shot(4, 8).motion == pytest.approx(0, abs=0.05)
    motion = scorer.shot(0, 8).motion
    assert motion is not None
    assert motion > 0.5


def test_a_single_frame_has_no_motion() -> None:
    assert scores(drifting_texture(0, 1)).motion is None


def test_flat_pictures() -> None:
    for level, black_share in [(0, 1.0), (20, 1.0), (60, 0.0), (255, 0.0)]:
        flat = scores(np.full((3, 64, 96, 3), level, np.uint8))
        assert (flat.brightness, flat.contrast, flat.sharpness) == (level, 0, 0)
        assert (flat.black_share, flat.text_share, flat.motion) == (black_share, 0, 0)


def test_contrast_and_sharpness_of_a_checkerboard() -> None:
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 100
    sharp = scores(np.repeat(board[None, :, :, None], 3, axis=3))
    assert sharp.contrast == pytest.approx(50)
    blurred = scores(np.repeat(cv2.GaussianBlur(board, (0, 0), 3)[None, :, :, None], 3, axis=3))
    assert blurred.sharpness < sharp.sharpness / 20


def test_colours_of_equal_lightness_are_contrast() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (132, 132, 132), (220, 80, 205)
    assert scores(picture[None]).contrast > 20


def test_a_dark_picture_with_a_small_light_is_not_black() -> None:
    night = np.full((1, 96, 168, 3), 10, np.uint8)
    assert scores(night).black_share == 1
    night[:, 40:56, 80:96] = 230
    assert scores(night).black_share == 0


def test_text_counts_where_it_stays() -> None:
    frames = np.full((20, 96, 128, 3), 90, np.uint8)
    for frame in frames[:12]:
        cv2.putText(frame, "SUBSCRIBE", (5, 50), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    assert scores(frames).text_share > 0.05
    assert scores(np.concatenate([frames, frames[12:], frames[12:]])).text_share == 0


def test_the_fingerprint_holds_the_mean_of_each_eighth() -> None:
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in range(0, 240, 20)])
    (windows,) = parse([scores(frames).phash])
    # 12 frames: one and a half in each eighth
    assert windows[:, 0].tolist() == [7, 33, 67, 93, 127, 153, 187, 213]
    (picture,) = parse([scores(frames[5:6]).phash])
    assert (picture == 100).all()


@pytest.mark.parametrize(
    ("source", "size"),
    [((720, 1280), (288, 512)), ((1280, 720), (512, 288)), ((96, 128), (96, 128)), ((1, 9000), (1, 512))],
)
def test_analysis_size(source: tuple[int, int], size: tuple[int, int]) -> None:
    assert analysis_size(*source, 256) == size


@pytest.mark.parametrize("shape", [(1, 1), (1, 600), (5, 4), (13, 700)])
def test_odd_sizes_are_measured(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape, 3)).astype(np.uint8)
    assert scores(frames).contrast >= 0
