"""Consecutive frames of one file as one array: what every frame is looked at for costs little more than the arithmetic.

A frame of a hundred pixels is decoded in less time than a dozen calls from Python take. So planes are brought to the
small size frame by frame, into one tall frame, and that is converted at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from av.video.frame import VideoFrame

from components.media import Frames
from components.pictures import Orientation, Picture, PlanarConverter, PlanarPicture, Plane, plane_view

MAX_FRAMES = 32
MAX_BYTES = 4 << 20
"""Of one stack: its whole frames, which a decoder is glad to get back, and the small ones in several forms, which
better stay in the processor's cache."""
SMALL_FORMS = 4

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PictureStack:
    """Consecutive pictures of one file.

    Attributes:
        first: number of the first one in the file.
        pictures: one by one.
        bgr: (num_pictures, H, W, 3) uint8, `Picture.bgr` of each of them at one size; contiguous.
    """

    first: int
    pictures: Sequence[Picture]
    bgr: Frames

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.pictures)


def stack_of(pictures: Sequence[Picture], size: Size, first: int = 0) -> PictureStack:
    """A stack of any pictures, each brought to (height, width)."""
    return PictureStack(first, pictures, np.stack([picture.bgr(size) for picture in pictures]))


class Stacker:
    """Puts the decoded frames of one video into stacks; which frames lie in one is decided by the file alone.

    Args:
        size_of: from (height, width) of the first upright picture to the size of all small ones.
    """

    def __init__(self, size_of: Callable[[Size], Size]) -> None:
        self._size_of = size_of
        self._size: Size | None = None
        self._converter = PlanarConverter()
        self._room: _Room | None = None
        self._pictures: list[Picture] = []
        self._first = 0

    def add(self, frame: VideoFrame, orientation: Orientation) -> Iterator[PictureStack]:
        """Take the next frame; gives the stacks that are complete."""
        picture = self._converter.picture(frame, orientation)
        if self._room is None or not self._room.takes(picture):
            yield from self.finish()
            self._size = self._size or self._size_of(picture.size)
            self._room = _Room(self._size, picture)
        self._room.put(len(self._pictures), picture)
        self._pictures.append(picture)
        if len(self._pictures) == self._room.num_frames:
            yield from self.finish()

    def finish(self) -> Iterator[PictureStack]:
        """What is there, however little; nothing when there is nothing."""
        if self._pictures and self._room is not None:
            bgr = self._room.bgr(len(self._pictures), self._converter)
            first, pictures = self._first, self._pictures
            self._first, self._pictures = first + len(pictures), []
            yield PictureStack(first, pictures, bgr)


class _Room:
    """Planes of several small frames, one above the other, of one kind of frame."""

    def __init__(self, size: Size, like: PlanarPicture) -> None:
        self._kind = _kind(like)
        self._orientation = like.orientation
        self._height, self._width = size[::-1] if like.orientation.transpose else size
        whole_bytes = like.frame.width * like.frame.height * 3 // 2
        small_bytes = self._width * self._height * 3
        self.num_frames = max(1, min(MAX_FRAMES, MAX_BYTES // (whole_bytes + SMALL_FORMS * small_bytes)))
        self._tall = VideoFrame(self._width, 2 * self._slot_pairs * self.num_frames, like.frame.format.name)
        self._tall.color_range = like.frame.color_range
        luma, *chroma = (plane_view(plane) for plane in self._tall.planes)
        slots = range(self.num_frames)
        self._slots: list[list[Plane]] = [
            [luma[2 * self._slot_pairs * slot :][: self._height] for slot in slots],
            *([plane[self._slot_pairs * slot :][: self._slot_pairs] for slot in slots] for plane in chroma),
        ]

    @property
    def _slot_pairs(self) -> int:
        """Rows of chroma; a frame of odd height leaves one row of luma free."""
        return (self._height + 1) // 2

    def takes(self, picture: PlanarPicture) -> bool:
        """Whether the next picture may lie beside those that are there."""
        return _kind(picture) == self._kind

    def put(self, slot: int, picture: PlanarPicture) -> None:
        """Bring a picture to the small size, bilinear between the nearest pixels."""
        for source, slots in zip(picture.planes, self._slots, strict=True):
            target = slots[slot]
            if source.shape == target.shape:
                target[:] = source
            else:
                cv2.resize(source, target.shape[::-1], dst=target, interpolation=cv2.INTER_LINEAR)

    def bgr(self, count: int, converter: PlanarConverter) -> Frames:
        """(count, H, W, 3) of the first slots, upright."""
        tall = converter.converted(self._tall)
        frames = tall.reshape(self.num_frames, -1, self._width, 3)[:count, : self._height]
        return self._orientation.apply_to_all(frames)


def _kind(picture: PlanarPicture) -> tuple[object, ...]:
    return picture.frame.format.name, picture.frame.color_range, picture.orientation
