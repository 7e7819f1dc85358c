import random

import numpy as np

from components.evaluate import truth
from components.shapes.world import draw_staging, render


def test_true_videos_fulfil_their_prompts_and_backward_ones_do_not():
    rng = random.Random(0)
    for scene in truth.draw_scenes(6, seed=1, moving=True):
        frames = render(scene, draw_staging(rng, moving=True), 8, 64, 64)
        right = truth.verdict_of("image_to_video", frames, scene.caption, {0})
        backwards = truth.verdict_of("image_to_video", frames[::-1], scene.caption, {0})
        assert right == dict.fromkeys(truth.NAMES, True)
        assert not backwards["motion"] and not backwards["all"] and backwards["colour"]


def test_an_extension_is_judged_by_its_new_frames():
    scene = truth.draw_scenes(1, seed=1, moving=True)[0]
    frames = render(scene, draw_staging(random.Random(0), moving=True), 16, 64, 64)
    turned = np.concatenate([frames[:12], frames[10::-1][:2]])
    assert truth.verdict_of("text_to_video", turned, scene.caption, set())["motion"]
    assert not truth.verdict_of("extend_forward", turned, scene.caption, set(range(12)))["motion"]
    assert truth.verdict_of("extend_forward", frames, scene.caption, {0, 1}) == dict.fromkeys(truth.NAMES, True)


def test_what_cannot_be_read_back_is_not_judged():
    scene = truth.draw_scenes(1, seed=1, moving=True)[0]
    frames = render(scene, draw_staging(random.Random(0), moving=True), 8, 64, 64)
    assert truth.verdict_of("text_to_video", frames, "a cat in the rain", set()) == {}
    assert truth.verdict_of("interpolate", frames, scene.caption, {0, 2}) == {}
    assert set(truth.verdict_of("loop", frames, scene.caption, {0, 7})) == {"colour", "shape", "background"}


def test_scenes_are_balanced_and_follow_the_seed():
    scenes = truth.draw_scenes(216, seed=1, moving=True)
    assert len(set(scenes)) == 216
    assert scenes != truth.draw_scenes(216, seed=2, moving=True)
    assert scenes == truth.draw_scenes(216, seed=1, moving=True)
