"""Reference images and videos: from where they lie to frames of the size and the rate of the video to be made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests

from components import store, video
from components.errors import KinoflowError
from components.generation.settings import GenerationConfig
from components.media import Frames, UnreadableMedia

MAX_FRAMES = 2048
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_S = 60.0


def read_reference(place: str, config: GenerationConfig) -> Frames:
    """Frames of an image or a video, taken at the interval that keeps its speed when they are shown.

    Args:
        place: path, s3:// URI, or http(s) address.
        config: for the size, the rate, and an interval of its own.

    Returns:
        (n, height, width, 3) uint8; one frame of an image.

    Raises:
        KinoflowError: there is no such file, it is no picture, or it has too many frames.
    """
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        path = _local(place, Path(scratch))
        try:
            info = video.probe(path)
            interval = config.reference_interval or _interval(info.fps, config.sampling.saved_fps)
            return np.stack(list(_taken(path, place, config, interval, is_image=info.media == "image")))
        except UnreadableMedia as error:
            raise KinoflowError(f"The reference {place} is neither a video nor an image: {error.detail}.") from error


def _interval(fps: float | None, saved_fps: float) -> int:
    return max(1, round(fps / saved_fps)) if fps else 1


def _taken(path: Path, place: str, config: GenerationConfig, interval: int, *, is_image: bool) -> Iterator[Frames]:
    for number, frame in enumerate(video.decode_frames(path)):
        if number % interval:
            continue
        if number // interval >= MAX_FRAMES:
            raise KinoflowError(f"The reference {place} has more than {MAX_FRAMES} frames at this rate; cut it first.")
        yield video.resize_crop(frame[None], config.height, config.width, is_image=is_image)[0]


def _local(place: str, scratch: Path) -> Path:
    copy = scratch / "reference"
    if place.startswith(("http://", "https://")):
        _fetch(place, copy)
    elif store.is_s3(place):
        store.download(place, copy)
    else:
        return Path(place).expanduser()
    return copy


def _fetch(address: str, path: Path) -> None:
    try:
        with requests.get(address, stream=True, timeout=DOWNLOAD_TIMEOUT_S) as answer, path.open("wb") as file:
            answer.raise_for_status()
            for data in answer.iter_content(1 << 20):
                if file.write(data) and file.tell() > MAX_DOWNLOAD_BYTES:
                    raise KinoflowError(f"The reference {address} is larger than {MAX_DOWNLOAD_BYTES >> 30} GiB.")
    except requests.RequestException as error:
        raise KinoflowError(f"The reference {address} cannot be fetched: {type(error).__name__}.") from error
