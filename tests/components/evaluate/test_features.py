"""Distances and agreements by real models, tiny ones with random weights."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from components.clip_model import ModelUnusable, image_features, load_clip, text_features
from components.evaluate.features import ImageModel, compared, frechet_distance, measured_shapes
from components.evaluate.truth import draw_scenes
from components.shapes.world import draw_staging, render

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clips(count: int, seed: int = 0, num_frames: int = 6) -> list[np.ndarray]:
    rng = random.Random(seed)
    scenes = draw_scenes(count, seed, moving=True)
    return [render(scene, draw_staging(rng, moving=True), num_frames, 48, 64) for scene in scenes]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[EOS]", "a", "red", "circle"])}
    text = TINY | {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 2, "pad_token_id": 1}
    vision = TINY | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


def test_the_distance_is_the_one_of_normal_distributions():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4000, 3)) * [1.0, 2.0, 3.0]
    second = rng.normal(size=(4000, 3)) * [2.0, 2.0, 1.0] + [1.0, 0.0, -1.0]
    # |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances
    assert frechet_distance(first, second) == pytest.approx(2 + 1 + 0 + 4, rel=0.06)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_wide_features_of_few_clips_need_no_root_of_a_matrix():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 300)), rng.normal(size=(7, 300))
    a, b = np.cov(first.T), np.cov(second.T)
    roots = np.linalg.eigvals(a @ b)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * np.sqrt(roots.clip(0)).real.sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-3)


def test_the_made_world_is_its_own_extractor():
    real, other, backwards = clips(40), clips(40, seed=1), [clip[::-1] for clip in clips(40, seed=1)]
    assert measured_shapes(real).shape == (40, 7)
    prompts = ["a red circle"] * 40
    near = compared(measured_shapes, other, prompts, measured_shapes(real))
    noisy = [np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8) for clip in backwards]
    far = compared(measured_shapes, noisy, prompts, measured_shapes(real))
    assert set(near) == {"frechet_distance"}
    assert near["frechet_distance"].high < far["frechet_distance"].low
    assert near["frechet_distance"].n == 40


def test_a_clip_measures_agreement_of_text_and_frames(clip_folder):
    folder = str(clip_folder)
    model, drawn = ImageModel(folder), clips(4)
    scores = compared(model, drawn, ["a red circle", "a red", "circle", "a"], None)
    assert set(scores) == {"text_match"}
    assert scores["text_match"].n == 4
    square = np.ascontiguousarray(drawn[0][:1, :16, :16])
    seen = image_features(load_clip(folder, "here"), square)[0]
    said = text_features(load_clip(folder, "here"), folder, "a red")
    expected = float(load_clip(folder, "here").logit_scale.exp()) * float(seen @ said)
    assert model.text_match([square], ["a red"]) == pytest.approx([expected], abs=1e-4)


def test_any_image_model_measures_distances(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    model = ImageModel(str(tmp_path))
    drawn = clips(5)
    assert model(drawn).shape == (5, 16)
    scores = compared(model, drawn, ["a"] * 5, model(clips(6, seed=1)))
    assert set(scores) == {"frechet_distance"}
    assert compared(model, drawn[:1], ["a"], model(drawn)) == {}, "one clip has no spread"


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(ModelUnusable, match=r"feature_folder .* holds no readable config.json"):
        ImageModel(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(ModelUnusable, match="is no image model with safetensors weights"):
        ImageModel(str(tmp_path))
