"""One decoded frame, in the sizes that are asked for: only what is looked at is converted.

A frame stays as the decoder left it (planes of luma and chroma). A small picture is made by resizing the planes and
converting the little that is left, so that nothing of the full size is ever turned into RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from components.media import Frames

Plane = NDArray[np.uint8]

PLANAR_FORMATS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways a picture can lie: transpose first, then flip."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """Clockwise turn in degrees, leaving mirroring aside."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, frame: Frames) -> Frames:
        """Turns one frame (H, W, 3) upright."""
        return np.asarray(self.apply_to_all(frame[None])[0], np.uint8)

    def apply_to_all(self, frames: Frames) -> Frames:
        """Turns frames (N, H, W, 3) upright; the result is contiguous."""
        if self.transpose:
            frames = frames.transpose(0, 2, 1, 3)
        if self.flip_x:
            frames = frames[:, :, ::-1]
        if self.flip_y:
            frames = frames[:, ::-1]
        return np.ascontiguousarray(frames)


UPRIGHT = Orientation()


class Picture(Protocol):
    """A frame of which small versions can be had, upright."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole picture."""

    def bgr(self, size: tuple[int, int], *, smooth: bool = False) -> Frames:
        """(height, width, 3) uint8 in OpenCV's order of channels.

        Args:
            size: (height, width).
            smooth: average over the pixels that are left out; otherwise bilinear between the nearest ones, which is
                what PySceneDetect looks at.
        """

    def bgr_exactly(self, size: tuple[int, int]) -> Frames:
        """(height, width, 3) uint8 as OpenCV makes it, to the last bit: the whole picture is converted, then resized.

        `bgr` differs by a rounding here and there, and takes a fraction of the time.
        """

    def luma(self, size: tuple[int, int]) -> Plane:
        """(height, width) uint8, 0 black and 255 white, averaged over the pixels that are left out."""


class StillPicture:
    """A still image, (H, W, 3) uint8 RGB."""

    def __init__(self, frame: Frames) -> None:
        self._frame = frame

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole picture."""
        return self._frame.shape[0], self._frame.shape[1]

    def bgr(self, size: tuple[int, int], *, smooth: bool = False) -> Frames:
        """See `Picture`."""
        return np.asarray(cv2.cvtColor(_resized(self._frame, size, smooth=smooth), cv2.COLOR_RGB2BGR), np.uint8)

    def bgr_exactly(self, size: tuple[int, int]) -> Frames:
        """See `Picture`."""
        return self.bgr(size)

    def luma(self, size: tuple[int, int]) -> Plane:
        """See `Picture`."""
        return np.asarray(cv2.cvtColor(_resized(self._frame, size, smooth=True), cv2.COLOR_RGB2GRAY), np.uint8)


class PlanarConverter:
    """Makes pictures of the frames of one video; what a conversion needs is set up once.

    Colours are converted by FFmpeg itself, on the small planes, with the coefficients of BT.601 whatever the file says:
    so does OpenCV, and with it PySceneDetect.
    """

    def __init__(self) -> None:
        self._to_planar, self._to_bgr = VideoReformatter(), VideoReformatter()
        self._small: dict[tuple[int, int, str], tuple[VideoFrame, list[Plane]]] = {}

    def picture(self, frame: VideoFrame, orientation: Orientation) -> PlanarPicture:
        """The picture of one frame; it borrows the frame's memory."""
        if frame.format.name in PLANAR_FORMATS:
            planes = frame.planes
            if planes[0].line_size >= frame.width:
                return PlanarPicture(frame, [plane_view(plane) for plane in planes], orientation, self)
        frame = self._to_planar.reformat(frame, format="yuv420p", threads=1)
        return PlanarPicture(frame, [plane_view(plane) for plane in frame.planes], orientation, self)

    def resized(self, planes: list[Plane], like: VideoFrame) -> Frames:
        """(H, W, 3) BGR of planes that were resized, of a frame like this one."""
        height, width = planes[0].shape
        key = (height, width, like.format.name)
        if key not in self._small:
            frame = VideoFrame(width, height, like.format.name)
            self._small[key] = frame, [plane_view(plane) for plane in frame.planes]
        frame, room = self._small[key]
        for target, plane in zip(room, planes, strict=True):
            target[:] = plane
        frame.color_range = like.color_range
        return self.converted(frame)

    def converted(self, frame: VideoFrame) -> Frames:
        """A whole frame, (H, W, 3) BGR."""
        bgr = self._to_bgr.reformat(frame, format="bgr24", threads=1)
        rows = np.frombuffer(bgr.planes[0], np.uint8).reshape(frame.height, -1)  # type: ignore[call-overload]
        return np.ascontiguousarray(rows[:, : 3 * frame.width]).reshape(frame.height, frame.width, 3)


class PlanarPicture:
    """A frame of a video.

    Attributes:
        frame: as it was decoded, or its conversion to planes.
        planes: luma and chroma, (H, W) uint8 each.
        orientation: how it must be turned.
    """

    __slots__ = ("_converter", "frame", "orientation", "planes")

    def __init__(
        self, frame: VideoFrame, planes: list[Plane], orientation: Orientation, converter: PlanarConverter
    ) -> None:
        self.frame = frame
        self.planes = planes
        self.orientation = orientation
        self._converter = converter

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole picture."""
        return self._as_stored((self.frame.height, self.frame.width))

    def bgr(self, size: tuple[int, int], *, smooth: bool = False) -> Frames:
        """See `Picture`."""
        height, width = self._as_stored(size)
        chroma = ((height + 1) // 2, (width + 1) // 2)
        planes = [
            _resized(plane, part, smooth=smooth)
            for plane, part in zip(self.planes, ((height, width), chroma, chroma), strict=True)
        ]
        return self._upright(self._converter.resized(planes, self.frame))

    def bgr_exactly(self, size: tuple[int, int]) -> Frames:
        """See `Picture`."""
        whole = self._converter.converted(self.frame)
        return self._upright(_resized(whole, self._as_stored(size), smooth=False))

    def luma(self, size: tuple[int, int]) -> Plane:
        """See `Picture`."""
        luma = _resized(self.planes[0], self._as_stored(size), smooth=True)
        full_range = self.frame.format.name == "yuvj420p" or int(self.frame.color_range) == FULL_RANGE
        # A plane at its own size is a view with gaps between its rows, which some of OpenCV refuses.
        luma = np.ascontiguousarray(luma) if full_range else np.asarray(cv2.LUT(luma, FROM_LIMITED), np.uint8)
        return luma if self.orientation == UPRIGHT else self.orientation.apply(luma[..., None])[..., 0]

    def _upright(self, bgr: Frames) -> Frames:
        return bgr if self.orientation == UPRIGHT else self.orientation.apply(bgr)

    def _as_stored(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self.orientation.transpose else size


FULL_RANGE = 2
FROM_LIMITED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def plane_view(plane: VideoPlane) -> Plane:
    """(H, W) uint8 of one plane, in its own memory."""
    return np.ndarray((plane.height, plane.width), np.uint8, plane, strides=(plane.line_size, 1))  # type: ignore[arg-type]


def _resized(plane: Plane, size: tuple[int, int], *, smooth: bool) -> Plane:
    """Bilinear; when smooth after halving it as often as it is more than twice too large."""
    height, width = plane.shape[:2]
    while smooth and height >= 2 * size[0] and width >= 2 * size[1]:
        height, width = height // 2, width // 2
        plane = np.asarray(
            cv2.resize(plane[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
    if (height, width) == size:
        return plane
    return np.asarray(cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)
