"""Captions to features: the small encoder made from captions, and T5 folders in general."""

from pathlib import Path

import pytest
import torch

from model.encoder_config import TextEncoderConfig
from model.text import TextEncoder, build_text_encoder, load_text_encoder

CAPTIONS = [
    "a red circle moves left on a white background",
    "a blue square moves right on a black background",
    "A green triangle, on a grey background.",
]
CONFIG = TextEncoderConfig(hidden_size=32, num_heads=4, model_max_length=14)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return build_text_encoder(CAPTIONS, CONFIG)


def test_shapes_mask_and_scale(encoder: TextEncoder) -> None:
    features, mask = encoder.encode(CAPTIONS)
    assert features.shape == (3, 14, 32)
    assert features.dtype == torch.float32
    assert mask.sum(1).tolist() == [10, 10, 10]  # words and punctuation marks, then the end
    assert (mask[:, :9] == 1).all()
    assert 0.9 < features[mask.bool()].std() < 1.1
    assert (encoder.model_max_length, encoder.caption_channels) == (14, 32)


def test_features_do_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    together, mask = encoder.encode(CAPTIONS)
    for index, caption in enumerate(CAPTIONS):
        alone, alone_mask = encoder.encode([caption])
        assert torch.equal(alone[0], together[index])
        assert torch.equal(alone_mask[0], mask[index])


def test_padding_does_not_reach_the_words() -> None:
    short, long = (
        build_text_encoder(CAPTIONS, CONFIG.model_copy(update={"model_max_length": length})) for length in (12, 20)
    )
    assert torch.allclose(short.encode(CAPTIONS)[0][0, :10], long.encode(CAPTIONS)[0][0, :10], atol=1e-5)


def test_words_are_separable_and_order_matters(encoder: TextEncoder) -> None:
    features, _ = encoder.encode(["a red circle on a blue background", "a blue circle on a red background"])
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(features[0, 1], features[1, 1], dim=0) < 0.7  # red, blue
    assert similarity(features[0, 1], features[1, 5], dim=0) < 0.98  # red circle, red background
    assert similarity(features[0, 1], features[1, 5], dim=0) > similarity(features[0, 1], features[1, 1], dim=0)


def test_case_does_not_matter_but_unknown_words_do(encoder: TextEncoder) -> None:
    upper, lower, unknown = encoder.encode([CAPTIONS[0].upper(), CAPTIONS[0], "a mauve circle"])[0]
    assert torch.equal(upper, lower)
    assert encoder.tokenizer("mauve").input_ids == [encoder.tokenizer.unk_token_id, encoder.tokenizer.eos_token_id]
    assert not torch.equal(unknown, lower)


def test_long_captions_are_cut_and_keep_their_end(encoder: TextEncoder) -> None:
    features, mask = encoder.encode([" ".join(["red"] * 50), ""])
    assert features.shape == (2, 14, 32)
    assert mask.sum(1).tolist() == [14, 1]
    assert encoder.tokenizer(" ".join(["red"] * 50), truncation=True, max_length=14).input_ids[-1] == (
        encoder.tokenizer.eos_token_id
    )


def test_no_captions_give_no_features(encoder: TextEncoder) -> None:
    features, mask = encoder.encode([])
    assert features.shape == (0, 14, 32)
    assert mask.shape == (0, 14)


def test_building_is_deterministic_and_ignores_order(encoder: TextEncoder) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = build_text_encoder(reversed(CAPTIONS), CONFIG)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.digest == encoder.digest
    assert build_text_encoder(CAPTIONS, CONFIG.model_copy(update={"seed": 1})).digest != encoder.digest
    assert build_text_encoder([*CAPTIONS, "purple"], CONFIG).digest != encoder.digest


def test_the_vocabulary_keeps_the_most_frequent_words() -> None:
    small = build_text_encoder(CAPTIONS, CONFIG.model_copy(update={"max_vocabulary": 5}))
    assert sorted(small.tokenizer.get_vocab()) == ["</s>", "<pad>", "<unk>", "a", "background"]


def test_captions_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        build_text_encoder(["", "  "], CONFIG)


def test_save_and_load_keep_features_and_length(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "text_encoder")
    loaded = load_text_encoder(tmp_path / "text_encoder")
    assert loaded.digest == encoder.digest
    assert loaded.model_max_length == 14
    assert torch.equal(loaded.encode(CAPTIONS)[0], encoder.encode(CAPTIONS)[0])
    assert load_text_encoder(tmp_path / "text_encoder", model_max_length=12).encode(CAPTIONS)[0].shape[1] == 12


def test_weights_and_tokenizer_may_lie_in_folders_of_their_own(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.network.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert load_text_encoder(tmp_path).digest == encoder.digest


def test_a_tokenizer_without_a_length_gets_two_hundred(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 14,', ""))
    assert load_text_encoder(tmp_path).model_max_length == 200


def test_folders_that_hold_no_t5(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a text encoder folder"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="describes a bert"):
        load_text_encoder(tmp_path)
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_text_encoder(tmp_path)


def test_pickled_weights_are_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(encoder.network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        load_text_encoder(tmp_path)


def test_config_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="divisible by num_heads"):
        TextEncoderConfig(hidden_size=34, num_heads=4)
