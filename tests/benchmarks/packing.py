"""Packing: clips into tar shards, copied and encoded, and read again at random by ranges from a real S3 server."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

from components import manifest, store, tables
from components.pack import pack
from components.pack_config import PackConfig
from components.packed import PackedClips
from components.video import write_video
from tests.benchmarks.loading import far_store
from tests.benchmarks.measuring import Figure, Settings, by_turns

MEGABYTE = 1e6
CLIP_FRAMES = 24
"""Of every clip, and from one keyframe of the sources to the next."""


def run(settings: Settings) -> list[Figure]:
    """Packing first, then reading."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-bench-") as scratch:
        folder = Path(scratch)
        make_clips(folder, settings)
        return measure_packing(folder, settings) + measure_reading(folder, settings)


def make_clips(folder: Path, settings: Settings) -> None:
    """Sources of moving tiles, each of several clips that begin with a keyframe, and their table."""
    sources, clips, height, width = (2, 2, 48, 64) if settings.toy else (4, 4, 240, 424)
    rng, rows = np.random.default_rng(0), []
    for number in range(sources):
        tiles = rng.integers(0, 256, (height // 8, (width + clips * CLIP_FRAMES) // 8 + 1, 3), dtype=np.uint8)
        wall = np.kron(tiles, np.ones((8, 8, 1), np.uint8))
        path = folder / "source.mp4"
        write_video(path, (wall[:, shift : shift + width] for shift in range(clips * CLIP_FRAMES)), 24)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        store.upload(path, str(folder / "objects" / f"{digest}.mp4"))
        for index in range(clips):
            start, source_id = index * CLIP_FRAMES, f"{number:016x}"
            rows.append(
                {
                    "clip_id": f"{source_id}-{index:04d}", "source_id": source_id, "path": f"{number}.mp4",
                    "content_sha256": digest, "object_key": f"{digest}.mp4", "media": "video", "fps": 24.0,
                    "start_frame": start, "end_frame": start + CLIP_FRAMES, "num_frames": CLIP_FRAMES,
                    "height": height, "width": width, "caption": "tiles", "split": "train", "outcome": "kept",
                }
            )  # fmt: skip
    with manifest.publish(str(folder / "curate"), "clips", config={}, inputs={}) as publication:
        tables.write(tables.frame(rows, tables.CLIPS), publication.directory / "clips.parquet", tables.CLIPS)


def measure_packing(folder: Path, settings: Settings) -> list[Figure]:
    """In one process: clips copied as they are encoded, and encoded anew."""
    sizes: dict[str, int] = {}

    def make(name: str, config: PackConfig) -> None:
        out = folder / name
        store.delete(str(out / manifest.NAME))
        sizes[name] = pack(config, str(folder / "curate"), str(folder / "objects"), str(out)).size_bytes

    cases = {
        "copied": lambda: make("copied", PackConfig(workers=1)),
        "encoded": lambda: make("encoded", PackConfig(workers=1, stream_copy=False)),
    }
    timings = by_turns(cases, settings, "packing")
    clips = len(PackedClips(str(folder / "copied")))
    return [
        timings.rate("copied", sizes["copied"] / MEGABYTE, "clips copied and decoded once to check", "MB/s"),
        timings.rate("encoded", clips * CLIP_FRAMES, "clips encoded", "frames/s"),
        timings.speed_ratio("copied", "encoded", "copying over encoding"),
    ]


def measure_reading(folder: Path, settings: Settings) -> list[Figure]:
    """Every clip once in random order, hashes checked, over whole objects of one clip each, unchecked."""
    (folder / "remote").mkdir()
    with far_store(folder / "remote", folder / "copied") as (_, uri):
        root = uri.removesuffix("/shards")
        clips = PackedClips(f"{root}/shards")
        for clip in clips:
            store.write_bytes(f"{root}/single/{clip.clip_id}.mp4", clip.media)
        order = np.random.default_rng(0).permutation(len(clips)).tolist()

        def by_range() -> int:
            return sum(len(clips.read(number).media) for number in order)

        def by_object() -> int:
            return sum(len(store.read_bytes(f"{root}/single/{clips.clip_ids[number]}.mp4")) for number in order)

        timings = by_turns({"range": by_range, "object": by_object}, settings, "reading packed clips")
    return [
        timings.rate("range", len(order), "random clips from shards on an S3 server, hashes checked", "reads/s"),
        timings.speed_ratio("range", "object", "random clips over one object a clip, unchecked"),
    ]
