"""What every reader of pictures shares: the facts about a file, the error when it cannot be read, and still images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from components.errors import KinoflowError

Frames = NDArray[np.uint8]
"""One frame (H, W, 3) or several (N, H, W, 3), RGB."""

UnreadableReason = Literal["missing_file", "empty_file", "not_media", "no_video_stream", "no_decoder", "decode_error"]

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
MP4_START, MATROSKA_START = b"ftyp", b"\x1a\x45\xdf\xa3"


class UnreadableMedia(KinoflowError):  # noqa: N818  # the file's state, by the name its ledger slug has
    """A file that gives no (more) frames.

    Attributes:
        reason: short slug for the ledger.
        detail: one phrase saying what the decoder met.
    """

    def __init__(self, reason: UnreadableReason, detail: str, path: Path | str) -> None:
        super().__init__(f"cannot read {path}: {detail} ({reason})")
        self.reason: UnreadableReason = reason
        self.detail = detail
        self._path = path

    def __reduce__(self) -> tuple[type["UnreadableMedia"], tuple[UnreadableReason, str, Path | str]]:
        """Lets the error cross from a worker process."""
        return type(self), (self.reason, self.detail, self._path)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says about itself, and its first frame confirms.

    Attributes:
        width, height: in pixels, after rotation.
        rotation_deg: clockwise turn stored in the file and applied on decoding (0, 90, 180, 270).
        fps: average frame rate; None for stills and when the container gives none.
        num_frames_header: frame count the container claims, None when absent; 1 for stills.
        duration_s: seconds the container claims, None when absent and for stills.
    """

    media: Literal["video", "image"]
    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rotation_deg: int
    fps: float | None
    num_frames_header: int | None
    duration_s: float | None
    video_streams: int
    has_audio: bool


def open_still(path: Path) -> Image.Image | None:
    """Opens a still image, or gives None when the content is something else."""
    if not path.is_file():
        raise UnreadableMedia("missing_file", "there is no such file", path)
    if path.stat().st_size == 0:
        raise UnreadableMedia("empty_file", "the file is empty", path)
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] == MP4_START or start[:4] == MATROSKA_START:  # or every format would be tried on every video
        return None
    try:
        return Image.open(path, formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableMedia("not_media", phrase(error), path) from error
    except (UnidentifiedImageError, OSError, SyntaxError):
        return None


def still_frame(image: Image.Image, path: Path, size: tuple[int, int] | None = None) -> Frames:
    """Decodes a still: EXIF orientation applied, transparency over white, 16 bits to 8."""
    try:
        with image:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged still makes Pillow raise nearly anything
        raise UnreadableMedia("decode_error", phrase(error), path) from error
    if upright.mode.startswith("I"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    rgb = upright.convert("RGB")
    if size is not None:
        rgb = rgb.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.array(rgb)


def probe_still(image: Image.Image, path: Path) -> VideoInfo:
    """Decodes a still and says what it is."""
    name, mode = (image.format or "unknown").lower(), image.mode.lower()
    height, width = still_frame(image, path).shape[:2]
    return VideoInfo(
        "image",
        name,
        name,
        mode,
        width=width,
        height=height,
        rotation_deg=0,
        fps=None,
        num_frames_header=1,
        duration_s=None,
        video_streams=0,
        has_audio=False,
    )


def write_image(path: Path | str, frame: Frames, *, quality: int = 95) -> None:
    """Writes one frame (H, W, 3) uint8 RGB; the suffix chooses the format, `quality` counts for JPEG and WebP."""
    path = Path(path)
    options: dict[str, Any] = {}
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        options = {"quality": quality, "subsampling": 0}
    elif path.suffix.lower() == ".webp":
        options = {"quality": quality}
    Image.fromarray(np.ascontiguousarray(frame)).save(path, **options)


def phrase(error: Exception) -> str:
    """The decoder's own words, for the middle of a sentence."""
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".").lower()
