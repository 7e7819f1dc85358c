"""Plans written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from components import tables
from components.plan_file import PlanFile, PlannedClips, Shape
from components.texts import Texts

SAME: dict[str, Any] = {
    "epoch": 0, "resolution": "32px", "aspect": "1.00", "num_frames": 2, "height": 32, "width": 32, "start_frame": 0,
    "fps": 24.0, "caption": "",
}  # fmt: skip


def plan_of(batches: Sequence[Sequence[Mapping[str, Any]]], frame_interval: int = 1) -> PlanFile:
    """A plan of these samples, batch after batch.

    Args:
        batches: Samples as clip_id and whatever differs from `SAME`; the first of a batch gives its shape and epoch.
        frame_interval: Source frames per frame of a sample.
    """
    samples = [{**SAME, **sample} for batch in batches for sample in batch]
    firsts = [{**SAME, **batch[0]} for batch in batches]
    shapes = list(dict.fromkeys(Shape(*(first[name] for name in Shape._fields)) for first in firsts))
    clips = {sample["clip_id"]: sample for sample in samples}
    places = {clip_id: place for place, clip_id in enumerate(clips)}
    digests = [tables.caption_digest(clip["caption"]) for clip in clips.values()]
    words = np.array([(int(digest[:16], 16), int(digest[16:], 16)) for digest in digests], dtype=np.uint64)
    told = PlannedClips(
        Texts.of(pl.Series(list(clips), dtype=pl.String)),
        words.reshape(-1, 2),
        np.array([clip["fps"] for clip in clips.values()], dtype=np.float32),
    )
    return PlanFile.build(
        shapes,
        told,
        frame_interval=frame_interval,
        sizes=np.array([len(batch) for batch in batches], dtype=np.int64),
        bucket=np.array([shapes.index(Shape(*(f[name] for name in Shape._fields))) for f in firsts], dtype=np.int32),
        epoch=np.array([first["epoch"] for first in firsts], dtype=np.int32),
        clip=np.array([places[sample["clip_id"]] for sample in samples], dtype=np.int32),
        start_frame=np.array([sample["start_frame"] for sample in samples], dtype=np.int32),
    )
