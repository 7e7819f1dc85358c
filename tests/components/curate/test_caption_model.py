"""Captions from tiny random models in local folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from components.caption_config import CaptionConfig, CaptionerConfig
from components.curate.caption_model import FolderCaptioner
from components.curate.captioning import Question, check_captioner, open_captioner
from components.errors import KinoflowError

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(40))]
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(["<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", **special)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of a few thousand random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_token_id=4)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = tokenizer(bos_token="<s>", eos_token="</s>")
    LlavaProcessor(
        pictures, words, patch_size=16, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def config(folder: Path, batch_size: int = 2) -> CaptionerConfig:
    source = {"kind": "folder", "folder": str(folder), "batch_size": batch_size, "device": "cpu"}
    return CaptionerConfig.model_validate({"source": source, "max_new_tokens": 6})


def questions(count: int, num_frames: int = 3) -> list[Question]:
    draws = np.random.default_rng(0).integers(0, 256, (count, num_frames, 40, 48, 3), np.uint8)
    return [Question(f"c{number}", tuple(frames), "w1 w2 w3") for number, frames in enumerate(draws)]


def test_a_chat_model_answers_in_batches_and_the_same_whatever_their_size(llava: Path) -> None:
    answers = {}
    for batch_size in (1, 2, 8):
        model = open_captioner(config(llava, batch_size))
        answers[batch_size] = list(model.answers(iter(questions(3))))
    assert [name for name, _ in answers[2]] == ["c0", "c1", "c2"]
    assert all(answer.text and not answer.failure for _, answer in answers[2])
    assert answers[1] == answers[2] == answers[8]


def test_the_identity_follows_the_weights(llava: Path, tmp_path: Path) -> None:
    first = FolderCaptioner(config(llava), config(llava).source)
    assert (first.name, first.identity.partition("@")[0]) == ("tiny-llava", "tiny-llava")
    other = tmp_path / "tiny-llava"
    LlavaForConditionalGeneration.from_pretrained(llava).save_pretrained(other)
    for path in llava.iterdir():
        if path.suffix != ".safetensors":
            (other / path.name).write_bytes(path.read_bytes())
    assert FolderCaptioner(config(other), config(other).source).identity == first.identity
    (other / "generation_config.json").write_text('{"eos_token_id": 3}', encoding="utf-8")
    assert FolderCaptioner(config(other), config(other).source).identity != first.identity


def test_a_model_without_a_chat_describes_the_middle_frame(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-blip"
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2,
        "sep_token_id": 6, "max_position_embeddings": 64,
    }  # fmt: skip
    BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16})
    ).save_pretrained(folder)
    words = tokenizer(bos_token="<s>", eos_token="</s>", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    model = open_captioner(config(folder))
    answers = dict(model.answers(questions(3)))
    assert len(answers) == 3
    assert all(answer.text for answer in answers.values())
    middle = [Question(q.clip_id, (q.frames[1],), "other words") for q in questions(3)]
    assert dict(model.answers(middle)) == answers


def test_only_local_folders_with_safetensors_are_opened(llava: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        check_captioner(CaptionConfig(captioner=config(folder)))

    with pytest.raises(KinoflowError, match=r"no model in .*/nowhere \(no config.json\)"):
        check(tmp_path / "nowhere")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in llava.iterdir():
        if path.suffix != ".safetensors":
            (pickled / path.name).write_bytes(path.read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(KinoflowError, match=r"no .safetensors weights; other formats are not opened"):
        check(pickled)
    check(llava)
    (pickled / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(KinoflowError, match="holds no usable image-to-text model"):
        open_captioner(config(pickled))
    (pickled / "model.safetensors").write_bytes(
        save({name: tensor for name, tensor in load_file(llava / "model.safetensors").items() if "lm_head" not in name})
    )
    with pytest.raises(KinoflowError, match=r"lacks weights of its model \(lm_head.weight"):
        open_captioner(config(pickled))
