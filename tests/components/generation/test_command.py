"""Batches of prompts: what is wrong with one is one sentence, and the others are made."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from components.config import SamplingConfig
from components.errors import KinoflowError
from components.generation import Bundle, load_bundle
from components.generation.command import Outcome, generate_files
from components.generation.files import read_settings
from components.generation.memory import check_memory, predict_memory
from components.generation.prompts import parse_prompt
from components.generation.references import read_reference
from components.generation.rows import Row, read_rows
from components.generation.settings import GenerationConfig, parse_size
from components.video import decode_frames, write_image, write_video
from pipelines.generate_command import lengths
from tests.components.generation.scenes import clip, picture

CONFIG = GenerationConfig(
    num_frames=4, height=32, width=32, sampling=SamplingConfig(num_inference_steps=1, guidance_scale=1)
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an image, a video, and what is neither."""
    monkeypatch.chdir(tmp_path)
    write_image("first.png", picture()[0])
    write_video("clip.mp4", clip(12), 24)
    Path("words.mp4").write_text("no video")
    return tmp_path


def run(bundle: Bundle, rows: list[Row], config: GenerationConfig = CONFIG, **options) -> Outcome:
    return generate_files(rows, config, lambda: bundle, Path("out"), **options)


BAD = {
    "": "is empty once it is cleaned",
    "word " * 10_000: "10,000 words",
    'a circle {"reference_path": "words.mp4"}': "words.mp4 is neither a video nor an image",
    'a circle {"reference_path": "never.png"}': "never.png",
    'a circle {"reference_path": "first.png", "mask_strategy": "0,x"}': "reference id must be a whole number, got 'x'",
    'a circle {"reference_path": "first.png", "mask_strategy": "0,0,0,0,1,2"}': "must be a number from 0 to 1",
    'a circle {"reference_path": "clip.mp4", "mask_strategy": "0,0,30"}': "has 4 frames, none of them at position 30",
    'a circle {"reference_path": "first.png", "mask_strategy": "0,1"}': "asks for reference 1, but there are 1",
    'a circle {"reference_path": "first.png", "mask_strategy": "1"}': "acts in loop 1, but there are 1",
    "a circle {broken": "no JSON object",
    "|0|a circle|3|a square": "changes at loop 3, but there are 1",
    "a circle|0|a square": "must begin with",
}


def test_what_is_wrong_with_one_prompt_does_not_stop_the_others(bundle: Bundle, files: Path) -> None:
    bad = list(BAD)
    told: list[tuple[int, str]] = []
    rows = [Row("a red circle"), *map(Row, bad), Row("a circle", name="last/one"), Row("a", changes={"height": "tall"})]
    outcome = run(bundle, rows, on_failure=lambda *failure: told.append(failure))
    assert [path.name for path in outcome.paths] == ["sample_0000.mp4", "last-one.mp4"]
    assert outcome.failures == told
    assert [number for number, _ in told] == [*range(2, len(bad) + 2), len(bad) + 3]
    for (_, sentence), prompt in zip(told, bad):
        assert BAD[prompt] in sentence and "\n" not in sentence, sentence
        assert len(sentence) < 400
    assert "height" in told[-1][1]


def test_nothing_is_loaded_for_nothing(files: Path) -> None:
    def load() -> Bundle:
        raise AssertionError

    assert len(generate_files([Row("")], CONFIG, load, Path("out")).failures) == 1


@pytest.mark.parametrize("place", ["nowhere", "s3-like/step-00000001"])
def test_an_unknown_checkpoint_is_one_sentence(place: str, tmp_path: Path) -> None:
    with pytest.raises(KinoflowError, match=place):
        load_bundle(str(tmp_path / place))


def test_a_size_over_memory_is_refused_before_it_begins(bundle: Bundle, files: Path) -> None:
    large = CONFIG.model_copy(update={"height": 2160, "width": 3840, "num_frames": 128})
    outcome = run(bundle, [Row("a circle"), Row("a circle", changes={"height": 32, "width": 32, "num_frames": 4})],
                  large, memory_gib=1.0)  # fmt: skip
    [(number, sentence)] = outcome.failures
    assert number == 1 and len(outcome.paths) == 1
    assert sentence.startswith("128 frames of 2160x3840 need about ") and "1.0 GiB free" in sentence
    check_memory(bundle, CONFIG)
    assert predict_memory(bundle, large).sampling > 500 * predict_memory(bundle, CONFIG).sampling


def test_tables_and_lists_of_prompts(bundle: Bundle, files: Path) -> None:
    table = pl.DataFrame({"prompt": ["a circle", "a square"], "reference_path": ["first.png", None],
                          "mask_strategy": ["0,0,0,-1,1", None], "seed": [3, None],
                          "size": [None, "24x40"]})  # fmt: skip
    table.write_csv("table.csv")
    table.write_parquet("table.parquet")
    table.write_ndjson("table.jsonl")
    Path("list.txt").write_text("a circle\n\n  a square \n")
    assert [row.prompt for row in read_rows("list.txt")] == ["a circle", "a square"]
    made = []
    for name in ("table.csv", "table.parquet", "table.jsonl"):
        outcome = run(bundle, read_rows(name))
        assert not outcome.failures
        made.append([path.read_bytes() for path in outcome.paths])
    assert made[0] == made[1] == made[2]
    first, second = (read_settings(path) for path in outcome.paths)
    assert (first["seed"], first["mask_strategy"], first["references"][0]["path"]) == (3, "0,0,0,-1,1", "first.png")
    assert next(decode_frames(outcome.paths[1])).shape == (24, 40, 3)
    assert second["seed"] == CONFIG.seed


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("never.txt", None, "never.txt cannot be read: No such file"),
        ("empty.txt", "\n", "empty.txt holds no prompts"),
        ("table.csv", "text\na circle\n", "needs a column 'prompt'"),
        ("table.csv", "prompt,sed\na,1\n", "column 'sed', which means nothing here"),
        ("table.jsonl", "{", "table.jsonl cannot be read"),
        ("table.parquet", "x", "table.parquet cannot be read"),
    ],
)
def test_lists_that_cannot_be_read(files: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(KinoflowError, match=sentence):
        read_rows(name)


def test_several_samples_count_their_seeds_up(bundle: Bundle, files: Path) -> None:
    outcome = run(bundle, [Row("a circle")], CONFIG.model_copy(update={"num_samples": 2, "seed": 5}), kind="gif")
    assert [path.name for path in outcome.paths] == ["sample_0000-0.gif", "sample_0000-1.gif"]
    alone = run(bundle, [Row("x"), Row("a circle")], CONFIG.model_copy(update={"seed": 6}), kind="gif")
    assert outcome.paths[1].read_bytes() == alone.paths[1].read_bytes()


def test_references_keep_their_speed(files: Path) -> None:
    frames = np.stack(list(decode_frames("clip.mp4")))  # 12 frames at 24 a second
    assert np.array_equal(read_reference("clip.mp4", CONFIG), frames[::3])
    slow = CONFIG.model_copy(update={"sampling": CONFIG.sampling.model_copy(update={"saved_fps": 12.0})})
    assert np.array_equal(read_reference("clip.mp4", slow), frames[::2])
    assert len(read_reference("clip.mp4", CONFIG.model_copy(update={"reference_interval": 1}))) == 12
    assert read_reference("first.png", CONFIG).shape == (1, 32, 32, 3)


def test_prompts_are_taken_apart() -> None:
    prompt = parse_prompt('|0|a circle|2|a square {"reference_path": "a;b", "mask_strategy": "0;0,1,0,-1,1"}', loops=4)
    assert prompt.texts == ((0, "a circle"), (2, "a square"))
    assert [prompt.text_of(loop) for loop in range(4)] == ["a circle", "a circle", "a square", "a square"]
    assert (prompt.reference_path, prompt.mask_strategy) == ("a;b", "0;0,1,0,-1,1")
    assert parse_prompt(json.dumps("a circle")).texts == ((0, '"a circle"'),)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("240x426", (240, 426)), ("240p 16:9", (240, 426)), ("240p", (240, 426)), ("720p 9:16", (1280, 720)),
        ("480p, 1:1", (640, 640)), ("512", (512, 512)), ("144p 4:3", (166, 221)),
    ],
)  # fmt: skip
def test_sizes_by_name(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size
    made = GenerationConfig.model_validate({"size": text})
    assert (made.height, made.width) == size


@pytest.mark.parametrize(
    ("text", "sentence"), [("huge", "unknown resolution"), ("240p 0:9", "above 0"), ("?", "neither")]
)
def test_sizes_that_mean_nothing(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_size(text)


@pytest.mark.parametrize(
    ("frames", "clip_frames", "loops"), [(5, 5, 1), (16, 8, 3), (17, 8, 3), (21, 8, 4), (1000, 8, 167)]
)
def test_lengths_in_clips(frames: int, clip_frames: int, loops: int) -> None:
    chosen = lengths(frames, clip_frames, None)
    assert chosen["loops"] == loops
    assert GenerationConfig(**chosen).video_frames == frames
    with pytest.raises(KinoflowError, match="never get longer"):
        lengths(20, 8, 8)


def test_every_sampler_honours_references(bundle: Bundle, files: Path) -> None:
    from model.diffusion_config import IDDPMConfig

    config = CONFIG.model_copy(update={"sampling": SamplingConfig(num_inference_steps=3)})
    rows = [Row("a circle", ("first.png",), changes={"method": method}) for method in ("own", "dpm-solver++")]
    outcome = run(replace(bundle, diffusion=IDDPMConfig()), rows, config, kind="png")
    first, second = (np.stack(list(decode_frames(path)))[0] for path in outcome.paths)
    assert np.array_equal(first, second)
