import random

import numpy as np
import pytest

from components.evaluate.measures import LARGEST_DB, closure, decibels, in_between, kept, movement, seam
from components.shapes.measure import psnr
from components.shapes.world import Scene, draw_staging, render

SCENE = Scene("red", "circle", "left", "white")


def clip(num_frames: int = 8, side: int = 64) -> np.ndarray:
    return render(SCENE, draw_staging(random.Random(1), moving=True), num_frames, side, side)


def test_decibels_are_peak_signal_to_noise_and_finite():
    first, last = clip()[0], clip()[-1]
    assert decibels(first, last) == pytest.approx(psnr(first, last))
    assert decibels(first, first) == LARGEST_DB


def test_kept_frames_are_judged_by_the_worst_against_what_the_autoencoder_makes_of_them():
    frames = clip()
    worse = np.clip(frames.astype(int) + 8, 0, 255).astype(np.uint8)
    given, rebuilt = {0: frames[0], 7: frames[7]}, {0: worse[0], 7: worse[7]}
    assert kept(worse, given, rebuilt) == {"frame_kept_db": 0.0, "frame_psnr_db": decibels(worse[0], frames[0])}
    spoilt = worse.copy()
    spoilt[7] = 255 - spoilt[7]
    found = kept(spoilt, given, rebuilt)
    assert found["frame_kept_db"] == decibels(spoilt[7], frames[7]) - decibels(worse[7], frames[7]) < -10


def test_steady_motion_has_no_seam_and_a_jump_has_one():
    frames = clip()
    steady = seam(frames, {0, 1})
    assert steady["continuous"] and steady["seam"] == pytest.approx(1.0, abs=0.15)
    jumped = np.concatenate([frames[:2], frames[6:7], frames[6:7], frames[7:8]])
    assert seam(jumped, {0, 1})["seam"] > 2
    assert not seam(jumped, {0, 1})["continuous"]


def test_a_seam_at_either_end_counts_and_standing_still_is_none():
    frames = clip()
    at_the_end = np.concatenate([frames[:6], frames[:1]])
    assert seam(at_the_end, {0, 6})["seam"] > seam(frames[:7], {0, 6})["seam"] + 1
    still = np.repeat(frames[:1], 8, axis=0)
    assert seam(still, {0, 7}) == {"seam": 1.0, "continuous": True}
    assert seam(frames, {0, 2, 4, 6}) == {}, "no two generated frames in a row, nothing to compare with"


def test_a_loop_is_closed_when_it_ends_where_it_began():
    frames = clip()
    assert closure(np.concatenate([frames, frames[:1]])) == {"closes_db": LARGEST_DB}
    assert closure(frames)["closes_db"] < 20


def test_interpolation_is_measured_against_blending_between_given_frames_only():
    frames, given = clip(), {0, 2, 4, 6}
    spoilt = frames.copy()
    spoilt[7] = 0  # after the last given frame
    perfect = in_between(spoilt, frames, given)
    assert perfect["psnr_db"] == LARGEST_DB and perfect["beats_blending"]
    blended = frames.astype(float)
    blended[1:6:2] = (blended[0:5:2] + blended[2:7:2]) / 2
    simple = in_between(np.rint(blended).astype(np.uint8), frames, given)
    assert simple["over_blending_db"] == 0 and not simple["beats_blending"]
    assert simple["psnr_db"] == simple["blending_psnr_db"] == perfect["blending_psnr_db"] < 30


def test_blending_weighs_by_distance():
    ramp = np.repeat(np.arange(0, 90, 10, dtype=np.uint8)[:, None, None, None], 3, axis=3) * np.ones(
        (1, 8, 8, 1), np.uint8
    )
    found = in_between(ramp, ramp, {0, 3, 8})
    assert found["blending_psnr_db"] == LARGEST_DB


def test_motion_is_what_curation_calls_motion_and_flicker_sees_light_and_not_motion():
    slow, fast = clip(16), clip(16)[::3]
    assert 0 < movement(slow)["motion_magnitude"] < movement(fast)["motion_magnitude"]
    still = np.repeat(clip()[:1], 4, axis=0)
    assert movement(still) == {"motion_magnitude": 0.0, "consistency_db": LARGEST_DB, "flicker": 0.0}
    flashing = still.copy()
    flashing[1::2] = flashing[1::2] // 2 + 60
    assert movement(flashing)["flicker"] > 20 > 1 > movement(slow)["flicker"]
    assert movement(clip()[:1]) == {}


def test_consistency_forgives_motion_and_not_change():
    frames = clip(12)
    changing = frames.copy()
    changing[::2] = np.roll(changing[::2], 1, axis=-1)
    assert movement(frames)["consistency_db"] > movement(changing)["consistency_db"] + 5
