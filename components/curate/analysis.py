"""One source file, decoded once: shots, scores and captions become rows of the `clips` table, not yet decided."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from components import store
from components.caption import clean_caption
from components.clip_model import ModelUnusable
from components.config import CaptionConfig, CurateConfig
from components.curate.clips import ClipMeasurer, MeasuredClip
from components.media import UnreadableMedia
from components.stored_media import DamagedObject, local_object
from components.video import decode_stacks

logger = logging.getLogger(__name__)

Row = dict[str, object]

DEFAULT_FPS = 24.0
"""Open-Sora 1.1's for a video that names no frame rate."""
CARRIED = ("source_id", "path", "content_sha256", "object_key", "source", "licence", "attribution", "media")
MIN_CAPTION_OVERLAP = 0.5


@dataclass(frozen=True)
class Task:
    """One ingested file: its row of the `videos` table, where objects lie, and how to look at it."""

    video: Row
    objects: str
    config: CurateConfig


def analyse(task: Task) -> list[Row]:
    """Rows of all shots of one file, or one rejected row when it gives no frame.

    Shots that lie wholly before the place where a file is damaged are as good as any; the one that runs into the
    damage is dropped.
    """
    measurer = ClipMeasurer(task.config, _fps(task.video))
    clips: list[MeasuredClip] = []
    damage: str | None = None
    try:
        video = task.video
        with local_object(task.objects, str(video["object_key"]), str(video["content_sha256"])) as path:
            for stack in decode_stacks(path, measurer.size_of):
                clips += measurer.add(stack)
    except UnreadableMedia as error:
        if measurer.num_frames == 0:
            return [rejected_row(task.video, error.reason, f"{error.detail[:1].upper()}{error.detail[1:]}.")]
        damage = f"The file is damaged in this shot: {error.detail}."
    except store.ObjectMissing as error:
        return [rejected_row(task.video, "missing_object", str(error))]
    except DamagedObject as error:
        return [rejected_row(task.video, "damaged_object", str(error))]
    clips += measurer.finish()
    rows = [_clip_row(task, index, clip) for index, clip in enumerate(clips)]
    if damage is not None:
        rows[-1] |= {"outcome": "dropped", "reason": "decode_error", "detail": damage}
    return rows


def analyse_safely(task: Task) -> list[Row]:
    """`analyse`, with whatever a decoder or a measure raises on one file as that file's reason."""
    try:
        return analyse(task)
    except (store.StoreError, ModelUnusable):
        raise
    except Exception as error:
        logger.exception("analysing %r failed", task.video["path"])
        return [rejected_row(task.video, "unreadable", f"Looking at its frames failed ({type(error).__name__}).")]


def crashed_row(task: Task) -> list[Row]:
    """The row of a file whose decoder took its process down."""
    return [rejected_row(task.video, "decoder_crashed", "Decoding it ended the process; the file is left out.")]


def rejected_row(video: Row, reason: str, detail: str) -> Row:
    """The row of a file that gives no clips."""
    return {name: video[name] for name in CARRIED} | {
        "clip_id": video["source_id"],
        "shot_index": -1,
        "outcome": "rejected",
        "reason": reason,
        "detail": detail,
    }


def _clip_row(task: Task, index: int, clip: MeasuredClip) -> Row:
    start, end = clip.start, clip.end
    video, fps = task.video, _fps(task.video)
    is_video = video["media"] == "video"
    start_s, end_s = (start / fps, end / fps) if is_video else (0.0, 0.0)
    caption = caption_of(video, start_s, end_s, task.config.captions)
    return {name: video[name] for name in CARRIED} | clip.scores | {
        "clip_id": f"{video['source_id']}-{index:04d}",
        "shot_index": index,
        "start_s": start_s,
        "end_s": end_s,
        "start_frame": start,
        "end_frame": end,
        "num_frames": end - start,
        "fps": fps if is_video else None,
        "width": video["width"],
        "height": video["height"],
        "caption": caption,
        "caption_origin": video["caption_origin"] if caption is not None else None,
    }  # fmt: skip


def caption_of(video: Row, start_s: float, end_s: float, config: CaptionConfig) -> str | None:
    """The caption of one shot, cleaned: of the span that overlaps it most, else of the whole file.

    A span must cover half of the shot: a neighbour's caption that reaches in by a few frames is not this shot's.
    """
    text: object = video["caption"]
    if video["caption_shots"]:
        spans = json.loads(str(video["caption_shots"]))
        overlaps = [min(end_s, span["end_s"]) - max(start_s, span["start_s"]) for span in spans]
        best = max(range(len(spans)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= MIN_CAPTION_OVERLAP * (end_s - start_s):
            text = spans[best]["caption"]
    if text is None:
        return None
    caption = clean_caption(str(text)) if config.clean else str(text).strip()
    return caption or None


def _fps(video: Row) -> float:
    fps = video["fps"]
    return float(fps) if isinstance(fps, float) and fps > 0 else DEFAULT_FPS
