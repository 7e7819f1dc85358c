"""A small published clips table over real files: two videos with several shots, one of another codec, two pictures."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import manifest, store, tables
from components.media import Frames
from components.pack_config import PackConfig
from components.video import write_image, write_video

SMALL = PackConfig(shard_size_bytes=10_000, workers=1)


@dataclass
class World:
    """Published clips and their sources, below one folder or bucket."""

    clips: str
    objects: str
    rows: list[dict[str, Any]]

    def publish(self) -> None:
        """Write the table as curation does."""
        with manifest.publish(self.clips, "clips", config={}, inputs={}) as publication:
            table = tables.frame(self.rows, tables.CLIPS).sort("clip_id")
            tables.write(table, publication.directory / "clips.parquet", tables.CLIPS)


def film(num_frames: int, height: int, width: int, seed: int) -> Frames:
    """Smooth pictures that move, each different from every other."""
    rng = np.random.default_rng(seed)
    base = np.kron(rng.integers(0, 256, (height // 8 + 1, width // 8 + 8, 3)), np.ones((8, 8, 1)))
    return np.stack([base[:height, shift : shift + width] for shift in range(num_frames)]).astype(np.uint8)


def make_world(root: str, scratch: Path) -> World:
    """Clips of sources `aa…` (24 fps, keyframes every 24), `bb…` (mpeg4) and the pictures `cc…`, `dd…`."""
    world = World(store.join(root, "curate"), store.join(root, "objects"), [])
    a, b, c, d = (scratch / name for name in ("a.mp4", "b.avi", "c.png", "d.jpg"))
    write_video(a, film(60, 48, 64, 1), 24)
    write_video(b, film(30, 64, 48, 2), 30, codec="mpeg4")
    write_image(c, film(1, 40, 56, 3)[0])
    write_image(d, film(1, 56, 40, 4)[0])
    spans = {"a": [(0, 24), (24, 41), (41, 60)], "b": [(3, 30)], "c": [(0, 1)], "d": [(0, 1)]}
    for path, fps, height, width in ((a, 24.0, 48, 64), (b, 30.0, 64, 48), (c, None, 40, 56), (d, None, 56, 40)):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        key = f"{digest[:2]}/{digest}{path.suffix}"
        store.write_bytes(store.join(world.objects, key), content)
        for index, (start, end) in enumerate(spans[path.stem]):
            clip_id = f"{path.stem * 16}-{index:04d}"
            world.rows.append(
                {
                    "clip_id": clip_id, "source_id": path.stem * 16, "path": path.name, "content_sha256": digest,
                    "object_key": key, "source": "made", "licence": "CC0-1.0", "shot_index": index,
                    "media": "video" if fps else "image", "start_frame": start, "end_frame": end,
                    "num_frames": end - start, "start_s": start / (fps or 1), "end_s": end / (fps or 1), "fps": fps,
                    "height": height, "width": width, "caption": f'clip {index} of "{path.stem}",\nsaid twice',
                    "caption_origin": "table", "motion": 1.5, "sharpness": float("nan"), "split": "train",
                    "outcome": "kept",
                }
            )  # fmt: skip
    world.rows.append({"clip_id": f"{'a' * 16}-0003", "source_id": "a" * 16, "outcome": "dropped", "reason": "still"})
    world.publish()
    return world


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Not to be written to."""
    return make_world(str(tmp_path_factory.mktemp("packing")), tmp_path_factory.mktemp("sources"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One to be damaged."""
    (tmp_path / "sources").mkdir()
    return make_world(str(tmp_path / "world"), tmp_path / "sources")
