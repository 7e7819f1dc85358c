"""Files that people give the page: limited in size, looked at before they are kept, named by their content."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from components import video
from components.errors import KinoflowError
from components.media import UnreadableMedia

PREVIEW_PX = 320


@dataclass(frozen=True)
class Upload:
    """A picture or a video that can be drawn from.

    Attributes:
        name: what the person called it; never part of a path.
        preview: data URL of the first frame.
    """

    path: Path
    name: str
    is_image: bool
    height: int
    width: int
    preview: str


def keep_upload(incoming: Path, name: str, folder: Path, limit_bytes: int) -> Upload:
    """Move a file that has arrived into the folder of uploads, under the digest of its content.

    Raises:
        KinoflowError: it is too large, or neither a picture nor a video; nothing is kept then.
    """
    try:
        size = incoming.stat().st_size
        if size > limit_bytes:
            raise KinoflowError(
                f"{name!r} has {size / 1e6:.0f} MB; at most {limit_bytes / 1e6:.0f} MB can be uploaded (--max-upload)."
            )
        try:
            facts = video.probe(incoming)
            first = next(video.decode_frames(incoming))
        except UnreadableMedia as error:
            raise KinoflowError(
                f"{name!r} is neither a picture nor a video that can be read: {error.detail}."
            ) from error
        with incoming.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        kept = folder / digest[:32]
        shutil.move(incoming, kept)
    finally:
        incoming.unlink(missing_ok=True)
    return Upload(kept, name, facts.media == "image", facts.height, facts.width, preview_of(first))


def preview_of(frame: video.Frames) -> str:
    """A small PNG of one frame (H, W, 3) as a data URL; little pictures stay sharp."""
    picture = Image.fromarray(frame)
    if max(picture.size) > PREVIEW_PX:
        picture.thumbnail((PREVIEW_PX, PREVIEW_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
