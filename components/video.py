"""Videos and still images on disk: what they are, their frames, and how to write them.

With `components.pictures` and `components.encoding` the files that know codecs (PyAV for videos, Pillow for stills).
Frames are uint8 RGB arrays (H, W, 3), upright: rotations and mirrorings stored in the file are already applied.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from components.encoding import SWSCALE, write_video
from components.media import (
    Frames,
    UnreadableMedia,
    VideoInfo,
    open_still,
    phrase,
    probe_still,
    still_frame,
    write_image,
)
from components.pictures import Orientation, StillPicture
from components.stacks import PictureStack, Stacker, stack_of
from model.geometry import resize_crop_geometry

__all__ = [
    "Frames",
    "UnreadableMedia",
    "VideoInfo",
    "decode_frames",
    "decode_spans",
    "decode_stacks",
    "pick_frames",
    "probe",
    "read_frames",
    "resize_crop",
    "write_image",
    "write_video",
]

# Demuxers of real video files. Playlists, concat scripts and text renderers stay out: a hostile
# "video" must not make the decoder read other files or addresses.
VIDEO_DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,ivf,mxf"


def probe(path: Path | str) -> VideoInfo:
    """Says what a file is, from its content and never from its name.

    Raises:
        UnreadableMedia: when no frame can be had from it.
    """
    path = Path(path)
    still = open_still(path)
    if still is not None:
        return probe_still(still, path)
    with _open_video(path) as (container, stream):
        first = next(_decode(container, stream, path))
        orientation = _orientation(first)
        height, width = (first.width, first.height) if orientation.transpose else (first.height, first.width)
        rate = stream.average_rate or stream.guessed_rate
        codec = stream.codec_context
        return VideoInfo(
            "video",
            container.format.name,
            codec.codec.canonical_name,
            codec.pix_fmt or first.format.name,
            width=width,
            height=height,
            rotation_deg=orientation.rotation_deg,
            fps=float(rate) if rate else None,
            num_frames_header=stream.frames or None,
            duration_s=_duration_s(container, stream),
            video_streams=len(container.streams.video),
            has_audio=len(container.streams.audio) > 0,
        )


def decode_frames(path: Path | str, size: tuple[int, int] | None = None) -> Iterator[Frames]:
    """Decodes all frames in presentation order, in constant memory.

    Args:
        path: video or still image (which gives one frame).
        size: (height, width) to resize to while decoding; None keeps the source's, upright.
            A stream that changes its size midway keeps the size of its first frame.

    Yields:
        uint8 RGB frames (height, width, 3).

    Raises:
        UnreadableMedia: before the first frame, or midway with reason "decode_error" when damaged.
    """
    for frame in _decode_lazily(Path(path), size):
        yield frame()


def decode_spans(
    path: Path | str, spans: Sequence[tuple[int, int]], size: tuple[int, int] | None = None
) -> Iterator[Frames]:
    """Decodes the frames of some spans in one pass that ends with the last of them; others are not converted.

    Args:
        path: video or still image.
        spans: half-open ranges of frame numbers, ascending and without overlap.
        size: (height, width) to resize to while decoding.

    Yields:
        uint8 RGB frames (height, width, 3) of one span after the other.

    Raises:
        UnreadableMedia: when the file ends before the last wanted frame, or is damaged before it.
    """
    path, frames, number = Path(path), enumerate(_decode_lazily(Path(path), size)), -1
    for start, end in spans:
        for number, frame in frames:
            if number >= start:
                yield frame()
            if number == end - 1:
                break
        else:
            raise UnreadableMedia("decode_error", f"ends after {number + 1} frames, {end} were wanted", path)


def decode_stacks(path: Path | str, size_of: Callable[[tuple[int, int]], tuple[int, int]]) -> Iterator[PictureStack]:
    """Decodes every frame once, in order, by one thread; at full size nothing is converted before it is asked for.

    Of a damaged file several threads would now give more frames and now fewer.

    Args:
        path: video or still image.
        size_of: from (height, width) of the first picture to that of the small ones in the stacks.

    Yields:
        upright pictures; holding one holds the memory of the whole frame.

    Raises:
        UnreadableMedia: as `decode_frames`, after all frames before the damage were given.
    """
    still = open_still(path := Path(path))
    if still is not None:
        picture = StillPicture(still_frame(still, path))
        yield stack_of([picture], size_of(picture.size))
        return
    with _open_video(path, ThreadType.NONE) as (container, stream):
        stacker, orientation = Stacker(size_of), Orientation()
        try:
            for number, frame in enumerate(_decode(container, stream, path)):
                if number == 0 or frame.key_frame:
                    orientation = _orientation(frame)
                yield from stacker.add(frame, orientation)
        except UnreadableMedia:
            yield from stacker.finish()
            raise
        yield from stacker.finish()


def read_frames(path: Path | str, indices: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
    """Reads frames by number (0 is the first in presentation order), exactly.

    Args:
        path: video or still image.
        indices: frame numbers in any order, repeats allowed.
        size: (height, width) to resize to while decoding.

    Returns:
        (len(indices), H, W, 3) uint8, in the order of `indices`.

    Raises:
        UnreadableMedia: when the file ends before the last wanted frame, or is damaged before it.
    """
    if not indices or min(indices) < 0:
        raise ValueError(f"frame indices must be a non-empty list of numbers >= 0, got {list(indices)}")
    found = dict(pick_frames(path, indices, size))
    return np.stack([found[index] for index in indices])


def pick_frames(
    path: Path | str, indices: Sequence[int], size: tuple[int, int] | None = None
) -> Iterator[tuple[int, Frames]]:
    """Reads frames by number as `read_frames` does, one at a time and no further than the last.

    Args:
        path: video or still image.
        indices: frame numbers >= 0 in any order; each is given once.
        size: (height, width) to resize to while decoding.

    Yields:
        (number, (height, width, 3) uint8), ascending.

    Raises:
        UnreadableMedia: where the file ends, or is damaged, before the next wanted frame.
    """
    wanted = sorted(set(indices), reverse=True)
    number = -1
    for number, frame in enumerate(_decode_lazily(Path(path), size)):
        if wanted and number == wanted[-1]:
            yield wanted.pop(), frame()
        if not wanted:
            return
    raise UnreadableMedia(
        "decode_error", f"ends after {number + 1} frames, frame {wanted[0]} was asked for", Path(path)
    )


def resize_crop(frames: Frames, height: int, width: int, *, is_image: bool = False) -> Frames:
    """Scales to cover (height, width), keeping the aspect ratio, and cuts the centre out.

    The rules are Open-Sora 1.1's: bilinear without antialiasing for video, antialiased bicubic for
    stills, which also round the crop offset differently.

    Args:
        frames: (N, H, W, 3) uint8.
        height, width: target in pixels.
        is_image: the frames are photographs, not video.

    Returns:
        (N, height, width, 3) uint8.
    """
    source_height, source_width = frames.shape[1:3]
    scaled_height, scaled_width, top, left = resize_crop_geometry(
        source_height, source_width, height, width, is_image=is_image
    )
    rows, columns = slice(top, top + height), slice(left, left + width)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        if is_image:
            image = Image.fromarray(frame).resize((scaled_width, scaled_height), Image.Resampling.BICUBIC)
            out[index] = np.asarray(image)[rows, columns]
        else:
            scaled = cv2.resize(frame, (scaled_width, scaled_height), interpolation=cv2.INTER_LINEAR)
            out[index] = scaled[rows, columns]
    return out


def _decode_lazily(path: Path, size: tuple[int, int] | None) -> Iterator[Callable[[], Frames]]:
    """Decodes frame by frame; calling a frame, before the next is asked for, converts it to RGB."""
    still = open_still(path)
    if still is not None:
        yield partial(still_frame, still, path, size)
        return
    with _open_video(path) as (container, stream):
        to_rgb = _RgbConverter(size)
        for frame in _decode(container, stream, path):
            yield partial(to_rgb, frame)


class _RgbConverter:
    """Turns decoded frames into upright RGB arrays of one size, whatever the stream does."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self._size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Frames:
        orientation = _orientation(frame)
        if self._size is None:
            self._size = (frame.width, frame.height) if orientation.transpose else (frame.height, frame.width)
        height, width = self._size
        if orientation.transpose:
            height, width = width, height
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=SWSCALE, threads=1)
        return orientation.apply(rgb.to_ndarray().astype(np.uint8, copy=False))


@contextmanager
def _open_video(path: Path, threads: ThreadType = ThreadType.AUTO) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        container = av.open(
            str(path),
            metadata_errors="ignore",
            container_options={"format_whitelist": VIDEO_DEMUXERS, "protocol_whitelist": "file"},
        )
    except (av.FFmpegError, ValueError) as error:
        raise UnreadableMedia("not_media", phrase(error), path) from error
    with container:
        stream = _first_video_stream(container)
        if stream is None:
            raise UnreadableMedia("no_video_stream", "the file holds no video stream", path)
        if stream.codec_context is None:
            raise UnreadableMedia("no_decoder", "no decoder for the video stream", path)
        stream.thread_type = threads
        yield container, stream


def _first_video_stream(container: InputContainer) -> VideoStream | None:
    """The first one, as OpenCV and PySceneDetect take it; cover pictures only where there is nothing else."""
    streams = container.streams.video
    moving = (stream for stream in streams if not stream.disposition & Disposition.attached_pic)
    return next(moving, next(iter(streams), None))


def _decode(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[VideoFrame]:
    """Yields all frames; a damaged packet, or a file without any frame, is an error."""
    number = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UnreadableMedia("decode_error", f"damaged data after frame {number}", path)
            for frame in packet.decode():
                if isinstance(frame, VideoFrame):
                    number += 1
                    yield frame
    except av.FFmpegError as error:
        raise UnreadableMedia("decode_error", f"{phrase(error)} after frame {number}", path) from error
    if number == 0:
        raise UnreadableMedia("decode_error", "the video stream holds no frame", path)


def _orientation(frame: VideoFrame) -> Orientation:
    """Reads the display matrix [[a, b, u], [c, d, v], [x, y, w]]: x' = a x + c y, y' = b x + d y."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None
