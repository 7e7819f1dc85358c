"""Scores of a local CLIP: how beautiful a clip is, what it shows, and how well its caption says that.

Nothing is fetched: the model is a folder in the layout of `transformers`, its weights safetensors.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import cv2
import numpy as np
import polars as pl

from components.clip_model import Features, ModelUnusable, image_features, load_clip, text_features
from components.config import ClipModelConfig
from components.curate.scores.base import Columns, Look, Samples, ScoreInfo, Scorer
from components.media import Frames

POSITIONS = (0.1, 0.5, 0.9)
MIDDLE = 1
KEPT_FRAMES = 16
"""Where a clip ends is known only then: so many frames, evenly spread, wait for it."""


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
        self._model = load_clip(config.folder, "clip.folder")
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
    model = load_clip(config.folder, "clip.folder")
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


def _square(look: Look, side_px: int) -> Frames:
    """The middle of the picture, (side, side, 3) RGB."""
    height, width = look.picture.size
    scale = side_px / min(height, width)
    size = max(side_px, round(height * scale)), max(side_px, round(width * scale))
    bgr = look.picture.bgr(size, smooth=True)
    top, left = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return np.asarray(cv2.cvtColor(bgr[top : top + side_px, left : left + side_px], cv2.COLOR_BGR2RGB), np.uint8)
