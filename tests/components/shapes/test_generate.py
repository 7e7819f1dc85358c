"""The world on disk: the same bytes every time, the truth that the files hold, defects of every kind."""

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scenedetect import AdaptiveDetector, FrameTimecode
from typer.testing import CliRunner

from components.errors import KinoflowError
from components.shapes.__main__ import app
from components.shapes.generate import generate
from components.shapes.measure import measure, score
from components.shapes.plan import ShapesConfig, evaluation_prompts, plan_files
from components.shapes.world import parse_caption
from components.video import UnreadableMedia, decode_frames, probe

SMALL = ShapesConfig(seed=5, num_videos=14, num_images=8, num_prompts=12)
UNREADABLE = {"truncated", "no_index", "empty", "not_media"}

World = tuple[Path, dict[str, Any]]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    out = tmp_path_factory.mktemp("world")
    return out, generate(out, SMALL)


def readable(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [file for file in truth["files"] if file["defect"] not in UNREADABLE]


def test_the_same_config_gives_the_same_bytes_over_a_former_world(world: World, tmp_path: Path) -> None:
    out, _ = world
    generate(tmp_path, ShapesConfig(seed=6, num_videos=2, num_images=1))
    generate(tmp_path, SMALL)
    assert digests(tmp_path) == digests(out)


def test_the_truth_on_disk_is_the_truth_returned(world: World) -> None:
    out, truth = world
    assert json.loads((out / "truth.json").read_text()) == truth
    media = {f"videos/{path.name}" for path in (out / "videos").iterdir() if path.suffix not in {".txt", ".json"}}
    assert media == {file["path"] for file in truth["files"]}


def test_readable_files_are_as_the_truth_says(world: World) -> None:
    out, truth = world
    for file in readable(truth):
        info = probe(out / file["path"])
        assert info.media == file["media"]
        if file["defect"] != "near_duplicate":
            assert (info.height, info.width) == (file["height"], file["width"])
            assert info.rotation_deg == file["rotation_deg"]
        if info.media == "video":
            assert info.fps == pytest.approx(file["fps"], rel=1e-4)
            assert sum(1 for _ in decode_frames(out / file["path"])) == file["num_frames"]
    assert {file["rotation_deg"] for file in truth["files"]} == {0, 90, 270}


def test_damaged_files_cannot_be_read_to_the_end(world: World) -> None:
    out, truth = world
    reasons = {}
    for file in truth["files"]:
        if file["defect"] in UNREADABLE:
            with pytest.raises(UnreadableMedia) as caught:
                list(decode_frames(out / file["path"]))
            reasons[file["defect"], file["media"]] = caught.value.reason
    assert reasons == {
        ("truncated", "video"): "decode_error",
        ("truncated", "image"): "decode_error",
        ("no_index", "video"): "not_media",
        ("empty", "video"): "empty_file",
        ("not_media", "video"): "not_media",
    }


def test_copies_are_copies(world: World) -> None:
    out, truth = world
    by_path = {file["path"]: file for file in truth["files"]}
    kinds = Counter()
    for file in truth["files"]:
        if file["copy_of"] is None:
            continue
        kinds[file["defect"]] += 1
        same_bytes = (out / file["path"]).read_bytes() == (out / file["copy_of"]).read_bytes()
        assert same_bytes == (file["defect"] == "duplicate")
        assert file["shots"] == by_path[file["copy_of"]]["shots"]
    assert set(kinds) == {"duplicate", "near_duplicate"}


def test_sound_shots_show_their_captions_and_static_ones_do_not(world: World) -> None:
    out, truth = world
    for file in readable(truth):
        frames = np.stack(list(decode_frames(out / file["path"])))
        for shot in file["shots"]:
            seen = frames[shot["start_frame"] : shot["end_frame"] : 2]
            if shot["defect"] in (None, "too_short"):
                assert score(seen, shot["caption"])["all"], (file["path"], shot)
            elif shot["defect"] == "static":
                assert measure(seen).motion is None
                assert parse_caption(shot["caption"]).motion is not None  # type: ignore[union-attr]
            elif shot["defect"] == "black":
                assert seen.max() < 8


def test_sidecars_carry_the_captions(world: World) -> None:
    out, truth = world
    for file in truth["files"]:
        path = out / file["path"]
        if len(file["shots"]) == 1:
            assert path.with_suffix(".txt").read_text() == file["shots"][0]["caption"] + "\n"
        elif file["shots"]:
            spans = json.loads(path.with_suffix(".json").read_text())["shots"]
            assert [span["caption"] for span in spans] == [shot["caption"] for shot in file["shots"]]
            assert [round(span["start_s"] * file["fps"]) for span in spans] == [
                shot["start_frame"] for shot in file["shots"]
            ]


def test_cuts_are_cuts_for_a_shot_detector(world: World) -> None:
    out, truth = world
    for file in readable(truth):
        if file["media"] == "image":
            continue
        detector, found = AdaptiveDetector(adaptive_threshold=3.0, min_scene_len=5), []
        for number, frame in enumerate(decode_frames(out / file["path"])):
            bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            found += detector.process_frame(FrameTimecode(number, fps=24.0), bgr)
        assert [cut.frame_num for cut in found] == [shot["start_frame"] for shot in file["shots"][1:]]


def test_the_default_world_is_large_and_balanced() -> None:
    files = plan_files(ShapesConfig())
    sound = [
        shot
        for file in files
        if file.media == "video" and file.defect is None
        for shot in file.shots
        if shot.defect is None
    ]
    assert len(sound) >= 350
    uses = Counter(shot.scene for shot in sound)
    assert len(uses) == 216
    assert max(uses.values()) - min(uses.values()) <= 1
    defects = Counter(file.defect for file in files) + Counter(shot.defect for file in files for shot in file.shots)
    assert set(defects) == {None, *UNREADABLE, "duplicate", "near_duplicate", "static", "black", "too_short", "text"}
    spoilt = sum(file.defect is not None or any(shot.defect for shot in file.shots) for file in files)
    planted = sum(file.defect is not None for file in files) / len(files)
    assert 0.08 < planted < 0.2
    assert spoilt < len(files) / 2


def test_neighbouring_shots_differ_in_background() -> None:
    for file in plan_files(ShapesConfig(num_images=0)):
        backgrounds = [shot.scene.background if shot.scene else "black" for shot in file.shots]
        assert all(a != b for a, b in pairwise(backgrounds))


@pytest.mark.parametrize(("num_videos", "num_images"), [(1, 0), (2, 1), (5, 3), (9, 0)])
def test_tiny_worlds_keep_half_of_their_files_sound(num_videos: int, num_images: int) -> None:
    files = plan_files(ShapesConfig(num_videos=num_videos, num_images=num_images))
    assert len(files) == num_videos + num_images
    assert 2 * sum(file.defect is None for file in files) >= len(files)
    names = [file.name for file in files]
    assert len(set(names)) == len(names)
    assert all(file.copy_of is None or names.index(file.copy_of) < names.index(file.name) for file in files)


def test_prompts_are_balanced_and_different() -> None:
    prompts = evaluation_prompts(ShapesConfig(num_prompts=24))
    scenes = [parse_caption(prompt) for prompt in prompts]
    assert len(set(scenes)) == 24
    for attribute, count in (("colour", 4), ("shape", 8), ("motion", 6), ("background", 8)):
        assert set(Counter(getattr(scene, attribute) for scene in scenes).values()) == {count}


def test_another_seed_gives_another_world() -> None:
    assert plan_files(ShapesConfig(seed=1)) != plan_files(ShapesConfig(seed=2))


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "videos" / "holiday.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(KinoflowError, match=r"holiday\.mp4"):
        generate(tmp_path, SMALL)
    assert mine.read_bytes() == b"mine"


def test_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), "--videos", "2", "--images", "1", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("3 files with ")
    assert len((tmp_path / "prompts.txt").read_text().splitlines()) == 24
    (tmp_path / "videos" / "other.txt").write_text("x")
    refused = CliRunner().invoke(app, [str(tmp_path)])
    assert refused.exit_code == 1
    assert "choose an empty folder" in refused.output
