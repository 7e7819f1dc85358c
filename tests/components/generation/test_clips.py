from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components import video
from components.config import SamplingConfig
from components.errors import KinoflowError
from components.generation import Bundle, Request, generate, to_frames, to_pixels
from model.diffusion_config import FlowConfig, IDDPMConfig
from tests.components.generation.scenes import SCENE, picture

SAMPLING = SamplingConfig(num_inference_steps=3, guidance_scale=3.0)
SOLVER = SAMPLING.model_copy(update={"method": "dpm-solver++"})
HOW = pytest.mark.parametrize(
    ("diffusion", "sampling"),
    [(FlowConfig(), SAMPLING), (IDDPMConfig(), SAMPLING), (IDDPMConfig(), SOLVER)],
    ids=["flow", "iddpm", "dpm-solver"],
)


def run(bundle: Bundle, requests: list[Request], **changes) -> list[np.ndarray]:
    values = {"num_frames": 4, "height": 32, "width": 32, "sampling": SAMPLING} | changes
    return generate(bundle, requests, **values)


def test_clips_have_the_size_that_was_asked_for(bundle):
    clips = run(bundle, [Request("a red circle", 1), Request("a blue square", 2)], width=48)
    assert [clip.shape for clip in clips] == [(4, 32, 48, 3)] * 2
    assert all(clip.dtype == np.uint8 for clip in clips)


@HOW
def test_a_sample_depends_on_its_seed_and_not_on_its_batch(bundle, diffusion, sampling):
    changed = replace(bundle, diffusion=diffusion)
    requests = [Request("a red circle", seed) for seed in (5, 6, 7)]
    together = run(changed, requests, batch_size=3, sampling=sampling)
    apart = run(changed, requests, batch_size=1, sampling=sampling)
    for one, other in zip(together, apart):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert not np.array_equal(together[0], together[1])


@HOW
def test_a_given_first_frame_comes_back_as_the_autoencoder_has_it(bundle, diffusion, sampling):
    reference = picture()
    request = Request(SCENE.caption, 1, references=(reference,), mask_strategy="0")
    clip = run(replace(bundle, diffusion=diffusion), [request], sampling=sampling)[0]
    rebuilt = to_frames(bundle.autoencoder.decode(bundle.autoencoder.encode(to_pixels(reference)[None])))[0]
    assert np.array_equal(clip[0], rebuilt[0])
    assert not np.array_equal(clip[1], rebuilt[0])


def test_one_frame_is_a_still_and_is_told_so(bundle):
    assert run(bundle, [Request("a red circle", 1)], num_frames=1)[0].shape == (1, 32, 32, 3)


def test_a_flow_is_not_sampled_by_another_solver(bundle):
    with pytest.raises(KinoflowError, match="trained as a flow; choose the method own"):
        run(bundle, [Request("a red circle", 1)], sampling=SOLVER)


def test_any_size_comes_out_as_it_was_asked_for(bundle):
    request = Request(SCENE.caption, 1, references=(picture(),), mask_strategy="0")
    assert run(bundle, [request], height=30, width=45)[0].shape == (4, 30, 45, 3)


def test_a_reference_of_another_size_is_fitted(bundle, tmp_path: Path):
    large = np.repeat(np.repeat(picture(), 3, axis=1), 2, axis=2)
    path = tmp_path / "first.png"
    video.write_image(path, large[0])
    frames = np.stack(list(video.decode_frames(path)))
    clip = run(bundle, [Request(SCENE.caption, 1, references=(frames,), mask_strategy="0")])[0]
    assert clip.shape == (4, 32, 32, 3)


def test_pixels_and_frames_are_inverse():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_frames(to_pixels(frames)[None])[0], frames)
