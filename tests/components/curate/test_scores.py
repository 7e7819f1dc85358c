"""What is measured on pixels: known pictures give known numbers."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components import tables
from components.curate.fingerprint import parse
from components.curate.scores import SCORERS, SCORES, EveryFrame, Look, make_scorers, sizes_of
from components.curate.scores.movement import CameraMotion, Flow, Motion, label_of_clip, label_of_pair
from components.pictures import StillPicture
from components.stacks import PictureStack, stack_of

Pixels = NDArray[np.uint8]


def drifting_texture(step_px: int, num_frames: int = 6, height: int = 128, width: int = 256) -> Pixels:
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (height, width + 200, 3)).astype(np.uint8)
    smooth = np.asarray(cv2.GaussianBlur(wide, (0, 0), 4))
    return np.stack([smooth[:, 100 - index * step_px : 100 - index * step_px + width] for index in range(num_frames)])


def looks(frames: Pixels) -> list[Look]:
    sizes, stack = sizes_of(*frames[0].shape[:2], 256), stacked(frames)
    return [Look(number, stack.pictures[number], sizes, bgr) for number, bgr in enumerate(stack.bgr)]


def stacked(frames: Pixels) -> PictureStack:
    return stack_of([StillPicture(frame) for frame in frames], sizes_of(*frames[0].shape[:2], 256).detection)


def scores(frames: Pixels) -> dict[str, Any]:
    """All scores of one clip."""
    found: dict[str, Any] = {}
    seen = looks(frames)
    for scorer in make_scorers():
        if isinstance(scorer, EveryFrame):
            scorer.add_stack(stacked(frames))
        for place, look in enumerate(seen):
            if scorer.wants(place):
                scorer.add(look, place)
        found |= scorer.summary(0, len(frames), seen[-1])
    return found


@pytest.mark.parametrize("step_px", [0, 1, 3])
def test_motion_is_in_pixels_per_frame(step_px: int) -> None:
    assert scores(drifting_texture(step_px))["motion"] == pytest.approx(step_px, abs=0.15)


def test_motion_does_not_depend_on_the_size_of_the_picture() -> None:
    frames = drifting_texture(4, height=256, width=512)
    half = np.stack([cv2.resize(frame, (256, 128), interpolation=cv2.INTER_AREA) for frame in frames])
    quarter = np.stack([cv2.resize(frame, (128, 64), interpolation=cv2.INTER_AREA) for frame in frames])
    for size in (frames, half, quarter):
        assert scores(size.astype(np.uint8))["motion"] == pytest.approx(2, abs=0.4)


def test_motion_into_the_first_frame_belongs_to_no_clip() -> None:
    still, other = drifting_texture(0, 15), np.flip(drifting_texture(0, 3), axis=2)
    scorer = Motion()
    for place, look in enumerate(looks(np.ascontiguousarray(np.concatenate([still, other])))):
        if scorer.wants(place):
            scorer.add(look, place)
    assert scorer.summary(0, 15, None)["motion"] == pytest.approx(0, abs=0.05)
    assert scorer.summary(15, 18, None)["motion"] == pytest.approx(0, abs=0.05)


def test_a_single_frame_has_no_motion() -> None:
    found = scores(drifting_texture(0, 1))
    assert [found[name] for name in ("motion", "flow", "camera_motion", "frozen_share")] == [None] * 4


def test_flat_pictures() -> None:
    for level, black_share in [(0, 1.0), (20, 1.0), (60, 0.0), (255, 0.0)]:
        flat = scores(np.full((3, 64, 96, 3), level, np.uint8))
        assert flat["brightness"] == pytest.approx(level)
        assert [flat[name] for name in ("contrast", "sharpness", "text_share", "motion", "flow")] == [0] * 5
        assert (flat["black_share"], flat["frozen_share"], flat["letterbox_share"]) == (black_share, 1, 0)


def test_contrast_and_sharpness_of_a_checkerboard() -> None:
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 100
    sharp = scores(np.repeat(board[None, :, :, None], 3, axis=3))
    assert sharp["contrast"] == pytest.approx(50)
    blurred = scores(np.repeat(cv2.GaussianBlur(board, (0, 0), 3)[None, :, :, None], 3, axis=3))
    assert blurred["sharpness"] < sharp["sharpness"] / 20


def test_colours_of_equal_lightness_are_contrast() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (132, 132, 132), (220, 80, 205)
    assert scores(picture[None])["contrast"] > 20


def test_a_dark_picture_with_a_small_light_is_not_black() -> None:
    night = np.full((1, 96, 168, 3), 10, np.uint8)
    assert scores(night)["black_share"] == 1
    night[:, 40:56, 80:96] = 230
    assert scores(night)["black_share"] == 0


def test_text_counts_where_it_stays() -> None:
    frames = np.full((30, 96, 128, 3), 90, np.uint8)
    for frame in frames:
        cv2.putText(frame, "SUBSCRIBE", (5, 50), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    assert scores(frames)["text_share"] > 0.05
    frames[15:] = 90
    assert scores(frames)["text_share"] > 0.05
    frames[5:] = 90
    assert scores(frames)["text_share"] == 0


def test_the_fingerprint_holds_the_mean_of_each_eighth() -> None:
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in range(0, 240, 20)])
    (windows,) = parse([scores(frames)["phash"]])
    # 12 frames: one and a half in each eighth
    assert windows[:, 0].tolist() == [7, 33, 67, 93, 127, 153, 187, 213]
    (picture,) = parse([scores(frames[5:6])["phash"]])
    assert (picture == 100).all()


@pytest.mark.parametrize(
    ("source", "analysis", "text"),
    [
        ((720, 1280), (144, 256), (216, 384)),
        ((1280, 720), (256, 144), (384, 216)),
        ((96, 128), (96, 128), (96, 128)),
        ((1, 9000), (1, 256), (1, 384)),
    ],
)
def test_sizes(source: tuple[int, int], analysis: tuple[int, int], text: tuple[int, int]) -> None:
    sizes = sizes_of(*source, 256)
    assert (sizes.analysis, sizes.text) == (analysis, text)


@pytest.mark.parametrize("shape", [(1, 1), (1, 600), (5, 4), (13, 700)])
def test_odd_sizes_are_measured(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape, 3)).astype(np.uint8)
    assert scores(frames)["contrast"] >= 0


def test_flow_is_in_pixels_of_320_x_576() -> None:
    # 2 px a frame to the left: 20 px in ten frames, of 256 in width; nothing down.
    assert scores(drifting_texture(2, 31))["flow"] == pytest.approx(20 * 576 / 256 / 2, rel=0.15)


def test_flow_of_a_short_clip_ends_with_its_last_frame() -> None:
    whole, short = scores(drifting_texture(2, 31))["flow"], scores(drifting_texture(2, 11))["flow"]
    assert short == pytest.approx(whole / 3, rel=0.1)
    assert scores(drifting_texture(2, 16))["flow"] == pytest.approx(whole / 2, rel=0.1)


def test_flow_does_not_depend_on_which_way_up_a_picture_is() -> None:
    frames = drifting_texture(2, 31)
    turned = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
    assert scores(turned)["flow"] == pytest.approx(scores(frames)["flow"], rel=0.15)


def zoomed(factor: float, num_frames: int) -> Pixels:
    """A texture that grows by a factor every frame."""
    texture = drifting_texture(0, 1, 256, 512)[0]
    centre = (256.0, 128.0)
    matrices = [cv2.getRotationMatrix2D(centre, 0, factor**index) for index in range(num_frames)]
    return np.stack([cv2.warpAffine(texture, matrix, (512, 256), borderMode=cv2.BORDER_REFLECT) for matrix in matrices])


@pytest.mark.parametrize(
    ("frames", "label"),
    [
        (drifting_texture(0, 31), "static"),
        (drifting_texture(1, 31), "pan left"),
        (drifting_texture(-1, 31), "pan right"),
        (np.ascontiguousarray(drifting_texture(1, 31, 200, 200).transpose(0, 2, 1, 3)), "tilt up"),
        (np.ascontiguousarray(drifting_texture(-1, 31, 200, 200).transpose(0, 2, 1, 3)), "tilt down"),
        (zoomed(1.006, 31), "zoom in"),
        (zoomed(1 / 1.006, 31), "zoom out"),
        (drifting_texture(0, 15), "pan/tilt"),
    ],
)
def test_camera_motion(frames: Pixels, label: str) -> None:
    # What is seen drifts to the right when the camera turns to the left.
    assert scores(frames)["camera_motion"] == label


def test_the_label_of_a_clip() -> None:
    assert label_of_clip(["static", "static", "zoom in"]) == "static"
    assert label_of_clip(["static", "pan left"]) == "unknown"
    assert label_of_clip(["pan left", "tilt up"]) == "pan/tilt"
    assert label_of_clip(["pan left", "zoom in"]) == "dynamic"
    assert label_of_clip([]) == "pan/tilt"


def test_a_pair_is_judged_in_pixels_of_the_whole_picture() -> None:
    size = (720, 1280)
    assert label_of_pair(np.full((36, 64, 2), (0.9, 0.0)), size) == "static"
    assert label_of_pair(np.full((36, 64, 2), (2.0, 0.0)), size) == "pan left"
    drifting = np.stack([cv2.resize(frame, size[::-1]) for frame in drifting_texture(1, 16, 144, 256)])
    found = CameraMotion()
    for look in looks(drifting[::15]):
        found.add(look, 15 * look.number)
    assert found.summary(0, 2, None)["camera_motion"] == "pan left"


def test_frozen_frames() -> None:
    moving = drifting_texture(2, 11)
    assert scores(moving)["frozen_share"] == 0
    assert scores(np.concatenate([moving[:6], np.repeat(moving[5:6], 5, axis=0)]))["frozen_share"] == 0.5


@pytest.mark.parametrize(("bars", "share"), [((16, 16, 0, 0), 0.25), ((0, 0, 32, 32), 0.25), ((0, 0, 0, 0), 0.0)])
def test_letterbox(bars: tuple[int, int, int, int], share: float) -> None:
    frames = np.maximum(drifting_texture(2, 12), 40)
    top, bottom, left, right = bars
    height, width = frames.shape[1:3]
    frames[:, :top] = frames[:, height - bottom :] = 0
    frames[:, :, :left] = frames[:, :, width - right :] = 0
    assert scores(frames)["letterbox_share"] == pytest.approx(share)
    frames[0] = 0
    assert scores(frames)["letterbox_share"] == pytest.approx(share)


def test_every_score_is_described_and_has_its_column() -> None:
    names = [info.name for scorer in SCORERS for info in scorer.columns]
    assert sorted(names) == sorted(scores(drifting_texture(1, 3)))
    assert set(names) < set(SCORES) < set(tables.CLIPS)
    assert all(info.version and info.meaning.endswith(".") for info in SCORES.values())


def test_what_is_done_is_forgotten() -> None:
    scorer = Flow()
    for place, look in enumerate(looks(drifting_texture(2, 31))):
        if scorer.wants(place):
            scorer.add(look, place)
    scorer.forget(31)
    assert not scorer.samples.within(0, 31)
