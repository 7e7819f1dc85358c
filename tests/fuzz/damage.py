"""Damaged files made from real ones: truncated, with flipped bits, with blocks zeroed, doubled or left out."""

from __future__ import annotations

import random
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.media import write_image
from components.video import write_video

VIDEOS = {
    "h264.mp4": "libx264", "h264.mkv": "libx264", "h264.ts": "libx264", "h264.flv": "libx264", "mpeg4.avi": "mpeg4",
    "mpeg4.mov": "mpeg4", "vp9.webm": "libvpx-vp9", "mpeg2.mpg": "mpeg2video", "h264.avi": "libx264",
    "ffv1.mkv": "ffv1",
}  # fmt: skip
IMAGES = ("still.png", "still.jpg", "still.webp", "still.bmp", "still.tif", "still.ppm")


def write_seeds(folder: Path) -> list[Path]:
    """Whole files in several containers and codecs, and one of sound alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, codec) in enumerate(VIDEOS.items()):
        write_video(folder / name, picture(number, num_frames=16), 24, codec=codec)
    for number, name in enumerate(IMAGES):
        write_image(folder / name, picture(100 + number, num_frames=1)[0])
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(range(256)) * 20)
    return sorted(folder.iterdir())


def picture(seed: int, num_frames: int) -> NDArray[np.uint8]:
    """A textured square that moves over a textured ground, (num_frames, 64, 96, 3)."""
    generator = np.random.default_rng(seed)
    ground = generator.integers(30, 120, (8, 12, 3)).repeat(8, 0).repeat(8, 1)
    square = generator.integers(120, 255, (4, 4, 3)).repeat(6, 0).repeat(6, 1)
    frames = np.repeat(ground[None].astype(np.uint8), num_frames, 0)
    for index in range(num_frames):
        frames[index, 20:44, 2 * index : 2 * index + 24] = square
    return frames


def damaged(seeds: list[Path], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of so many damaged files, no two alike in name; the same for the same seed."""
    generator = random.Random(seed)
    for number in range(count):
        source = seeds[number % len(seeds)]
        kind = generator.choice(list(KINDS))
        data = KINDS[kind](bytearray(source.read_bytes()), generator)
        suffix = generator.choice([source.suffix] * 4 + [".mp4", ".png", ".txt.mp4", ""])
        yield f"{number:04d}-{source.stem}-{kind}{suffix}", bytes(data)


def _truncated(data: bytearray, generator: random.Random) -> bytearray:
    return data[: generator.randrange(len(data))]


def _flipped(data: bytearray, generator: random.Random) -> bytearray:
    for _ in range(generator.choice([1, 4, 16, 64])):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return data


def _header_flipped(data: bytearray, generator: random.Random) -> bytearray:
    for _ in range(generator.choice([1, 2, 8])):
        data[generator.randrange(min(len(data), 256))] ^= 1 << generator.randrange(8)
    return data


def _tail_flipped(data: bytearray, generator: random.Random) -> bytearray:
    for _ in range(generator.choice([1, 2, 8])):
        data[-1 - generator.randrange(min(len(data), 1024))] ^= 1 << generator.randrange(8)
    return data


def _zeroed(data: bytearray, generator: random.Random) -> bytearray:
    start, size = generator.randrange(len(data)), generator.randrange(1, 1 + len(data) // 4)
    data[start : start + size] = bytes(len(data[start : start + size]))
    return data


def _doubled(data: bytearray, generator: random.Random) -> bytearray:
    start, size = generator.randrange(len(data)), generator.randrange(1, 1 + len(data) // 4)
    return data[: start + size] + data[start:]


def _left_out(data: bytearray, generator: random.Random) -> bytearray:
    start, size = generator.randrange(len(data)), generator.randrange(1, 1 + len(data) // 4)
    return data[:start] + data[start + size :]


KINDS: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "truncated": _truncated, "flipped": _flipped, "header": _header_flipped, "tail": _tail_flipped,
    "zeroed": _zeroed, "doubled": _doubled, "left-out": _left_out,
}  # fmt: skip
