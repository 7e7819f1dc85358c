"""Videos of any length: the same seed, texts that change, and memory that does not grow."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from components.config import SamplingConfig
from components.errors import KinoflowError
from components.generation import Bundle, Request, draw, generate
from components.generation.drawing import describe, stream
from components.generation.files import read_settings, save, save_stream
from components.generation.settings import GenerationConfig
from model.sampling import Continuation
from tests.components.generation.scenes import SCENE, clip, picture

SAMPLING = SamplingConfig(num_inference_steps=2, guidance_scale=3.0)


def settings(**changes) -> GenerationConfig:
    return GenerationConfig(**{"num_frames": 8, "height": 32, "width": 32, "sampling": SAMPLING} | changes)


def test_one_clip_is_what_generate_makes(bundle: Bundle) -> None:
    request = Request(SCENE.caption, 7, (picture(),), "0")
    [expected] = generate(bundle, [request], num_frames=8, height=32, width=32, sampling=SAMPLING)
    drawn = draw(bundle, SCENE.caption, [picture()], settings(seed=7, task="image_to_video"))
    assert np.array_equal(drawn.frames, expected)


def test_a_long_video_begins_with_the_short_one_and_goes_on_where_a_clip_ends(bundle: Bundle) -> None:
    short = draw(bundle, SCENE.caption, [], settings()).frames
    steps: list[tuple[int, int]] = []
    drawn = draw(bundle, SCENE.caption, [], settings(loops=3), on_step=lambda *done: steps.append(done))
    assert len(drawn.frames) == 3 * (8 - 2) + 2 == settings(loops=3).video_frames
    assert np.array_equal(drawn.frames[:8], short)
    assert steps == [(i, 6) for i in range(1, 7)]
    cut = draw(bundle, SCENE.caption, [], settings(loops=3, total_frames=11)).frames
    assert np.array_equal(cut, drawn.frames[:11])


def test_texts_change_on_the_way(bundle: Bundle) -> None:
    same = draw(bundle, "a red circle", [], settings(loops=2)).frames
    changed = draw(bundle, "|0|a red circle|1|a white left", [], settings(loops=2)).frames
    assert np.array_equal(same[:8], changed[:8])
    assert not np.array_equal(same[8:], changed[8:])


def test_later_clips_can_name_earlier_ones(bundle: Bundle) -> None:
    frames = draw(bundle, SCENE.caption, [], settings(loops=3, mask_strategy="2,0,0,-1,1")).frames
    assert np.abs(frames[-1].astype(int) - frames[0]).mean() < 4  # encoded and decoded once more


def test_negative_prompts_and_quirks_make_a_difference(bundle: Bundle) -> None:
    plain = draw(bundle, SCENE.caption, [], settings(width=48)).frames
    for changes in ({"negative_prompt": "white background"}, {"inverted_aspect": True}, {"precision": "bf16"}):
        assert not np.array_equal(draw(bundle, SCENE.caption, [], settings(width=48, **changes)).frames, plain)


@pytest.mark.parametrize("loops", [2, 10])
def test_ten_loops_hold_no_more_frames_than_two(bundle: Bundle, loops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    carry = Continuation.carry

    def watched(self: Continuation, encoded: torch.Tensor) -> None:
        carry(self, encoded)
        held.append(self.held_frames)

    monkeypatch.setattr(Continuation, "carry", watched)
    alive: list[weakref.ref] = []
    most = total = 0
    for chunk in stream(bundle, SCENE.caption, [clip(8)], settings(loops=loops, task="extend_forward")):
        total += len(chunk)
        alive = [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(chunk))
        most = max(most, len(alive))
    assert total == loops * 6 + 2
    assert held == [8 + 2] * (loops - 1)  # the reference, and what one clip hands on
    assert most <= 2


@pytest.mark.slow
def test_ten_loops_take_no_more_memory_than_one(bundle: Bundle, tmp_path: Path) -> None:
    from model.probe import peak_bytes, reset_peak

    peaks = {}
    for loops in (1, 2, 10):
        config = settings(height=256, width=256, num_frames=12, loops=loops)
        gc.collect()
        reset_peak(torch.device("cpu"))
        frames = stream(bundle, SCENE.caption, [], config)
        save_stream(frames, describe(bundle, SCENE.caption, [], config), config.video_frames, tmp_path / str(loops))
        peaks[loops] = peak_bytes(torch.device("cpu"))
    assert peaks[10] < peaks[2] + (24 << 20), peaks


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_files_say_how_they_were_made_and_are_the_same_again(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    config = settings(num_frames=3, height=30, width=34)
    files = []
    for attempt in ("one", "two"):
        drawn = draw(bundle, "a red circle", [picture()], config.model_copy(update={"task": "image_to_video"}))
        files.append(save(drawn, tmp_path / attempt / "clip", kind=kind))
    assert files[0].read_bytes() == files[1].read_bytes()
    told = read_settings(files[0])
    assert told == drawn.settings
    assert (told["prompt"], told["mask_strategy"], told["checkpoint"]) == ("a red circle", "0,0,0,0,1", "here")
    assert GenerationConfig.model_validate(told["config"]).height == 30
    assert sorted(path.name for path in files[0].parent.iterdir()) == [f"clip.{kind}"]


def test_a_still_is_a_png(bundle: Bundle, tmp_path: Path) -> None:
    drawn = draw(bundle, "a red circle", [], settings(task="text_to_image"))
    path = save(drawn, tmp_path / "still")
    assert (path.name, drawn.frames.shape) == ("still.png", (1, 32, 32, 3))
    assert read_settings(path)["config"]["task"] == "text_to_image"


def test_a_file_from_elsewhere_has_no_settings(tmp_path: Path) -> None:
    from components.video import write_image, write_video

    write_video(tmp_path / "other.mp4", clip(3), 8)
    write_image(tmp_path / "other.png", picture()[0])
    (tmp_path / "other.txt").write_text("words")
    for name, sentence in (("other.mp4", "how it was made"), ("other.png", "how it was made"), ("other.txt", "cannot")):
        with pytest.raises(KinoflowError, match=sentence):
            read_settings(tmp_path / name)


def test_references_without_a_task_are_refused(bundle: Bundle) -> None:
    with pytest.raises(KinoflowError, match="takes 0 references, not 1"):
        draw(bundle, "a red circle", [picture()], settings())
