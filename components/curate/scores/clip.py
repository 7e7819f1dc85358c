"""Scores of a local CLIP: how beautiful a clip is, what it shows, and how well its caption says that.

Nothing is fetched: the model is a folder in the layout of `transformers`, its weights safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.config import ClipModelConfig
from components.curate.scores.base import Columns, Look, Samples, ScoreInfo, Scorer
from components.errors import KinoflowError, missing_package
from components.media import Frames

POSITIONS = (0.1, 0.5, 0.9)
MIDDLE = 1
KEPT_FRAMES = 16
"""Where a clip ends is known only then: so many frames, evenly spread, wait for it."""
MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
STD_RGB = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP preprocessing."""

Features = NDArray[np.float32]


class ModelUnusable(KinoflowError):  # noqa: N818  # what it is
    """The configured folder or weights cannot be used: no clip can be measured."""


class ClipFeatures(Scorer):
    """Three frames of every clip through the image half of CLIP."""

    columns: ClassVar = (
        ScoreInfo(
            "aesthetic",
            "1",
            "LAION's aesthetic predictor on CLIP's features, mean over the frames nearest to 0.1, 0.5 and 0.9 of the "
            "clip out of at most sixteen; none without its weights.",
            "points, about 1 to 10",
        ),
        ScoreInfo("embedding", "1", "CLIP's features of the middle frame, of length 1, as float16."),
    )

    def __init__(self, config: ClipModelConfig) -> None:
        self._config = config
        self._model = load_clip(config.folder)
        self._head = load_head(config.aesthetic_weights) if config.aesthetic_weights is not None else None
        self._stride = 1
        self._frames: Samples[Frames] = Samples()

    def wants(self, place: int) -> bool:
        """See `Scorer`."""
        if place == 0:
            self._stride = 1
        return place % self._stride == 0

    def add(self, look: Look, place: int) -> None:
        """See `Scorer`."""
        self._frames[look.number] = _square(look, self._model.config.vision_config.image_size)
        kept = self._frames.within(look.number - place, look.number + 1)
        if len(kept) > KEPT_FRAMES:
            self._stride *= 2
            self._frames.keep(lambda number: (number - look.number + place) % self._stride == 0)

    def summary(self, start: int, end: int, last: Look | None) -> Columns:
        """See `Scorer`."""
        kept = self._frames.within(start, end)
        if not kept:
            return {"aesthetic": None, "embedding": None}
        wanted = [start + int(position * (end - start)) for position in POSITIONS]
        frames = [kept[min(kept, key=lambda number, place=place: abs(number - place))] for place in wanted]  # type: ignore[misc]
        features = image_features(self._model, np.stack(frames))
        aesthetic = None if self._head is None else float(np.mean(apply_head(self._head, features)))
        return {"aesthetic": aesthetic, "embedding": features[MIDDLE].astype(np.float16).tobytes()}

    def forget(self, before: int) -> None:
        """See `Scorer`."""
        self._frames.forget(before)


TEXT_MATCH = ScoreInfo(
    "text_match",
    "1",
    "Cosine between CLIP's features of the middle frame and of the caption as the table has it, found or written by a "
    "model, times the model's scale, as Open-Sora 1.1.",
)


def with_text_match(clips: pl.DataFrame, config: ClipModelConfig | None) -> pl.DataFrame:
    """Clips with `text_match` filled where it is not yet and there are an embedding and a caption."""
    if config is None:
        return clips
    model = load_clip(config.folder)
    scale = float(model.logit_scale.exp())
    open_ = pl.col("text_match").is_null() & pl.col("embedding").is_not_null()
    captions = clips.filter(open_ & pl.col("caption").is_not_null())["caption"].unique()
    texts = {caption: text_features(model, config.folder, caption) for caption in captions}
    matches = [
        match
        if match is not None or embedding is None or caption is None
        else scale * float(np.frombuffer(embedding, np.float16).astype(np.float32) @ texts[caption])
        for match, embedding, caption in clips.select("text_match", "embedding", "caption").iter_rows()
    ]
    return clips.with_columns(pl.Series("text_match", matches, dtype=pl.Float64))


@cache
def load_clip(folder: str) -> Any:
    """The model of a local folder, for inference.

    Raises:
        ModelUnusable: it is no such folder, or torch is not installed here.
    """
    try:
        from transformers import CLIPModel
    except ModuleNotFoundError as error:
        raise ModelUnusable(missing_package(error)) from error
    if not (Path(folder) / "config.json").is_file():
        raise ModelUnusable(f"clip.folder {folder} holds no config.json; name a local folder with a CLIP model.")
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"clip.folder {folder} is no CLIP model with safetensors weights ({error}).") from error
    return model.float().eval().requires_grad_(False)


@cache
def load_head(path: str) -> tuple[tuple[Features, Features], ...]:
    """Weights and biases of the aesthetic predictor's layers, in order; they follow each other without activations.

    Raises:
        ModelUnusable: it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelUnusable(f"clip.aesthetic_weights {path} is no readable safetensors file ({error}).") from error
    names = sorted((name for name in tensors if name.endswith("weight")), key=lambda name: int(name.split(".")[-2]))
    return tuple((tensors[name], tensors[name.removesuffix("weight") + "bias"]) for name in names)


def apply_head(layers: tuple[tuple[Features, Features], ...], features: Features) -> Features:
    """Points (N,) of features (N, width)."""
    for weight, bias in layers:
        features = features @ weight.T + bias
    return features[:, 0]


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


def _square(look: Look, side_px: int) -> Frames:
    """The middle of the picture, (side, side, 3) RGB."""
    height, width = look.picture.size
    scale = side_px / min(height, width)
    size = max(side_px, round(height * scale)), max(side_px, round(width * scale))
    bgr = look.picture.bgr(size, smooth=True)
    top, left = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return np.asarray(cv2.cvtColor(bgr[top : top + side_px, left : left + side_px], cv2.COLOR_BGR2RGB), np.uint8)
