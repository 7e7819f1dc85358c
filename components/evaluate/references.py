"""Clips that tasks are given frames of: drawn fresh from the made world, or held-out ones of the data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from components import manifest, store, tables, video
from components.config import EvaluateConfig
from components.leakage import check_leakage
from components.media import Frames
from components.shapes.plan import SHOT_FRAMES
from components.shapes.world import Scene, draw_staging, render
from components.takedown import TakenDown


@dataclass(frozen=True)
class Clip:
    """A clip and what it shows.

    Attributes:
        caption: of the whole clip.
        frames: (T, H, W, 3) uint8, at the size of the samples.
    """

    caption: str
    frames: Frames


def made_clips(
    scenes: Sequence[Scene], seed: int, num_frames: int, config: EvaluateConfig, *, before: int = 0, after: int = 0
) -> list[Clip]:
    """Windows of freshly drawn shots, as training cuts them: so many frames at `config.frame_interval`.

    Args:
        scenes: one clip for each.
        seed: decides how each is staged and where the window begins.
        num_frames: of every clip.
        config: sizes and interval.
        before, after: further frames, at the same interval, that the shot has before and after the window.
    """
    rng = random.Random(f"clips {seed}")
    clips = []
    for scene in scenes:
        span = (before + num_frames + after - 1) * config.frame_interval + 1
        length = max(span, rng.randint(*SHOT_FRAMES))
        staging = draw_staging(rng, moving=scene.motion is not None)
        start = rng.randint(0, length - span)
        frames = render(scene, staging, length, config.height, config.width)[start:]
        clips.append(
            Clip(scene.caption, frames[: (num_frames - 1) * config.frame_interval + 1 : config.frame_interval])
        )
    return clips


class HeldOut:
    """Kept clips of the held-out sources, without those that are taken down; all kept ones where none is held out.

    Args:
        config: sizes and interval.
        clips: URI of the curate output.
        objects: URI of the source videos.
        scratch: for local copies.
        taken: clips whose captions and frames are not used.
    """

    def __init__(self, config: EvaluateConfig, clips: str, objects: str, scratch: Path, taken: TakenDown) -> None:
        self._config, self._objects, self._scratch = config, objects, scratch
        manifest.fetch(clips, scratch / "clips", ["clips.parquet"])
        table = tables.read(scratch / "clips" / "clips.parquet", tables.CLIPS)
        check_leakage(table)
        kept = table.filter((pl.col("outcome") == "kept") & ~pl.col("clip_id").is_in(list(taken.ids))).sort("clip_id")
        held_out = kept.filter(pl.col("split") == "eval")
        chosen = held_out if held_out.height else kept
        self._rows = chosen.filter(pl.col("caption").is_not_null())

    @property
    def captions(self) -> list[str]:
        """Different captions, in the order of their clips."""
        return list(dict.fromkeys(self._rows["caption"].to_list()))

    def first_frames(self, count: int) -> list[Clip]:
        """Clips of one frame: the first of at most so many clips and pictures."""
        return [self._read(row, 1) for row in self._rows.head(count).to_dicts()]

    def clips(self, count: int, num_frames: int) -> list[Clip]:
        """The first frames of at most so many clips that are long enough."""
        span = (num_frames - 1) * self._config.frame_interval + 1
        long_enough = self._rows.filter((pl.col("media") == "video") & (pl.col("num_frames") >= span))
        return [self._read(row, num_frames) for row in long_enough.head(count).to_dicts()]

    def _read(self, row: dict[str, object], num_frames: int) -> Clip:
        key = store.safe_key(str(row["object_key"]))
        path = self._scratch / "objects" / key
        if not path.exists():
            store.download(store.join(self._objects, key), path)
        start = row["start_frame"] if isinstance(row["start_frame"], int) else 0
        wanted = [start + index * self._config.frame_interval for index in range(num_frames)]
        frames = video.resize_crop(
            video.read_frames(path, wanted), self._config.height, self._config.width, is_image=row["media"] == "image"
        )
        return Clip(str(row["caption"]), np.asarray(frames))
