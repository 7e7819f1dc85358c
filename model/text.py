"""Captions to features: any T5 encoder folder, or a small one whose vocabulary is the captions' words."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.autoencoder import state_digest
from model.encoder_config import TextEncoderConfig

DEFAULT_MAX_LENGTH = 200
"""Open-Sora 1.1's text length, used when a tokenizer names no length of its own."""

RELATIVE_BIAS_STD = 3.0
"""T5's own start attends to all words nearly alike, so "a red ball on blue" and "a blue ball on red" would have
the same features; strong random biases make each head look at words at certain distances."""

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


class TextEncoder:
    """A T5 encoder with its tokenizer.

    One caption is encoded at a time, so its features do not depend on the captions beside it.

    Args:
        network: a transformers `T5EncoderModel`.
        tokenizer: its fast tokenizer.
        model_max_length: tokens a caption is padded or cut to.
    """

    def __init__(self, network: Any, tokenizer: Any, model_max_length: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.model_max_length = model_max_length
        self.caption_channels = int(network.config.d_model)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the network; returns self."""
        self.network.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions as they are; cleaning is the caller's.

        Returns:
            features (N, M, Cy) float32 and mask (N, M) int64 (1 = token), M = model_max_length. Features
            are those of the last layer, of about unit standard deviation for a fresh encoder.
        """
        if not captions:
            return (
                torch.zeros(0, self.model_max_length, self.caption_channels),
                torch.zeros(0, self.model_max_length, dtype=torch.int64),
            )
        tokens = self.tokenizer(
            list(captions),
            max_length=self.model_max_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        device = self.network.device
        features = [
            self.network(input_ids=ids[None].to(device), attention_mask=mask[None].to(device)).last_hidden_state
            for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)
        ]
        return torch.cat(features).float(), tokens.attention_mask.to(device)

    def save(self, folder: str | Path) -> None:
        """Write network and tokenizer into one folder, made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.network.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @property
    def digest(self) -> str:
        """SHA-256 over the weights, the vocabulary and the text length: same digest, same features."""
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for name in ("padding", "truncation"):  # the tokenizer's memory of its last call
            rules.pop(name, None)
        parts = [state_digest(self.network), self.model_max_length, rules]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_text_encoder(folder: str | Path, model_max_length: int | None = None) -> TextEncoder:
    """Load a T5 encoder from a local folder; nothing is fetched.

    Args:
        folder: weights and tokenizer side by side, or in `text_encoder/` and `tokenizer/` below it.
        model_max_length: tokens per caption; without it the tokenizer's own length, else 200.
    Raises:
        ValueError: the folder holds no T5 encoder that can be read.
    """
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = Path(folder)
    weights, vocabulary = (path / name if (path / name).is_dir() else path for name in ("text_encoder", "tokenizer"))
    if not (weights / "config.json").is_file():
        raise ValueError(f"{path} is not a text encoder folder: it has no config.json of a T5 encoder.")
    try:
        kind = AutoConfig.from_pretrained(weights, local_files_only=True).model_type
        if kind != "t5":
            raise ValueError(f"its config.json describes a {kind}, not a T5")
        network = T5EncoderModel.from_pretrained(weights, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(vocabulary, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The T5 encoder in {path} cannot be read: {error}") from error
    own_length = int(tokenizer.model_max_length)
    length = model_max_length or (own_length if own_length < 1_000_000 else DEFAULT_MAX_LENGTH)
    return TextEncoder(network, tokenizer, length)


def _word_tokenizer(captions: Iterable[str], config: TextEncoderConfig) -> Any:
    """Words and punctuation marks of the captions, most frequent first, ties in alphabetical order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    if not counts:
        raise ValueError("build_text_encoder needs captions with at least one word in them.")
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    vocabulary = [*SPECIAL_TOKENS, *(word for word in words if word not in SPECIAL_TOKENS)][: config.max_vocabulary]
    pad, end, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary.index(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        model_max_length=config.model_max_length,
    )


def build_text_encoder(captions: Iterable[str], config: TextEncoderConfig) -> TextEncoder:
    """Make a word-level tokenizer from captions and a small T5 encoder with seeded, untrained weights.

    Random embeddings of words are nearly orthogonal and T5's final norm gives them unit size, which
    is all a denoiser trained beside them needs. The order of `captions` does not matter.
    """
    from transformers import T5Config, T5EncoderModel

    tokenizer = _word_tokenizer(captions, config)
    t5_config = T5Config(
        vocab_size=len(tokenizer),
        d_model=config.hidden_size,
        d_kv=config.hidden_size // config.num_heads,
        d_ff=2 * config.hidden_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = T5EncoderModel(t5_config)
        for name, weight in network.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                torch.nn.init.normal_(weight, std=RELATIVE_BIAS_STD)
    return TextEncoder(network, tokenizer, config.model_max_length)
