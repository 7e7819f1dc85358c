import random

import numpy as np

from components.evaluate import truth
from components.evaluate.pictures import Sample
from components.shapes.measure import psnr, score
from components.shapes.world import draw_staging, render


def judged(scene, frames) -> Sample:
    return Sample("image-to-video", scene.caption, frames, 0, frames[0], score(frames, scene.caption))


def test_true_videos_score_one_and_wrong_ones_zero():
    scenes = truth.draw_scenes(12, seed=1, moving=True)
    rng = random.Random(0)
    videos = [render(scene, draw_staging(rng, moving=True), 8, 64, 64) for scene in scenes]
    right = truth.summarise([judged(scene, frames) for scene, frames in zip(scenes, videos)])
    backwards = truth.summarise([judged(scene, frames[::-1]) for scene, frames in zip(scenes, videos)])
    assert right["image-to-video"] == {"n": 12, "colour": 1, "shape": 1, "motion": 1, "background": 1, "all": 1}
    assert backwards["image-to-video"]["motion"] == 0
    assert backwards["image-to-video"]["colour"] == 1


def test_scenes_are_balanced_and_follow_the_seed():
    scenes = truth.draw_scenes(216, seed=1, moving=True)
    assert len(set(scenes)) == 216
    assert scenes != truth.draw_scenes(216, seed=2, moving=True)
    assert scenes == truth.draw_scenes(216, seed=1, moving=True)


def test_first_frames_are_compared_with_what_the_autoencoder_makes_of_them():
    scenes = truth.draw_scenes(3, seed=1, moving=True)
    given = truth.first_frames(scenes, 1, 8, 32, 32)
    worse = np.clip(given.astype(int) + 8, 0, 255).astype(np.uint8)
    samples = [Sample("image-to-video", "", again[None], 0, reference) for again, reference in zip(worse, given)]
    found = truth.first_frame_fidelity(samples, worse)
    assert found["n"] == 3
    assert found["psnr_db"] == found["autoencoder_psnr_db"] == np.mean([psnr(a, b) for a, b in zip(worse, given)])
