"""Everything the plans need, encoded once: windows of clips to latents, captions to text features.

Windows are read source by source, each decoded once from its start to the last frame that a window wants; only
frames already cropped to a bucket's size are held.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
import torch
from einops import rearrange
from torch import Tensor

import components
from components import manifest, progress, store
from components.errors import KinoflowError
from components.plan_file import text_key
from components.shared_tensors import SharedTensors
from components.stored_media import DamagedObject, local_object
from components.video import Frames, UnreadableMedia, decode_frames, resize_crop
from model.autoencoder import Autoencoder
from model.geometry import frame_indices
from model.text import TextEncoder

logger = logging.getLogger(__name__)

PREFETCHED_WINDOWS = 8
PIXELS_AT_ONCE = 4 * 512 * 512
"""Pixels the autoencoder sees at once: the four frames of 512 x 512 of Open-Sora 1.1's micro-batch."""
CAPTIONS_AT_ONCE = 16
PSNR_WINDOWS = 32
ENCODING_SOURCES = (
    "components/video.py", "components/bucket/encode.py", "model/autoencoder.py", "model/text.py"
)  # fmt: skip
"""Sources that decide what is encoded: a change of one of them makes what was encoded before out of date."""
FIT_FRAMES, FIT_FRAMES_PER_WINDOW, FIT_PIXELS = 1024, 4, 1 << 26

Item = TypeVar("Item")


@dataclass(frozen=True)
class Window:
    """Frames of one source file, to be brought to one size.

    Attributes:
        key: Of its latent.
        object_key: The source, below the objects prefix.
        content_sha256: What the source's bytes must be.
        clip_id: For messages.
        frames: Frame numbers in the source, ascending.
        height: Of the bucket, in pixels.
        width: Of the bucket, in pixels.
        is_image: The source is a still image.
        held_out: The clip belongs to the evaluation split.
    """

    key: str
    object_key: str
    content_sha256: str
    clip_id: str
    frames: tuple[int, ...]
    height: int
    width: int
    is_image: bool
    held_out: bool

    @property
    def shared_key(self) -> str:
        """Names the pixels that are encoded, whatever the clip is called and wherever its source lies."""
        parts = [list(self.frames), self.height, self.width, self.is_image]
        span = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return f"{self.content_sha256}:{span}"

    @property
    def error_key(self) -> str:
        """Names the error of the latent, decoded again."""
        return f"{self.shared_key}:error"


def unique_windows(plans: Iterable[tuple[pl.DataFrame, int]], clips: pl.DataFrame) -> list[Window]:
    """The windows of all plans, each once, in the order of their sources.

    Args:
        plans: (plan, frame interval of its bucket table).
        clips: Kept clips, with the columns of `tables.CLIPS`.
    """
    columns = ["latent_key", "clip_id", "start_frame", "num_frames", "height", "width"]
    wanted = pl.concat(
        plan.select(columns).with_columns(pl.lit(interval).alias("frame_interval")) for plan, interval in plans
    ).unique("latent_key")
    sources = clips.select(
        "clip_id",
        "object_key",
        "content_sha256",
        "media",
        "split",
        pl.col("start_frame").alias("clip_start"),
        pl.col("num_frames").alias("clip_frames"),
    )
    joined = wanted.join(sources, on="clip_id", how="left").sort("object_key", "clip_start", "latent_key")
    return [_window(row) for row in joined.iter_rows(named=True)]


def _window(row: dict[str, object]) -> Window:
    first, interval, num_frames, clip_frames, clip_start = (
        int(str(row[name])) for name in ("start_frame", "frame_interval", "num_frames", "clip_frames", "clip_start")
    )
    end = min(first + num_frames * interval, clip_frames)
    frames = frame_indices(first, end, num_frames) if num_frames > 1 else [first]
    return Window(
        key=str(row["latent_key"]),
        object_key=str(row["object_key"]),
        content_sha256=str(row["content_sha256"]),
        clip_id=str(row["clip_id"]),
        frames=tuple(clip_start + frame for frame in frames),
        height=int(str(row["height"])),
        width=int(str(row["width"])),
        is_image=row["media"] == "image",
        held_out=row["split"] == "eval",
    )


def read_windows(windows: Sequence[Window], objects: str) -> Iterator[tuple[Window, Frames]]:
    """Decode and crop windows, source by source.

    Args:
        windows: Sorted by source.
        objects: URI prefix of the sources.

    Yields:
        Each window once, when its last frame is decoded, with (num_frames, height, width, 3) uint8.

    Raises:
        KinoflowError: A source is missing, is not the bytes that were ingested, or ends too early.
    """
    for object_key, group in groupby(windows, key=lambda window: window.object_key):
        wanted = list(group)
        clip_id, uri = wanted[0].clip_id, store.join(objects, object_key)
        try:
            with local_object(objects, object_key, wanted[0].content_sha256) as path:
                yield from _decode_windows(path, wanted)
        except store.ObjectMissing as error:
            raise KinoflowError(f"The source of clip {clip_id} is missing: there is no file {uri}.") from error
        except DamagedObject as error:
            raise KinoflowError(
                f"The source of clip {clip_id} at {uri} has changed; ingest the videos again."
            ) from error
        except UnreadableMedia as error:
            raise KinoflowError(
                f"Clip {clip_id} cannot be read any more from {uri}: {error.detail}; curate the videos again."
            ) from error


def _decode_windows(path: Path, windows: Sequence[Window]) -> Iterator[tuple[Window, Frames]]:
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, window in enumerate(windows):
        for position, wanted_frame in enumerate(window.frames):
            wanted[wanted_frame].append((index, position))
    pixels: dict[int, Frames] = {}
    last = max(wanted)
    number = -1
    for number, frame in enumerate(decode_frames(path)):
        cropped: dict[tuple[int, int], Frames] = {}
        for index, position in wanted.pop(number, ()):
            window = windows[index]
            size = (window.height, window.width)
            if size not in cropped:
                cropped[size] = resize_crop(frame[None], *size, is_image=window.is_image)[0]
            if index not in pixels:
                pixels[index] = np.empty((len(window.frames), *size, 3), np.uint8)
            pixels[index][position] = cropped[size]
            if position == len(window.frames) - 1:
                yield window, pixels.pop(index)
        if number == last:
            return
    raise UnreadableMedia("decode_error", f"ends after {number + 1} frames, frame {last} was asked for", path)


def prefetched(items: Iterator[Item], depth: int = PREFETCHED_WINDOWS) -> Iterator[Item]:
    """The same items, the next `depth` of them made by a thread meanwhile."""
    done = object()
    with ThreadPoolExecutor(1) as pool:
        futures = deque(pool.submit(next, items, done) for _ in range(depth))
        while (item := futures.popleft().result()) is not done:
            futures.append(pool.submit(next, items, done))
            yield item  # type: ignore[misc]


def to_pixels(frames: Frames) -> Tensor:
    """(T, H, W, 3) uint8 to (3, T, H, W) float32 in [-1, 1]."""
    return rearrange(torch.from_numpy(frames), "T H W C -> C T H W").float() / 127.5 - 1.0


def fitting_frames(windows: Sequence[Window], objects: str) -> list[Tensor]:
    """Training frames for fitting an autoencoder: a few of each of evenly chosen windows, as they will be encoded.

    Returns:
        At most `FIT_FRAMES` tensors (3, height, width) in [-1, 1], of at most `FIT_PIXELS` pixels together.
    """
    training = [window for window in windows if not window.held_out]
    mean_pixels = sum(window.height * window.width for window in training) / len(training)
    num_windows = max(1, min(FIT_FRAMES, int(FIT_PIXELS / mean_pixels)) // FIT_FRAMES_PER_WINDOW)
    chosen = training[:: math.ceil(len(training) / num_windows)]
    short = [replace(window, frames=_spread(window.frames, FIT_FRAMES_PER_WINDOW)) for window in chosen]
    with progress.task("read frames for the autoencoder", len(short)) as task:
        frames: list[Tensor] = []
        for _, pixels in prefetched(read_windows(short, objects)):
            frames += to_pixels(pixels).unbind(1)
            task.advance()
    return frames


def _spread(frames: tuple[int, ...], count: int) -> tuple[int, ...]:
    return frames if len(frames) <= count else tuple(frames[i * len(frames) // count] for i in range(count))


def encoding_digest(encoder_digest: str) -> str:
    """What decides a tensor besides its key: the encoder and the code around it, not the stages that ask for it."""
    root = Path(components.__file__).parent.parent
    code = {name: manifest.sha256_file(root / name) for name in ENCODING_SOURCES}
    return manifest.digest_of({"encoder": encoder_digest, "code": dict(code)})[:32]


def encode_windows(
    windows: Sequence[Window], objects: str, autoencoder: Autoencoder, shared: SharedTensors, shard_size_bytes: int
) -> float | None:
    """Encode every window that was not encoded before, under its shared key: latents (C, T, h, w) float32.

    Returns:
        Peak signal-to-noise ratio in dB over the first held-out windows, decoded again; None without any.
    """
    measured = [window for window in windows if window.held_out][:PSNR_WINDOWS]
    lack_latents = _lacking([window.shared_key for window in windows], shared)
    lack_errors = _lacking([window.error_key for window in measured], shared)
    once = {w.shared_key: w for w in windows if w.shared_key in lack_latents or w.error_key in lack_errors}
    if len(once) < len(windows):
        logger.info("%d of %d windows were encoded before", len(windows) - len(once), len(windows))
    with progress.task("encode clips", len(once)) as task, shared.writer(shard_size_bytes) as writer:
        for window, frames in prefetched(read_windows(list(once.values()), objects)):
            autoencoder.micro_batch_size = max(1, PIXELS_AT_ONCE // (window.height * window.width))
            pixels = to_pixels(frames)[None]
            latents = autoencoder.encode(pixels)
            if window.shared_key in lack_latents:
                writer.add("latents", window.shared_key, latents[0])
            if window.error_key in lack_errors:
                decoded = autoencoder.decode(latents).cpu()
                visible = pixels[..., : decoded.shape[-2], : decoded.shape[-1]]
                writer.add("errors", window.error_key, torch.mean((decoded - visible) ** 2))
            task.advance(note=window.clip_id)
    return _psnr_db([window.error_key for window in measured], shared)


def _psnr_db(error_keys: Sequence[str], shared: SharedTensors) -> float | None:
    if not error_keys:
        return None
    errors = [float(error) for error in shared.read(error_keys)]
    return round(10.0 * math.log10(4.0 / max(float(np.mean(errors)), 1e-12)), 2)


def encode_captions(
    captions: Iterable[str], text_encoder: TextEncoder, shared: SharedTensors, shard_size_bytes: int
) -> list[str]:
    """Encode every caption that was not encoded before: (num_tokens, Cy) float32, padding cut off, under `text_key`.

    Returns:
        Keys of the different captions.
    """
    keys = {text_key(caption): caption for caption in sorted(set(captions))}
    lacking = _lacking(list(keys), shared)
    missing = [caption for key, caption in keys.items() if key in lacking]
    with progress.task("encode captions", len(missing)) as task, shared.writer(shard_size_bytes) as writer:
        for start in range(0, len(missing), CAPTIONS_AT_ONCE):
            part = missing[start : start + CAPTIONS_AT_ONCE]
            features, mask = text_encoder.encode(part)
            for caption, feature, num_tokens in zip(part, features, mask.sum(1).tolist(), strict=True):
                writer.add("text", text_key(caption), feature[:num_tokens])
            task.advance(len(part))
    return list(keys)


def _lacking(keys: Sequence[str], shared: SharedTensors) -> set[str]:
    return {key for key, found in zip(keys, shared.has(keys), strict=True) if not found}
