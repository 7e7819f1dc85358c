"""What is told of a packed clip: its JSON member, and its row of the table form that Open-Sora 1.1 trains from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from components import tables
from components.packed import member_name

TOLD = (
    "caption", "caption_origin", "caption_model", "source", "licence", "attribution", "extra", "path", "source_id",
    "content_sha256", "media", "split", "start_s", "end_s", "start_frame", "end_frame", "near_duplicate_group",
    "semantic_group",
)  # fmt: skip
"""Columns of the clips table that go into the JSON member, where the table has them."""
_NO_SCORES = {"start_s", "end_s", "fps"}
SCORES = (
    *(name for name, kind in tables.CLIPS.items() if kind == pl.Float64 and name not in _NO_SCORES),
    "camera_motion",
)
"""Columns that go into `scores` of the JSON member, where the table has them."""
OPEN_SORA_SCORES = {"aes": "aesthetic", "flow": "flow", "match": "text_match", "cmotion": "camera_motion"}
"""Open-Sora 1.1's names of scores that are measured by its definitions, and ours."""


def document_of(clip: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON member of a clip.

    Args:
        clip: Its row of the clips table.
        columns: Its columns of `components.packed.INDEX`.

    Returns:
        Caption, origin, span in the source, scores, and what the packed file holds; numbers are finite or null.
    """
    told = {name: _plain(clip[name]) for name in TOLD if name in clip}
    if isinstance(told.get("extra"), str):
        told["extra"] = json.loads(told["extra"])
    packed = {name: columns[name] for name in ("method", "num_frames", "height", "width", "fps")}
    scores = {name: _plain(clip[name]) for name in SCORES if name in clip}
    return {"clip_id": clip["clip_id"], **told, "scores": scores, "packed": packed}


def open_sora_table(index: pl.DataFrame, clips: pl.DataFrame) -> pl.DataFrame:
    """The packed clips as Open-Sora 1.1 lists them, for whoever unpacks the shards into one folder.

    Args:
        index: With the columns of `components.packed.INDEX`.
        clips: The clips table.

    Returns:
        path (of the unpacked file), text, num_frames, height, width, aspect_ratio (height / width), resolution
        (height x width), fps (null for pictures), the scores that the table has by Open-Sora's definitions, and clip_id
        and split, which Open-Sora does not read.
    """
    packed = index.filter(pl.col("outcome") == "packed").join(
        clips.drop("num_frames", "height", "width", "fps", "outcome", "reason", "detail"), on="clip_id", how="left"
    )
    names = [member_name(clip_id, suffix) for clip_id, suffix in packed.select("clip_id", "suffix").iter_rows()]
    height, width = pl.col("height").cast(pl.Int64), pl.col("width").cast(pl.Int64)
    scores = [pl.col(ours).alias(theirs) for theirs, ours in OPEN_SORA_SCORES.items() if ours in packed.columns]
    return packed.select(
        pl.Series("path", names, dtype=pl.String),
        pl.col("caption").fill_null("").alias("text"),
        "num_frames",
        "height",
        "width",
        (height / width).alias("aspect_ratio"),
        (height * width).alias("resolution"),
        "fps",
        *scores,
        "clip_id",
        "split",
    )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
