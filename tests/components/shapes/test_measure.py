"""The checker credits what is there, through blur and noise, and nothing that is not."""

import math
import random

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.errors import KinoflowError
from components.shapes.measure import Measurement, measure, psnr, score
from components.shapes.world import BACKGROUNDS, COLOURS, Scene, all_scenes, draw_staging, render

Pixels = NDArray[np.uint8]
SCENE = Scene("red", "circle", "left", "white")


def window(scene: Scene, side_px: int = 48, seed: int = 0) -> Pixels:
    """Eight frames, every second one, from somewhere in a shot, as training sees them."""
    rng = random.Random(f"{scene} {seed}")
    num_frames = rng.randint(20, 28)
    frames = render(scene, draw_staging(rng, moving=scene.motion is not None), num_frames, side_px, side_px)
    start = rng.randint(0, num_frames - 16)
    return frames[start : start + 16 : 2]


def rebuilt(frames: Pixels, blur_px: float, noise: float = 6.0) -> Pixels:
    """What a lossy autoencoder might give back."""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), blur_px) for frame in frames]).astype(float)
    noisy = blurred + np.random.default_rng(0).normal(0, noise, blurred.shape)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)


def share_credited(scenes: list[Scene], side_px: int, blur: bool) -> float:
    credited = []
    for scene in scenes:
        frames = window(scene, side_px)
        if blur:
            frames = rebuilt(frames, side_px / 40)
            assert psnr(frames, window(scene, side_px)) < 33
        credited.append(score(frames, scene.caption)["all"])
    return float(np.mean(credited))


@pytest.mark.parametrize("side_px", [32, 48, 64])
def test_clean_renders_are_credited(side_px: int) -> None:
    assert share_credited(all_scenes(moving=True)[side_px // 16 % 3 :: 3], side_px, blur=False) >= 0.99


@pytest.mark.parametrize("side_px", [32, 48, 64])
def test_blurred_and_noisy_ones_too(side_px: int) -> None:
    assert share_credited(all_scenes(moving=True)[side_px // 16 % 4 :: 4], side_px, blur=True) >= 0.95


def test_stills_are_credited_without_motion() -> None:
    for scene in all_scenes(moving=False)[::3]:
        assert score(window(scene)[:1], scene.caption)["all"]
        assert score(window(scene), scene.caption)["all"]


@pytest.mark.parametrize(
    ("shown", "failing"),
    [
        (Scene("blue", "circle", "left", "white"), {"colour"}),
        (Scene("red", "square", "left", "white"), {"shape"}),
        (Scene("red", "triangle", "left", "white"), {"shape"}),
        (Scene("red", "circle", "right", "white"), {"motion"}),
        (Scene("red", "circle", "up", "white"), {"motion"}),
        (Scene("red", "circle", None, "white"), {"motion"}),
        (Scene("red", "circle", "left", "grey"), {"background"}),
    ],
)
def test_each_wrong_part_is_denied(shown: Scene, failing: set[str]) -> None:
    verdict = score(window(shown), SCENE.caption)
    assert {name for name, fulfilled in verdict.items() if not fulfilled} == failing | {"all"}


def test_a_moving_shape_is_no_still() -> None:
    assert score(window(SCENE), Scene("red", "circle", None, "white").caption)["motion"] is False


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_has_a_background_and_nothing_else(background: str) -> None:
    noise = np.random.default_rng(1).normal(0, 8, (8, 48, 48, 3))
    frames = (np.array(BACKGROUNDS[background]) + noise).clip(0, 255).astype(np.uint8)
    seen = measure(frames)
    assert (seen.colour, seen.shape, seen.motion, seen.background) == (None, None, None, background)
    still = score(frames, f"a red circle on a {background} background")
    assert still == {"colour": False, "shape": False, "motion": False, "background": True, "all": False}


@pytest.mark.parametrize("cells", [3, 5, 8, 48])
def test_noise_is_nothing(cells: int) -> None:
    generator = np.random.default_rng(cells)
    for _ in range(20):
        coarse = generator.integers(0, 256, (8, cells, cells, 3)).astype(np.uint8)
        frames = np.stack([cv2.resize(frame, (48, 48), interpolation=cv2.INTER_LINEAR) for frame in coarse])
        seen = measure(frames)
        assert (seen.colour, seen.shape, seen.motion) == (None, None, None)


def test_unsteady_videos_are_not_credited() -> None:
    frames = window(SCENE)
    order = [3, 7, 0, 5, 1, 6, 2, 4]
    assert measure(frames[order]).motion is None
    assert measure(frames[::-1].copy()).motion == "right"

    missing = frames.copy()
    missing[4:] = BACKGROUNDS["white"]
    assert measure(missing).shape is None

    changing = frames.copy()
    for frame, colour in zip(changing, list(COLOURS.values()) * 2, strict=False):
        frame[frame[..., 1] < 130] = colour
    assert measure(changing).colour is None

    morphing = np.concatenate([frames[:4], window(Scene("red", "square", "left", "white"))[4:]])
    assert measure(morphing).shape is None


def test_other_pictures_are_not_credited() -> None:
    white = np.full((8, 48, 48, 3), 246, np.uint8)
    bar = white.copy()
    bar[:, 20:24, 5:43] = COLOURS["red"]
    assert measure(bar).shape is None
    two = np.minimum(window(SCENE), window(Scene("blue", "square", "up", "white"), seed=2))
    assert not score(two, SCENE.caption)["all"]
    grey = window(SCENE).mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)
    assert measure(grey).colour is None
    ramp = np.linspace(0, 255, 48).astype(np.uint8)[None, :, None, None].repeat(8, 0).repeat(48, 2).repeat(3, 3)
    assert measure(ramp) == Measurement(background_confidence=measure(ramp).background_confidence)


def test_confidences_and_travel_tell_how_clear_it_was() -> None:
    clear, blurred = measure(window(SCENE)), measure(rebuilt(window(SCENE), 2.0))
    assert clear.shape_confidence > blurred.shape_confidence
    assert clear.frames_seen == 1.0
    assert clear.travel[0] < -0.25
    assert abs(clear.travel[1]) < 0.02


def test_captions_and_frames_must_be_of_the_world() -> None:
    with pytest.raises(KinoflowError, match="cannot score 'a dog runs'"):
        score(window(SCENE), "a dog runs")
    with pytest.raises(ValueError, match="must be"):
        measure(window(SCENE).astype(np.float32))  # type: ignore[arg-type]


def test_psnr() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + np.uint8(16)) == pytest.approx(20 * math.log10(255 / 16))
    with pytest.raises(ValueError, match="one shape"):
        psnr(black, black[:1])
