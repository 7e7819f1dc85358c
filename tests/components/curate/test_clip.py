"""Scores of a local CLIP: a tiny random one, made here, and the real library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from components import tables
from components.clip_model import ModelUnusable, image_features, load_clip
from components.config import ClipModelConfig, CurateConfig
from components.curate.analysis import analyse, analyse_safely
from components.curate.scores.clip import apply_head, with_text_match
from components.video import read_frames, write_video
from tests.components.curate.test_analysis import task
from tests.components.curate.test_shots import textured_shots

WIDTH = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipModelConfig:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {word: index for index, word in enumerate(["[UNK]", "a", "cat", "dog", "[END]"])}
    ends = {"eos_token_id": 4, "bos_token_id": 0, "pad_token_id": 4}
    config = CLIPConfig(
        text_config={**part, **ends, "vocab_size": len(words), "max_position_embeddings": 8},
        vision_config={**part, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    rng = np.random.default_rng(0)
    layers = {}
    for index, (outputs, inputs) in enumerate([(8, WIDTH), (1, 8)]):
        layers[f"layers.{10 * index}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        layers[f"layers.{10 * index}.bias"] = rng.normal(size=outputs).astype(np.float32)
    save_file(layers, folder / "head.safetensors")
    return ClipModelConfig(folder=str(folder), aesthetic_weights=str(folder / "head.safetensors"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_video(path, textured_shots([12, 50]), 24)
    return path


def test_every_clip_is_embedded_and_judged(clip: ClipModelConfig, video: Path) -> None:
    rows = analyse(task(video, CurateConfig(clip=clip)))
    table = with_text_match(tables.frame(rows, tables.CLIPS), clip)
    assert len(table) == 2
    for name in ("aesthetic", "text_match", "embedding"):
        assert table[name].null_count() == 0, name
    vectors = [np.frombuffer(value, np.float16) for value in table["embedding"]]
    assert all(len(vector) == WIDTH for vector in vectors)
    assert [float(np.linalg.norm(vector.astype(np.float32))) for vector in vectors] == pytest.approx([1, 1], abs=0.01)
    assert analyse(task(video, CurateConfig(clip=clip))) == rows


def test_the_embedding_is_that_of_the_middle_frame(clip: ClipModelConfig, video: Path) -> None:
    row = analyse(task(video, CurateConfig(clip=clip)))[0]
    frame = read_frames(video, [6], size=(32, round(96 * 32 / 72)))[:, :, 5:37]
    expected = image_features(load_clip(clip.folder, "clip.folder"), frame)[0]
    found = np.frombuffer(bytes(row["embedding"]), np.float16).astype(np.float32)  # type: ignore[call-overload]
    assert float(expected @ found) > 0.99


def test_the_match_depends_on_the_caption(clip: ClipModelConfig, video: Path) -> None:
    table = tables.frame(analyse(task(video, CurateConfig(clip=clip))), tables.CLIPS)
    cat, dog, none = (
        with_text_match(table.with_columns(pl.lit(caption, pl.String).alias("caption")), clip)["text_match"].to_list()
        for caption in ("a cat", "a dog " * 20, None)
    )
    assert cat != dog
    assert none == [None, None]
    assert with_text_match(table, None).equals(table)


def test_layers_follow_each_other() -> None:
    layers = (
        (np.full((2, 3), 2, np.float32), np.ones(2, np.float32)),
        (np.ones((1, 2), np.float32), np.zeros(1, np.float32)),
    )
    assert apply_head(layers, np.ones((4, 3), np.float32)).tolist() == [14] * 4


def test_without_a_model_the_columns_stay_empty(video: Path) -> None:
    table = tables.frame(analyse(task(video)), tables.CLIPS)
    assert [table[name].null_count() for name in ("aesthetic", "text_match", "embedding")] == [2, 2, 2]


def test_an_unusable_model_ends_the_stage_in_one_sentence(tmp_path: Path, video: Path, clip: ClipModelConfig) -> None:
    with pytest.raises(ModelUnusable, match="holds no config"):
        analyse_safely(task(video, CurateConfig(clip=ClipModelConfig(folder=str(tmp_path)))))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}), encoding="utf-8")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnusable, match="safetensors"):
        analyse_safely(task(video, CurateConfig(clip=ClipModelConfig(folder=str(tmp_path)))))
    broken = clip.model_copy(update={"aesthetic_weights": str(tmp_path / "config.json")})
    with pytest.raises(ModelUnusable, match="no readable safetensors"):
        analyse_safely(task(video, CurateConfig(clip=broken)))
