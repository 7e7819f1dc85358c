"""Generated videos as files that say how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from components.encoding import read_comment, write_animation, write_video
from components.errors import KinoflowError
from components.generation.drawing import Drawn
from components.media import Frames

FileKind = Literal["mp4", "gif", "png"]


def save(drawn: Drawn, stem: Path | str, *, kind: FileKind = "mp4") -> Path:
    """Write a video with its settings in the metadata.

    Args:
        drawn: from `draw`.
        stem: path without its suffix; folders are made.
        kind: mp4, gif, or png, which is animated and loses nothing; a single frame always becomes a png or a gif.

    Returns:
        The file.
    """
    return save_stream(drawn.frames[None], drawn.settings, len(drawn.frames), stem, kind=kind)


def save_stream(
    chunks: Iterable[Frames],
    settings: Mapping[str, JsonValue],
    num_frames: int,
    stem: Path | str,
    *,
    kind: FileKind = "mp4",
) -> Path:
    """Write frames as they come; an mp4 holds a few at a time, the other kinds all of them.

    Args:
        chunks: (t, H, W, 3) uint8 each, from `stream`.
        settings: from `describe`.
        num_frames: how many will come.
        stem, kind: as in `save`.

    Returns:
        The file; one that could not be finished is removed.
    """
    stem = Path(stem)
    kind = "png" if num_frames == 1 and kind == "mp4" else kind
    path = stem.with_name(f"{stem.name}.{kind}")
    part = stem.with_name(f".{stem.name}.part.{kind}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    comment = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    fps = settings["fps"]
    assert isinstance(fps, int | float)
    frames = chain.from_iterable(chunks)
    try:
        if kind == "mp4":
            write_video(part, frames, fps, comment=comment)
        else:
            write_animation(part, frames, fps, comment=comment)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a generated file: prompt, seed, config, checkpoint and references.

    Raises:
        KinoflowError: the file is not media, or was not generated here.
    """
    comment = read_comment(path)
    try:
        settings = json.loads(comment or "null")
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or "kinoflow" not in settings:
        raise KinoflowError(f"{path} does not say how it was made; give a file that `kinoflow generate` wrote.")
    return settings
