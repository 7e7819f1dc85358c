"""The kept clips of one source, cut: its second and last reading."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import store
from components.cutting import Cut, copy_cuts, encode_cuts
from components.media import UnreadableMedia, open_still
from components.pack_config import PackConfig
from components.packed import IMAGE_SUFFIXES, VIDEO_SUFFIX, member_name
from components.stored_media import DamagedObject, local_object

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SourceTask:
    """Clips to cut from one source.

    Attributes:
        clips: Rows of the clips table, all of one source.
        objects: URI prefix of the sources.
        config: How they are cut.
        folder: Receives the cut clips.
    """

    clips: Sequence[Row]
    objects: str
    config: PackConfig
    folder: Path


@dataclass(frozen=True)
class Piece:
    """What became of one clip.

    Attributes:
        clip_id: Of the clip.
        path: File of the cut clip; None when it failed.
        columns: Its columns of `components.packed.INDEX` so far.
    """

    clip_id: str
    path: Path | None
    columns: dict[str, Any]


def cut_source(task: SourceTask) -> list[Piece]:
    """Cut all clips of one source; whatever is wrong with it is the reason of its clips."""
    task.folder.mkdir(parents=True, exist_ok=True)
    try:
        row = task.clips[0]
        with local_object(task.objects, str(row["object_key"]), str(row["content_sha256"]), task.folder) as path:
            if task.clips[0]["media"] == "image":
                return [_picture(task, row, path) for row in task.clips]
            return _videos(task, path)
    except store.ObjectMissing as error:
        return _all_failed(task, "missing_object", str(error))
    except store.StoreError:
        raise
    except DamagedObject as error:
        return _all_failed(task, "damaged_object", str(error))
    except UnreadableMedia as error:
        return _all_failed(task, error.reason, _sentence(error))
    except Exception as error:  # a decoder may fail in any way on hostile bytes: reasons of clips, not the end
        logger.exception("cutting %r failed", task.clips[0]["path"])
        return _all_failed(task, "unreadable", f"Cutting it failed ({type(error).__name__}).")


def crashed_source(task: SourceTask) -> list[Piece]:
    """The clips of a source whose decoder took its process down."""
    return _all_failed(task, "decoder_crashed", "Cutting it ended the process; the clip is left out.")


def failed(clip_id: str, reason: str, detail: str) -> Piece:
    """A clip that could not be cut."""
    return Piece(clip_id, None, {"outcome": "failed", "reason": reason, "detail": detail})


def _picture(task: SourceTask, row: Row, path: Path) -> Piece:
    """The file as it is, under a name that says what it holds."""
    clip_id = str(row["clip_id"])
    still = open_still(path)
    if still is None:
        return failed(clip_id, "not_media", "The file is no picture any more.")
    with still:
        suffix = IMAGE_SUFFIXES[(still.format or "").lower()]
    out = task.folder / member_name(clip_id, suffix)
    shutil.copyfile(path, out)
    return Piece(clip_id, out, _columns("as_is", suffix, 1, int(row["height"]), int(row["width"]), None))


def _videos(task: SourceTask, path: Path) -> list[Piece]:
    config = task.config
    cuts = [planned_cut(row, config, task.folder) for row in task.clips]
    copied = {cut.out for cut in copy_cuts(path, cuts)} if config.stream_copy else set()
    damages = encode_cuts(path, [cut for cut in cuts if cut.out not in copied], codec=config.codec, crf=config.crf)
    pieces = []
    for row, cut in zip(task.clips, cuts, strict=True):
        if (damage := damages.get(cut.out)) is not None:
            pieces.append(failed(str(row["clip_id"]), damage.reason, _sentence(damage)))
            continue
        height, width = cut.size or (int(row["height"]), int(row["width"]))
        method = "copy" if cut.out in copied else "encode"
        columns = _columns(method, VIDEO_SUFFIX, cut.num_out_frames, height, width, cut.out_fps or cut.fps)
        pieces.append(Piece(str(row["clip_id"]), cut.out, columns))
    return pieces


def planned_cut(row: Row, config: PackConfig, folder: Path) -> Cut:
    """How one video clip is cut: at its own size and rate where the config asks for nothing else.

    Args:
        row: Of the clips table.
        config: Limits of rate and size.
        folder: Of the file.
    """
    height, width, fps = int(row["height"]), int(row["width"]), float(row["fps"])
    size, out_fps = None, None
    short = min(height, width)
    if config.short_side_px and (short > config.short_side_px or (config.enlarge and short < config.short_side_px)):
        scale = config.short_side_px / short
        size = (max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2)))
    if config.fps and (fps > config.fps or (config.enlarge and fps < config.fps)):
        out_fps = config.fps
    out = folder / member_name(str(row["clip_id"]), VIDEO_SUFFIX)
    return Cut(int(row["start_frame"]), int(row["end_frame"]), fps, out, size, out_fps)


def _columns(method: str, suffix: str, num_frames: int, height: int, width: int, fps: float | None) -> dict[str, Any]:
    return {
        "outcome": "packed",
        "method": method,
        "suffix": suffix,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "fps": fps,
    }


def _all_failed(task: SourceTask, reason: str, detail: str) -> list[Piece]:
    return [failed(str(row["clip_id"]), reason, detail) for row in task.clips]


def _sentence(error: UnreadableMedia) -> str:
    return f"{error.detail[:1].upper()}{error.detail[1:]}."
