"""Videos onto disk (PyAV) and moving pictures for pages (Pillow), with what they were made of in their metadata.

The same frames and the same metadata give the same bytes on every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from components.errors import KinoflowError
from components.media import Frames, UnreadableMedia, phrase

BT709, LIMITED_RANGE = 1, 1
SWSCALE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
COMMENT = "comment"
MP4_SUFFIXES = {".mp4", ".mov", ".m4v"}


def write_video(
    path: Path | str,
    frames: Frames | Iterable[Frames],
    fps: float,
    *,
    codec: str = "libx264",
    crf: int = 18,
    rotation_deg: int = 0,
    comment: str | None = None,
) -> None:
    """Encodes frames; the same frames give the same bytes on every run.

    Args:
        path: the suffix chooses the container (.mp4, .mkv, .mov, ...).
        frames: (N, H, W, 3) uint8 RGB, or an iterable of (H, W, 3); odd sizes are kept (4:4:4 chroma).
        fps: frames per second; rates like 29.97 become their exact fraction.
        codec: an FFmpeg encoder.
        crf: quality, lower is better, for encoders that have it.
        rotation_deg: clockwise turn (multiple of 90) players shall apply; `frames` are stored as given.
        comment: text for the file's metadata; `read_comment` gives it back.
    """
    path = Path(path)
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    height, width = first.shape[:2]
    pix_fmt = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    reformatter = VideoReformatter()
    # The index goes first, and neither dates nor versions go in: the same frames, the same bytes.
    options = {"movflags": "faststart"} if path.suffix.lower() in MP4_SUFFIXES else {}
    with av.open(str(path), "w", options=options | {"fflags": "bitexact"}) as container:
        if comment is not None:
            container.metadata[COMMENT] = comment
        stream = _add_stream(container, codec, fps)
        _configure_encoder(stream, height, width, pix_fmt, crf)
        if rotation_deg:
            stream.set_display_rotation(-rotation_deg)
        for array in chain([first], source):
            if array.shape != first.shape or array.dtype != np.uint8:
                raise ValueError(f"frames of {path} must all be uint8 {first.shape}, got {array.dtype} {array.shape}")
            rgb = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            yuv = reformatter.reformat(
                rgb,
                format=pix_fmt,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=SWSCALE,
                threads=1,
            )
            container.mux(stream.encode(yuv))
        container.mux(stream.encode(None))


def write_animation(path: Path | str, frames: Iterable[Frames], fps: float, *, comment: str | None = None) -> None:
    """Writes frames (H, W, 3) uint8 as a GIF or an animated PNG, by the suffix; one frame makes a still.

    Args:
        path: ending in .gif or .png; a PNG loses nothing, a GIF has 256 colours and times in hundredths of a second.
        frames: at least one.
        fps: frames per second.
        comment: text for the file's metadata; `read_comment` gives it back.
    """
    path = Path(path)
    first, *others = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    if path.suffix.lower() == ".gif":
        extra: dict[str, Any] = {} if comment is None else {"comment": comment.encode()}
        first.save(
            path, save_all=True, append_images=others, duration=max(20, round(1000 / fps)), loop=0,
            optimize=False, **extra,
        )  # fmt: skip
        return
    text = PngInfo()
    if comment is not None:
        text.add_itxt(COMMENT, comment)
    moving: dict[str, Any] = (
        {"save_all": True, "append_images": others, "duration": 1000 / fps, "loop": 0} if others else {}
    )
    first.save(path, pnginfo=text, **(moving if others else {}))


def read_comment(path: Path | str) -> str | None:
    """The comment in the metadata of a video, GIF or PNG; None where there is none.

    Raises:
        UnreadableMedia: the file is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableMedia("missing_file", "there is no such file", path)
    try:
        with Image.open(path, formats=("GIF", "PNG")) as image:
            image.load()
            text = image.info.get(COMMENT)
            return text.decode(errors="replace") if isinstance(text, bytes) else text
    except (OSError, SyntaxError, ValueError):
        pass
    try:
        with av.open(
            str(path), metadata_errors="ignore", container_options={"protocol_whitelist": "file"}
        ) as container:
            return container.metadata.get(COMMENT)
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableMedia("not_media", phrase(error), path) from error


def _add_stream(container: OutputContainer, codec: str, fps: float) -> VideoStream:
    try:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    except (av.FFmpegError, ValueError) as error:
        raise KinoflowError(
            f"cannot encode with {codec!r} ({phrase(error)}): choose a video encoder, such as libx264"
        ) from error
    if not isinstance(stream, VideoStream):
        raise KinoflowError(f"{codec!r} is no video encoder; choose one, such as libx264")
    return stream


def _configure_encoder(stream: VideoStream, height: int, width: int, pix_fmt: str, crf: int) -> None:
    stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    context.thread_count = 1
    stream.options = {"crf": str(crf), "g": "24", "bf": "0", "sc_threshold": "0", "flags": "+bitexact", "threads": "1"}
    if context.name == "libx264":
        # Its assembly gives other bytes about once in a hundred files; without it they are always the common ones.
        stream.options |= {"x264-params": "asm=0"}
