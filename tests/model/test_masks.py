"""Training masks, mask strategies and the settings a prompt can carry."""

import random

import pytest
import torch
from pydantic import ValidationError

from model.mask_config import MaskRatios
from model.masks import MaskGroup, apply_mask_strategy, parse_mask_strategy, sample_frame_masks
from model.prompts import ParsedPrompt, parse_prompt, split_loop_texts
from tests.parity import load_case

TRAINING, TRAINING_TENSORS = load_case("masks_train")
STRATEGIES, STRATEGY_TENSORS = load_case("mask_strategy")


def as_text(row: torch.Tensor) -> str:
    return "".join(str(int(value)) for value in row)


@pytest.mark.parametrize("name", sorted(TRAINING_TENSORS))
def test_training_masks_match_the_reference_draw_by_draw(name: str) -> None:
    _, mix, frames = name.split(".")
    expected = TRAINING_TENSORS[name]
    rng = random.Random(TRAINING["seed"] + expected.shape[1])
    ratios = TRAINING["config"]["mixes"][mix]
    assert frames == f"T{expected.shape[1]}"
    assert torch.equal(sample_frame_masks(ratios, expected.shape[1], len(expected), rng), expected)


def test_golden_sequence_of_the_stage_mixture() -> None:
    masks = sample_frame_masks(MaskRatios.opensora(), 16, 40, random.Random(1024))
    masked = {i: as_text(row) for i, row in enumerate(masks) if not row.all()}
    head_tail, head, tail = "0111111111111110", "0111111111111111", "1111111111111110"
    assert masked == {
        0: "0000111111111111", 1: "0001111111111000", 2: head_tail, 5: "1111111111111000", 7: head_tail,
        9: "0000111111110000", 14: "0001111111111000", 16: head, 18: head_tail, 20: head_tail, 23: head_tail,
        25: tail, 30: head_tail, 34: head, 36: head_tail, 37: tail, 38: head,
    }  # fmt: skip


@pytest.mark.parametrize("case", sorted(TRAINING["cases"]))
def test_each_kind_yields_its_masks_and_no_others(case: str) -> None:
    kind, _, frames = case.partition("|T=")
    outcomes = TRAINING["cases"][case]
    if "error" in outcomes:
        with pytest.raises(ValueError, match="at least 4 frames"):
            sample_frame_masks({kind: 1.0}, int(frames), 1, random.Random(0))
        return
    masks = [as_text(row) for row in sample_frame_masks({kind: 1.0}, int(frames), 2000, random.Random(0))]
    assert set(masks) == set(outcomes)
    for mask, share in outcomes.items():
        assert masks.count(mask) / len(masks) == pytest.approx(share["exact"], abs=0.05)


def test_interpolation_gives_every_second_frame_from_either_of_the_first_two_on() -> None:
    only = MaskRatios(mask_no=0.0, mask_interpolate=1.0)
    for num_frames, outcomes in ((1, {"1"}), (2, {"01", "10"}), (7, {"0101010", "1010101"})):
        masks = [as_text(row) for row in sample_frame_masks(only, num_frames, 200, random.Random(0))]
        assert set(masks) == outcomes
        assert all(masks.count(mask) > 70 for mask in outcomes)


def test_mixture_is_checked_when_it_is_loaded() -> None:
    assert MaskRatios().mask_no == 1
    assert MaskRatios.model_validate_json(MaskRatios.opensora().model_dump_json()) == MaskRatios.opensora()
    with pytest.raises(ValidationError, match="add up to 1"):
        MaskRatios(mask_no=0.9)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        MaskRatios(mask_no=1.5)
    with pytest.raises(ValidationError, match="mask_quarter_middle"):
        MaskRatios.model_validate({"mask_quarter_middle": 0.5, "mask_no": 0.5})
    with pytest.raises(ValidationError, match="add up to 1"):
        sample_frame_masks({"mask_image_head": 0.5}, 8, 1, random.Random(0))


def test_clip_lengths_without_a_sensible_mask_are_refused_at_load() -> None:
    for num_frames in (1, 4, 16):
        MaskRatios.opensora().check_num_frames(num_frames)
    for num_frames in (2, 3):
        with pytest.raises(ValueError, match="at least 4 frames"):
            MaskRatios.opensora().check_num_frames(num_frames)
    with pytest.raises(ValueError, match="nothing to generate"):
        MaskRatios(mask_no=0.5, mask_image_head_tail=0.5).check_num_frames(2)


@pytest.mark.parametrize("case", STRATEGIES["cases"], ids=lambda case: case["description"])
def test_strategies_match_the_reference(case: dict[str, object]) -> None:
    number = f"{case['case']:02d}"
    latents = STRATEGY_TENSORS[f"{number}.in.z"].clone()
    lengths = case["ref_frames"]
    assert isinstance(lengths, list)
    references = [
        None if own is None else [STRATEGY_TENSORS[f"{number}.in.ref.{b}.{r}"] for r in range(len(own))]
        for b, own in enumerate(lengths)
    ]
    strategies, loop_index = case["strategies"], case["loop_i"]
    assert isinstance(strategies, list)
    assert isinstance(loop_index, int)
    if "error" in case:
        with pytest.raises(ValueError, match=r"mask strategy"):
            apply_mask_strategy(latents, references, strategies, loop_index)
        return
    mask = apply_mask_strategy(latents, references, strategies, loop_index)
    assert torch.equal(mask, STRATEGY_TENSORS[f"{number}.out.mask"])
    assert torch.equal(latents, STRATEGY_TENSORS[f"{number}.out.z"])


def test_groups_read_and_written() -> None:
    groups = parse_mask_strategy("0;1,2,-3,4,5,0.25")
    assert groups == [MaskGroup(0), MaskGroup(1, 2, -3, 4, 5, 0.25)]
    assert [group.to_text() for group in groups] == ["0,0,0,0,1", "1,2,-3,4,5,0.25"]
    assert parse_mask_strategy(None) == []


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("", "is empty"),
        ("0;", "Group 2 .* loop id must be a whole number"),
        ("0,x", "Group 1 .* reference id must be a whole number, got 'x'"),
        ("0,0,0,0,1,high", "edit ratio must be a number from 0 to 1"),
        ("0,0,0,0,1,1.5", "edit ratio must be a number from 0 to 1"),
        ("0,0,0,0,1,nan", "edit ratio must be a number from 0 to 1"),
        ("0,0,0,0,-1", "length must not be negative"),
        ("-1", "loop id must not be negative"),
        ("0,0,0,0,1,0,9", "has 7 numbers; at most six"),
        ("0,1", "asks for reference 1, but there are 1"),
        ("0,-2", "asks for reference -2, but there are 1"),
        ("0,0,4", "the reference has 4 frames, none of them at position 4"),
        ("0,0,0,-9", "the clip has 8 frames, none of them at position -9"),
        ("0;0,0,0,0,6", "Group 2 .* copies 4 reference frames onto 6 frames"),
        ("0,0,0,6,4", "copies 4 reference frames onto 2 frames"),
    ],
)
def test_mistakes_in_strategies_end_as_one_sentence(strategy: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        apply_mask_strategy(torch.zeros(1, 2, 8, 1, 1), [[torch.ones(2, 4, 1, 1)]], [strategy])


def test_every_sample_needs_its_strategy() -> None:
    with pytest.raises(ValueError, match="2 samples need"):
        apply_mask_strategy(torch.zeros(2, 2, 8, 1, 1), [None], [None])


def test_prompt_with_settings() -> None:
    prompt = 'a boat at sea. {"reference_path": "boat.png; sea.mp4", "mask_strategy": "0;0,1,0,-1,1", "seed": 3}'
    assert parse_prompt(prompt) == ParsedPrompt(("a boat at sea.",), ("boat.png", "sea.mp4"), "0;0,1,0,-1,1")
    assert parse_prompt("[wide shot] a boat | at sea") == ParsedPrompt(("[wide shot] a boat | at sea",))


def test_prompt_per_clip() -> None:
    prompt = '|0|a boat|2| a storm |5|calm {"mask_strategy": "0"}'
    assert parse_prompt(prompt, 6) == ParsedPrompt(("a boat",) * 2 + ("a storm",) * 3 + ("calm",), None, "0")
    assert split_loop_texts("a boat", 3) == ["a boat"] * 3


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a boat {and more", "must be one JSON object"),
        ('a {"mask_strategy": "0"} boat', "must be one JSON object"),
        ('a boat {"mask_strategy": 0}', "mask_strategy .* must be a string"),
        ("|0|a|3|b", "stay below the number of loops, 3; 3 is followed by 3"),
        ("|0|a|2|b|1|c", "must rise"),
    ],
)
def test_mistakes_in_prompts_end_as_one_sentence(prompt: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_prompt(prompt, 3)
