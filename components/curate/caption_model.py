"""Captions from a vision-language model in a local folder, by `transformers`; nothing is fetched, no pickle is read."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from components import manifest
from components.caption import MAX_CHARACTERS
from components.caption_config import CaptionerConfig, CaptionFolder
from components.curate.captioning import Answer, Question, whole_sentences
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

DECISIVE_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")
# Typed `Any`: the annotations of transformers are incomplete.
_PROCESSORS: Any = AutoProcessor
_MODELS: Any = AutoModelForImageTextToText


class FolderCaptioner:
    """Asks a model in this process, a batch of clips at once; greedy, so the same clips give the same words.

    A model whose processor has a chat template is shown all frames and asked the prompt; one without (BLIP and its
    like) describes the middle frame.

    Raises:
        KinoflowError: the folder holds no such model.
    """

    def __init__(self, config: CaptionerConfig, source: CaptionFolder) -> None:
        self._config, self._source = config, source
        folder = check_folder(source.folder)
        self.name = folder.name
        self.identity = _digest(folder)
        cuda = torch.cuda.is_available()
        if source.device == "cuda" and not cuda:
            raise KinoflowError("captions.captioner.source.device is cuda, but there is no GPU; choose auto or cpu.")
        self._device = "cuda" if cuda and source.device != "cpu" else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        try:
            self._processor = _PROCESSORS.from_pretrained(folder, local_files_only=True)
            self._model, found = _MODELS.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise KinoflowError(f"The folder {folder} holds no usable image-to-text model: {reason}") from error
        if found["missing_keys"]:
            name = min(found["missing_keys"])
            raise KinoflowError(f"The folder {folder} lacks weights of its model ({name} and perhaps more).")
        self._model.eval().to(self._device)
        self._chats = getattr(self._processor, "chat_template", None) is not None
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.padding_side = "left"  # answers are written on at the right

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[str, Answer]]:
        """In the order of the questions."""
        remaining = iter(questions)
        while batch := list(itertools.islice(remaining, self._source.batch_size)):
            for question, answer in zip(batch, self._answer(batch), strict=True):
                yield question.clip_id, answer

    def _answer(self, batch: Sequence[Question]) -> list[Answer]:
        try:
            texts = self._chat(batch) if self._chats else self._describe(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                return [Answer(None, "The caption model does not fit into the memory with this clip.")]
            middle = len(batch) // 2
            return self._answer(batch[:middle]) + self._answer(batch[middle:])
        except (ValueError, IndexError, RuntimeError) as error:
            logger.exception("captioning %d clips failed", len(batch))
            return [Answer(None, f"The caption model failed ({type(error).__name__}).")] * len(batch)
        return [_as_answer(text) for text in texts]

    def _chat(self, batch: Sequence[Question]) -> list[str]:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": Image.fromarray(frame)} for frame in question.frames),
                        {"type": "text", "text": question.prompt},
                    ],
                }
            ]
            for question in batch
        ]
        inputs = self._processor.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        return self._generate(inputs, skip=inputs["input_ids"].shape[1])

    def _describe(self, batch: Sequence[Question]) -> list[str]:
        pictures = [Image.fromarray(question.frames[len(question.frames) // 2]) for question in batch]
        return self._generate(self._processor(images=pictures, return_tensors="pt"), skip=0)

    def _generate(self, inputs: Any, skip: int) -> list[str]:
        inputs = inputs.to(self._device, self._model.dtype)
        limit = self._config.max_new_tokens
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=limit)[:, skip:]
        texts: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        cut = [len(row) >= limit and not _has_ended(row.tolist(), self._model) for row in tokens]
        return [whole_sentences(text) if is_cut else text for text, is_cut in zip(texts, cut, strict=True)]


def check_folder(given: str) -> Path:
    """The folder, if it holds a configuration and safetensors weights.

    Raises:
        KinoflowError: it does not.
    """
    folder = Path(given).expanduser()
    if not (folder / "config.json").is_file():
        raise KinoflowError(
            f"There is no model in {folder} (no config.json); captions.captioner.source.folder takes a local folder in "
            "the form of transformers."
        )
    if not any(folder.glob("*.safetensors")):
        raise KinoflowError(f"The model in {folder} has no .safetensors weights; other formats are not opened.")
    return folder


def _digest(folder: Path) -> str:
    """SHA-256 over the files that decide what the model says."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja", ".model")
    ):
        digest.update(f"{path.name}\0{manifest.sha256_file(path)}\0".encode())
    return f"{folder.name}@{digest.hexdigest()[:16]}"


def _has_ended(tokens: list[int], model: Any) -> bool:
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    return bool(ends & set(tokens))


def _as_answer(text: str) -> Answer:
    text = text.strip()
    if not text:
        return Answer(None, "The caption model said nothing.")
    if len(text) > MAX_CHARACTERS:
        return Answer(None, f"The caption model said {len(text)} characters, no caption.")
    return Answer(text)
