"""Near-duplicates: every copy of a made world is found, and nothing else; whatever the order, and among a million."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from components import tables
from components.config import CurateConfig, IngestConfig
from components.curate import curate
from components.curate.duplicates import CROWD, differences, near_duplicate_groups, with_near_duplicate_groups
from components.curate.fingerprint import fingerprint, parse, thumbnails
from components.ingest import ingest
from components.shapes.generate import generate
from components.shapes.plan import COPYINGS, ShapesConfig
from components.shapes.world import Scene, Staging, render
from components.video import decode_frames, write_video

Pixels = NDArray[np.uint8]
FPS = 24


def scene(colour: str = "red", shape: str = "circle", motion: str = "left", background: str = "grey") -> Pixels:
    return render(Scene(colour, shape, motion, background), Staging(0.3, 0.6, 0, 0.1), 40, 96, 96)


def print_of(frames: Pixels) -> bytes:
    return fingerprint(thumbnails(np.ascontiguousarray(frames)))


def groups(*clips: Pixels) -> list[int]:
    lengths = np.array([len(clip) / FPS if len(clip) > 1 else 0.0 for clip in clips])
    return near_duplicate_groups(parse([print_of(clip) for clip in clips]), lengths).tolist()


@pytest.mark.parametrize(("crf", "side"), [(27, 72), (35, 96), (20, 128)])
def test_another_encoding_or_size_is_a_duplicate(tmp_path: Path, crf: int, side: int) -> None:
    for number, original in enumerate([scene(), scene("cyan", "triangle", "up", "black")]):
        resized = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in original])
        path = tmp_path / f"{number}.mp4"
        write_video(path, resized.astype(np.uint8), FPS, crf=crf)
        assert groups(original, np.stack(list(decode_frames(path)))) == [0, 0]


def test_up_to_a_tenth_may_be_cut_off_at_either_end() -> None:
    original = scene()
    for begin, end in ((4, 40), (0, 36), (4, 36), (2, 40), (1, 38)):
        assert groups(original, original[begin:end]) == [0, 0]
    assert groups(original[4:], original[:36]) == [0, 0]  # two cuts without their original
    assert groups(original, original[10:]) == [-1, -1]


def test_another_frame_rate_is_a_duplicate_and_another_speed_is_not() -> None:
    windows = parse([print_of(scene()), print_of(scene()[::2])])
    assert near_duplicate_groups(windows, np.array([40 / 24, 40 / 24])).tolist() == [0, 0]
    assert near_duplicate_groups(windows, np.array([40 / 24, 20 / 24])).tolist() == [-1, -1]


def test_other_colours_shapes_motions_and_backgrounds_are_not() -> None:
    others = [
        scene(), scene(colour="green"), scene(shape="square"), scene(motion="right"), scene(motion="up"),
        scene(background="white"), scene()[::-1],
    ]  # fmt: skip
    alone = groups(*others)
    assert alone[:3] == [-1, -1, -1] and alone[4:6] == [-1, -1]
    assert alone[3] == alone[6] == 3  # run backwards, left is right
    assert groups(*(other[:1] for other in others[:3])) == [-1, -1, -1]
    assert groups(others[0][:1], others[0][:1]) == [0, 0]


def test_stills_are_not_compared_with_videos() -> None:
    same = {"start_s": 0.0, "end_s": 1.0, "phash": print_of(scene())}
    rows: list[dict[str, object]] = [{**same, "clip_id": name, "media": "video"} for name in "ba"]
    rows += [{"clip_id": "c", "media": "image", "start_s": 0.0, "end_s": 0.0, "phash": print_of(scene()[20:21])}]
    rows += [{"clip_id": "d", "media": "video"}]  # a file that was rejected
    found = with_near_duplicate_groups(tables.frame(rows, tables.CLIPS))
    assert found["near_duplicate_group"].to_list() == ["a", "a", None, None]


def test_where_nothing_is_to_be_seen_nothing_is_alike() -> None:
    black = np.zeros((24, 96, 96, 3), np.uint8)
    assert groups(black, black) == [-1, -1]


def test_a_crowd_of_one_is_one_group() -> None:
    rng = np.random.default_rng(0)
    (window,) = parse([print_of(scene())])
    crowd = np.clip(window + rng.integers(-1, 2, (20 * CROWD, *window.shape)), 0, 255).astype(np.uint8)
    assert set(near_duplicate_groups(crowd, np.ones(len(crowd))).tolist()) == {0}


def test_cells_and_products_miss_nothing() -> None:
    """All pairs looked at closely say the same."""
    rng = np.random.default_rng(1)
    basis = rng.normal(0, 30, (30, 8, 1, 192)).cumsum(1)[:, :, 0] + rng.uniform(60, 180, (30, 1, 192))
    noisy = np.concatenate([basis, basis + rng.normal(0, 1, basis.shape), basis + rng.normal(0, 12, basis.shape)])
    windows = np.clip(noisy, 0, 255).astype(np.uint8)
    length = np.tile(rng.uniform(1, 9, 30), 3)
    pairs = np.array([(i, j) for j in range(90) for i in range(j)])
    edges = pairs[differences(windows, length, pairs) <= 0.2]
    assert len(edges) >= 30
    expected = np.arange(90)
    for _ in range(90):
        for first, second in edges:
            expected[[first, second]] = expected[[first, second]].min()
    lonely = np.bincount(expected, minlength=90)[expected] == 1
    assert near_duplicate_groups(windows, length).tolist() == np.where(lonely, -1, expected).tolist()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], pl.DataFrame]:
    """Truth and clips of a made world with two further copies of every kind."""
    root = tmp_path_factory.mktemp("copies")
    generate(root, ShapesConfig(seed=11, num_videos=26, num_images=16, num_copies=2 * len(COPYINGS)))
    ingest(IngestConfig(), str(root / "videos"), f"{root}/objects", f"{root}/ingest")
    curate(CurateConfig(workers=1), f"{root}/ingest", f"{root}/objects", f"{root}/curate")
    truth = json.loads((root / "truth.json").read_text(encoding="utf-8"))["files"]
    return truth, tables.read(root / "curate/clips.parquet", tables.CLIPS)


def original_of(truth: list[dict[str, Any]], path: str) -> str:
    named = {file["path"]: file["copy_of"] or file["path"] for file in truth}
    return str(named[path])


def test_every_planted_copy_is_found_and_no_false_pair(
    world: tuple[list[dict[str, Any]], pl.DataFrame],
) -> None:
    truth, clips = world
    shots = {(f"videos/{row['path']}", row["shot_index"]): row for row in clips.iter_rows(named=True)}
    planted = 0
    for file in truth:
        if file["defect"] == "near_duplicate":
            for index, shot in enumerate(file["shots"]):
                if shot["scene"] is not None:
                    copy, original = shots[file["path"], index], shots[file["copy_of"], index]
                    assert copy["near_duplicate_group"] is not None, (file, index)
                    assert copy["near_duplicate_group"] == original["near_duplicate_group"]
                    planted += 1
    assert planted >= 40
    members: dict[str, set[tuple[str, int]]] = {}
    for (path, index), row in shots.items():
        if row["near_duplicate_group"] is not None:
            members.setdefault(row["near_duplicate_group"], set()).add((original_of(truth, path), index))
    assert all(len(shown) == 1 for shown in members.values())


def test_groups_depend_neither_on_order_nor_on_decisions(world: tuple[list[dict[str, Any]], pl.DataFrame]) -> None:
    _, clips = world
    undecided = clips.with_columns(outcome=pl.lit(None, pl.String), near_duplicate_group=pl.lit(None, pl.String))
    for shuffled in (undecided.reverse(), undecided.sample(fraction=1.0, shuffle=True, seed=3)):
        found = with_near_duplicate_groups(shuffled)
        assert found["clip_id"].equals(shuffled["clip_id"])
        again = found.sort("clip_id")["near_duplicate_group"]
        assert again.equals(clips.sort("clip_id")["near_duplicate_group"], null_equal=True)
    named = clips.filter(pl.col("near_duplicate_group").is_not_null())
    smallest = named.group_by("near_duplicate_group").agg(pl.col("clip_id").min(), pl.len())
    assert (smallest["near_duplicate_group"] == smallest["clip_id"]).all() and smallest["len"].min() >= 2
