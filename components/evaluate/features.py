"""How far generated clips lie from real ones, and from their texts, in the features of an extractor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from components.clip_model import ModelUnusable, image_features, load_clip, text_features
from components.intervals import Score, mean_score, statistic_score
from components.media import Frames
from components.shapes.measure import measure

Features = NDArray[np.float64]

FRAMES_SEEN = 4
"""Evenly spread frames of a clip that a model looks at."""
KEY = "feature_folder"


class Extractor(Protocol):
    """Turns clips into features."""

    def __call__(self, clips: Sequence[Frames]) -> Features:
        """(N, width) of clips (T, H, W, 3) uint8."""


def measured_shapes(clips: Sequence[Frames]) -> Features:
    """What the made world's checker measures, (N, 7): how sure it is of four things, the way gone, frames seen."""
    rows = []
    for frames in clips:
        seen = measure(frames)
        rows.append(
            [
                seen.colour_confidence, seen.shape_confidence, seen.motion_confidence, seen.background_confidence,
                *seen.travel, seen.frames_seen,
            ]
        )  # fmt: skip
    return np.array(rows, np.float64)


class ImageModel:
    """An image model of transformers in a local folder: the mean of its features over four frames of a clip.

    Raises:
        ModelUnusable: the folder holds no such model.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.is_clip = _model_type(folder) == "clip"
        self._model = load_clip(folder, KEY) if self.is_clip else _load_model(folder)
        vision = self._model.config.vision_config if self.is_clip else self._model.config
        side = getattr(vision, "image_size", None)
        if not isinstance(side, int):
            raise ModelUnusable(f"{KEY} {folder} does not say how large its pictures are (image_size in config.json).")
        self._side_px = side

    def __call__(self, clips: Sequence[Frames]) -> Features:
        """See `Extractor`."""
        return np.stack([self._frames(frames).mean(axis=0) for frames in clips])

    def text_match(self, clips: Sequence[Frames], prompts: Sequence[str]) -> list[float]:
        """Cosine of CLIP's features of text and frames, times the model's scale, mean over frames; one per clip."""
        scale = float(self._model.logit_scale.exp())
        texts = {prompt: text_features(self._model, self._folder, prompt) for prompt in dict.fromkeys(prompts)}
        return [
            scale * float((self._frames(frames) @ texts[prompt]).mean())
            for frames, prompt in zip(clips, prompts, strict=True)
        ]

    def _frames(self, frames: Frames) -> Features:
        """(frames seen, width)."""
        numbers = np.unique(np.linspace(0, len(frames) - 1, min(FRAMES_SEEN, len(frames))).round().astype(int))
        pictures = np.stack([_squared(frames[number], self._side_px) for number in numbers])
        found = image_features(self._model, pictures) if self.is_clip else _pooled(self._model, self._folder, pictures)
        return np.asarray(found, np.float64)


def frechet_distance(features: Features, others: Features) -> float:
    """Squared Frechet distance of the normal distributions of two samples (Dowson and Landau 1982; Heusel et al. 2017).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The last trace is the sum of singular values of A B^T, where A and B
    are the centred samples over the roots of their sizes less one; their triangular factors have the same ones and are
    no larger than the width.

    Args:
        features: (n, width), n at least 2.
        others: (m, width), m at least 2.
    """
    first, second = features.mean(axis=0), others.mean(axis=0)
    a = (features - first) / np.sqrt(len(features) - 1)
    b = (others - second) / np.sqrt(len(others) - 1)
    first_factor: Features = np.asarray(np.linalg.qr(a, mode="r"), np.float64)
    second_factor: Features = np.asarray(np.linalg.qr(b, mode="r"), np.float64)
    crossed = float(np.linalg.svd(first_factor @ second_factor.T, compute_uv=False).sum())
    between = float(((first - second) ** 2).sum())
    return max(0.0, between + float((a**2).sum() + (b**2).sum()) - 2 * crossed)


def compared(
    extractor: Extractor, clips: Sequence[Frames], prompts: Sequence[str], real: Features | None
) -> dict[str, Score]:
    """Scores of the clips of one task: `frechet_distance` to real ones, and `text_match` where a CLIP measures.

    Args:
        extractor: of the features.
        clips: generated, (T, H, W, 3) uint8 each.
        prompts: one per clip.
        real: (m, width) features of real clips; no distance without two of them.
    """
    scores = {}
    if real is not None and len(real) > 1 and len(clips) > 1:
        features = extractor(clips)
        scores["frechet_distance"] = statistic_score(
            lambda rows, others: frechet_distance(features[rows], real[others]), (len(features), len(real))
        )
    if isinstance(extractor, ImageModel) and extractor.is_clip:
        scores["text_match"] = mean_score(extractor.text_match(clips, prompts))
    return scores


def _model_type(folder: str) -> str:
    try:
        told = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{KEY} {folder} holds no readable config.json; name a local folder of a model.") from error
    return str(told.get("model_type", "")) if isinstance(told, dict) else ""


@cache
def _load_model(folder: str) -> Any:
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"{KEY} {folder} is no image model with safetensors weights ({error}).") from error
    return model.float().eval().requires_grad_(False)


def _pooled(model: Any, folder: str, pictures: Frames) -> Features:
    """Pooled features (N, width): the model's own, or the mean over its tokens; pixels as its folder says."""
    import torch

    mean, std = _normalisation(folder)
    pixels = (pictures.astype(np.float32) / 255 - mean) / std
    with torch.inference_mode():
        output = model(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        pooled = output.last_hidden_state.flatten(2).mean(dim=-1 if output.last_hidden_state.ndim == 4 else 1)
    return np.asarray(pooled.flatten(1).numpy(), np.float64)


@cache
def _normalisation(folder: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and spread of each channel that the model was trained with; a half where the folder does not say."""
    path = Path(folder) / "preprocessor_config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    half = [0.5] * 3
    return np.array(told.get("image_mean", half), np.float32), np.array(told.get("image_std", half), np.float32)


def _squared(frame: Frames, side_px: int) -> Frames:
    """The middle of a picture, (side, side, 3)."""
    height, width = frame.shape[:2]
    scale = side_px / min(height, width)
    size = max(side_px, round(width * scale)), max(side_px, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    large = cv2.resize(frame, size, interpolation=method)
    top, left = (large.shape[0] - side_px) // 2, (large.shape[1] - side_px) // 2
    return np.asarray(large[top : top + side_px, left : left + side_px], np.uint8)
