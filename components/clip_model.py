"""A local CLIP: features of pictures and texts. Nothing is fetched: the model is a folder as transformers writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import KinoflowError, missing_package
from components.media import Frames

MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
STD_RGB = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP preprocessing."""

Features = NDArray[np.float32]


class ModelUnusable(KinoflowError):  # noqa: N818  # what it is
    """The configured folder or weights cannot be used: no clip can be measured."""


@cache
def load_clip(folder: str, key: str) -> Any:
    """The model of a local folder, for inference; `key` is where the config names the folder.

    Raises:
        ModelUnusable: it is no such folder, or torch is not installed here.
    """
    try:
        from transformers import CLIPModel
    except ModuleNotFoundError as error:
        raise ModelUnusable(missing_package(error)) from error
    if not (Path(folder) / "config.json").is_file():
        raise ModelUnusable(f"{key} {folder} holds no config.json; name a local folder with a CLIP model.")
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"{key} {folder} is no CLIP model with safetensors weights ({error}).") from error
    return model.float().eval().requires_grad_(False)


def image_features(model: Any, frames: Frames) -> Features:
    """Features (N, width) of length 1 of pictures (N, H, W, 3) uint8 RGB at the model's size."""
    import torch

    pixels = (frames.astype(np.float32) / 255 - np.array(MEAN_RGB, np.float32)) / np.array(STD_RGB, np.float32)
    with torch.inference_mode(), _one_thread():
        vision = model.vision_model(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        return _unit(model.visual_projection(vision.pooler_output).numpy())


def text_features(model: Any, folder: str, caption: str) -> Features:
    """Features (width,) of length 1; what is too long for the model is cut off."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(caption, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode(), _one_thread():
        text = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        features: Features = _unit(model.text_projection(text.pooler_output).numpy())[0]
        return features


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums must not depend on how many cores a machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _unit(features: Features) -> Features:
    return np.asarray(features / np.linalg.norm(features, axis=-1, keepdims=True), np.float32)
