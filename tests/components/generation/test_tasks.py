"""Every worked example of Open-Sora 1.1's mask strategies: which frames come back as they were given."""

import numpy as np
import pytest

from components.config import SamplingConfig
from components.errors import KinoflowError
from components.generation import Bundle, draw, to_frames, to_pixels
from components.generation.settings import GenerationConfig
from components.generation.tasks import TASKS, arrange
from tests.components.generation.scenes import SCENE, clip, picture

SAMPLING = SamplingConfig(num_inference_steps=2, guidance_scale=1)
A, B, VIDEO = picture(1), picture(2), clip(40)
T = 32
# strategy, references, {frame of the clip: (reference, its frame)} that is kept
EXAMPLES = {
    "image to video": ("0", [A], {0: (0, 0)}),
    "image at the end": ("0,0,0,-1,1", [A], {31: (0, 0)}),
    "loop": ("0,0,0,0,1;0,0,0,-1,1", [A], {0: (0, 0), 31: (0, 0)}),
    "connect two images": ("0;0,1,0,-1,1", [A, B], {0: (0, 0), 31: (1, 0)}),
    "connect head and tail": (
        "0,2,0,0,8;0,2,-8,-8,8", [A, B, VIDEO],
        {i: (2, i) for i in range(8)} | {24 + i: (2, 32 + i) for i in range(8)},
    ),
    "extend forward": ("0,0,-8,0,8", [VIDEO], {i: (0, 32 + i) for i in range(8)}),
    "video extending": ("0,0,0,-8,8", [VIDEO], {24 + i: (0, i) for i in range(8)}),
    "first N frames": ("0,0,0,0,16", [VIDEO], {i: (0, i) for i in range(16)}),
    "interpolation": ("0,0,0,0,1;0,1,0,2,1;0,2,0,4,1", [A, B, A], {0: (0, 0), 2: (1, 0), 4: (2, 0)}),
    "prediction of next frame": ("0,0,0,0,31", [VIDEO], {i: (0, i) for i in range(31)}),
}  # fmt: skip


def rebuilt(bundle: Bundle, frames: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of frames: the best that a kept frame can be."""
    return to_frames(bundle.autoencoder.decode(bundle.autoencoder.encode(to_pixels(frames)[None])))[0]


def made(bundle: Bundle, strategy: str | None, references: list[np.ndarray], **changes) -> np.ndarray:
    values = {"num_frames": T, "height": 32, "width": 32, "mask_strategy": strategy, "sampling": SAMPLING} | changes
    return draw(bundle, SCENE.caption, references, GenerationConfig(**values)).frames


@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_examples_keep_their_frames(bundle: Bundle, name: str) -> None:
    strategy, references, kept = EXAMPLES[name]
    frames = made(bundle, strategy, references)
    given = [rebuilt(bundle, reference) for reference in references]
    assert frames.shape == (T, 32, 32, 3)
    for place in range(T):
        if place in kept:
            reference, index = kept[place]
            assert np.array_equal(frames[place], given[reference][index]), place
        else:
            assert not any(np.array_equal(frames[place], frame) for own in given for frame in own), place


@pytest.mark.parametrize(("strategy", "edited"), [("0,0,0,0,32,0.4", 32), ("0,0,0,0,8,0.3", 8)])
def test_worked_examples_of_editing_stay_near_the_video(bundle: Bundle, strategy: str, edited: int) -> None:
    sampling = SAMPLING.model_copy(update={"num_inference_steps": 10})
    frames = made(bundle, strategy, [VIDEO], sampling=sampling).astype(float)
    free = made(bundle, None, [], sampling=sampling).astype(float)
    video = rebuilt(bundle, VIDEO[:edited]).astype(float)
    assert not np.array_equal(frames[:edited], video)
    assert np.abs(frames[:edited] - video).mean() < 0.7 * np.abs(free[:edited] - video).mean()


@pytest.mark.parametrize(
    ("task", "references", "changes", "strategy"),
    [
        ("text_to_video", [], {}, None),
        ("image_to_video", [A], {}, "0,0,0,0,1"),
        ("image_to_video", [A], {"reference_at": "end"}, "0,0,0,-1,1"),
        ("image_to_video", [A, B], {"loops": 3}, "0,0,0,0,1;2,1,0,-1,1"),
        ("loop", [A], {}, "0,0,0,0,1;0,0,0,-1,1"),
        ("extend_forward", [VIDEO], {}, "0,0,-8,0,8"),
        ("extend_forward", [VIDEO[:3]], {}, "0,0,-3,0,3"),
        ("extend_backward", [VIDEO], {}, "0,0,0,-8,8"),
        ("connect", [A, VIDEO], {}, "0,0,-1,0,1;0,1,0,-8,8"),
        ("edit", [VIDEO], {}, "0,0,0,0,32,0.4"),
        ("edit", [VIDEO], {"loops": 2, "edit_ratio": 0.25}, "0,0,0,0,32,0.25;1,0,24,0,16,0.25"),
        ("interpolate", [A, B, A], {"num_frames": 5}, "0,0,0,0,1;0,1,0,2,1;0,2,0,4,1"),
        ("interpolate", [VIDEO[:4]], {"num_frames": 8}, "0,0,0,0,1;0,0,1,2,1;0,0,2,4,1;0,0,3,6,1"),
        ("interpolate", [VIDEO[:4]], {"num_frames": 4, "condition_frame_length": 1, "loops": 2},
         "0,0,0,0,1;0,0,1,2,1;1,0,2,1,1;1,0,3,3,1"),
    ],
)  # fmt: skip
def test_tasks_as_strategies(task: str, references: list[np.ndarray], changes: dict, strategy: str | None) -> None:
    values = {"num_frames": T} | changes
    assert arrange(task, references, **values) == (tuple(references), strategy)
    assert task in TASKS


@pytest.mark.parametrize(
    ("task", "references", "num_frames", "sentence"),
    [
        ("connect", [A], 8, "connect takes 2 references, not 1"),
        ("image_to_video", [], 8, "image_to_video takes 1 or 2 references, not 0"),
        ("text_to_video", [A], 8, "text_to_video takes 0 references, not 1"),
        ("connect", [VIDEO, VIDEO], 2, "at least 3"),
        ("loop", [A], 2, "at least 3 frames to leave and come back, not 2"),
        ("interpolate", [A], 8, "interpolate needs two or more frames"),
        ("interpolate", [VIDEO], 8, "40 given ones take a video of at least 79 frames, not 8"),
    ],
)
def test_tasks_that_cannot_be_arranged(task: str, references: list, num_frames: int, sentence: str) -> None:
    with pytest.raises(KinoflowError, match=sentence):
        arrange(task, references, num_frames)
