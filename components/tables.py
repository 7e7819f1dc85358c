"""The tables that stages meet through: their declared columns, and Parquet in and out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from components.errors import KinoflowError

VIDEOS: dict[str, pl.DataType | type[pl.DataType]] = {
    "source_id": pl.String,  # SHA-256 (16 hex digits) of the path inside the source: names the row
    "path": pl.String,  # as given, relative to the source where possible
    "content_sha256": pl.String,  # null when the file could not be read
    "object_key": pl.String,  # "ab/abcd….mp4" below the objects prefix; null when rejected
    "source": pl.String,
    "licence": pl.String,
    "attribution": pl.String,  # whom to name; null when nobody says
    "media": pl.String,  # "video" | "image"
    "size_bytes": pl.Int64,
    "container": pl.String,
    "codec": pl.String,
    "pix_fmt": pl.String,
    "width": pl.Int32,  # after rotation
    "height": pl.Int32,
    "rotation_deg": pl.Int32,
    "fps": pl.Float64,
    "num_frames_header": pl.Int64,  # null when the header does not say
    "duration_s": pl.Float64,
    "caption": pl.String,  # of the whole file, as found
    "caption_shots": pl.String,  # JSON list of {"start_s", "end_s", "caption"}, as found in a sidecar
    "caption_origin": pl.String,  # "sidecar_txt" | "sidecar_json" | "table"
    "caption_note": pl.String,  # one sentence when a caption was cut or could not be used
    "extra": pl.String,  # JSON object of the other columns of the table that named the file
    "outcome": pl.String,  # "ingested" | "rejected"
    "reason": pl.String,  # slug, null when ingested
    "detail": pl.String,  # one sentence, null when ingested
}

CLIPS: dict[str, pl.DataType | type[pl.DataType]] = {
    "clip_id": pl.String,  # "<source_id>-0003"; "<source_id>" alone for a rejected file
    "source_id": pl.String,
    "path": pl.String,
    "content_sha256": pl.String,
    "object_key": pl.String,
    "source": pl.String,
    "licence": pl.String,
    "attribution": pl.String,
    "media": pl.String,
    "shot_index": pl.Int32,  # -1 for a rejected file
    "start_s": pl.Float64,
    "end_s": pl.Float64,
    "start_frame": pl.Int32,  # in decoded frames of the source
    "end_frame": pl.Int32,  # exclusive
    "num_frames": pl.Int32,  # decoded
    "fps": pl.Float64,
    "width": pl.Int32,  # after rotation
    "height": pl.Int32,
    "caption": pl.String,  # cleaned
    "caption_origin": pl.String,  # as in `VIDEOS`, or "model"
    "caption_model": pl.String,  # which model wrote it; null for captions that were found
    "caption_sha256": pl.String,  # `caption_digest` of the caption: equal captions share their text features
    "motion": pl.Float64,  # what each score means: components.curate.scores.SCORES
    "flow": pl.Float64,
    "camera_motion": pl.String,
    "sharpness": pl.Float64,
    "brightness": pl.Float64,
    "contrast": pl.Float64,
    "black_share": pl.Float64,
    "frozen_share": pl.Float64,
    "letterbox_share": pl.Float64,
    "text_share": pl.Float64,
    "text_detector": pl.String,  # which trained one measured text_share; null for the classical one
    "aesthetic": pl.Float64,  # this and the next two: null without a local CLIP
    "text_match": pl.Float64,
    "embedding": pl.Binary,  # float16, little-endian
    "phash": pl.Binary,  # what near-duplicates are found by, see components.curate.fingerprint
    "near_duplicate_group": pl.String,  # smallest clip id of those that look the same; null when alone
    "semantic_group": pl.String,  # the same of those that show the same things; null when alone or not asked for
    "near_duplicate_of": pl.String,  # clip id of the one that is kept, of either group
    "split": pl.String,  # "train" | "eval"; null unless kept
    "outcome": pl.String,  # "kept" | "dropped" | "rejected"
    "reason": pl.String,  # slug, null when kept
    "detail": pl.String,
}

ADDED = ("text_detector", "semantic_group")
"""Columns that tables of earlier versions lack; they read as null there."""

PLAN: dict[str, pl.DataType | type[pl.DataType]] = {
    "batch": pl.Int32,  # global index: rank r of R takes batch i*R + r at iteration i
    "slot": pl.Int32,
    "epoch": pl.Int32,
    "clip_id": pl.String,
    "resolution": pl.String,
    "aspect": pl.String,
    "num_frames": pl.Int32,
    "height": pl.Int32,
    "width": pl.Int32,
    "start_frame": pl.Int32,  # first frame of the window, counted from the clip's start
    "fps": pl.Float32,
    "latent_key": pl.String,
    "text_key": pl.String,
}


def frame(rows: list[dict[str, object]], schema: dict[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """A table of exactly the schema's columns; a row lacking one holds null there."""
    unknown = sorted({key for row in rows for key in row} - set(schema))
    if unknown:
        raise ValueError(f"columns not in the schema: {', '.join(unknown)}")
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def caption_digest(caption: str) -> str:
    """SHA-256 (32 hex digits) of a caption's text."""
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def with_caption_digests(clips: pl.DataFrame) -> pl.DataFrame:
    """Clips with `caption_sha256` filled; no caption counts as an empty one."""
    digests = [caption_digest(caption or "") for caption in clips["caption"]]
    return clips.with_columns(pl.Series("caption_sha256", digests, dtype=pl.String))


def write(table: pl.DataFrame, path: Path, schema: dict[str, pl.DataType | type[pl.DataType]]) -> None:
    """Write a table whose columns and types are exactly the schema's; the same rows give the same bytes."""
    if dict(table.schema) != dict(pl.Schema(schema)):
        raise ValueError(f"table has {dict(table.schema)}, the schema says {dict(pl.Schema(schema))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, compression="zstd", statistics=True)


def read(path: Path, schema: dict[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Read a table and check that its columns and types are the schema's."""
    try:
        return scan(path, schema).select(list(schema)).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise KinoflowError(f"{path} is not a readable Parquet table: {error}.") from error


def scan(path: Path, schema: dict[str, pl.DataType | type[pl.DataType]]) -> pl.LazyFrame:
    """A table to read in part, its columns and types checked to be the schema's."""
    try:
        table = pl.scan_parquet(path)
        found = table.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise KinoflowError(f"{path} is not a readable Parquet table: {error}.") from error
    absent = [name for name in ADDED if name in schema and name not in found]
    wrong = [name for name, kind in pl.Schema(schema).items() if found.get(name) != kind and name not in absent]
    if wrong or len(found) + len(absent) != len(schema):
        raise KinoflowError(f"{path} does not have the expected columns (differs in {', '.join(wrong) or 'extra'}).")
    return table.with_columns(pl.lit(None, schema[name]).alias(name) for name in absent)
