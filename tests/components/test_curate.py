"""The stage: a made world whose truth is known, the ledger, and what a person may get wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from components import manifest, store, tables
from components.config import CaptionConfig, CurateConfig, CurationRules, IngestConfig
from components.curate import CurateReport, curate
from components.errors import KinoflowError
from components.ingest import ingest
from components.video import write_video
from tests.components.curate.test_shots import textured_shots
from tests.conftest import S3Server


@dataclass(frozen=True)
class World:
    """A made world after ingest and curate."""

    truth: list[dict[str, Any]]
    clips: pl.DataFrame
    videos: pl.DataFrame
    report: CurateReport
    root: Path

    def rows(self, file: dict[str, Any]) -> list[dict[str, Any]]:
        path = file["path"].removeprefix("videos/")
        return self.clips.filter(pl.col("path") == path).sort("shot_index").to_dicts()


def read(uri: str, folder: Path) -> pl.DataFrame:
    manifest.fetch(uri, folder, kind="clips")
    return tables.read(folder / "clips.parquet", tables.CLIPS)


@pytest.fixture(scope="module")
def world(made_world: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("run")
    ingest(IngestConfig(), str(made_world / "videos"), f"{root}/objects", f"{root}/ingest")
    report = curate(CurateConfig(), f"{root}/ingest", f"{root}/objects", f"{root}/curate")
    truth = json.loads((made_world / "truth.json").read_text(encoding="utf-8"))["files"]
    videos = tables.read(root / "ingest" / "videos.parquet", tables.VIDEOS)
    return World(truth, read(f"{root}/curate", root / "copy"), videos, report, root)


def test_shot_boundaries_are_those_that_were_made(world: World) -> None:
    found = missed = invented = 0
    for file in world.truth:
        if file["media"] == "video" and file["defect"] in (None, "near_duplicate"):
            made = {shot["start_frame"] for shot in file["shots"][1:]}
            cuts = {row["start_frame"] for row in world.rows(file)[1:]}
            found, missed, invented = found + len(made & cuts), missed + len(made - cuts), invented + len(cuts - made)
    assert found > 50
    assert 2 * found / (2 * found + missed + invented) >= 0.98


def _shot(rows: list[dict[str, Any]], shot: dict[str, Any]) -> dict[str, Any] | None:
    span = (shot["start_frame"], shot["end_frame"])
    return next((row for row in rows if (row["start_frame"], row["end_frame"]) == span), None)


def test_planted_defects_are_left_out_and_sound_shots_are_kept(world: World) -> None:
    caught, sound, captions = [], [], []
    for file in world.truth:
        rows = world.rows(file)
        if file["defect"] in ("duplicate", "near_duplicate", "empty", "not_media", "no_index"):
            caught.append(all(row["outcome"] != "kept" for row in rows))
        elif file["defect"] == "truncated":
            caught.append(rows[-1]["reason"] == "decode_error")
        else:
            for shot in file["shots"]:
                row = _shot(rows, shot)
                kept = row is not None and row["outcome"] == "kept"
                (caught if shot["defect"] else sound).append(kept == (shot["defect"] is None))
                if kept and row is not None:
                    captions.append(row["caption"] == shot["caption"])
    assert len(caught) >= 15
    assert np.mean(caught) >= 0.98
    assert np.mean(sound) >= 0.98
    assert all(captions)


def test_each_defect_has_its_reason(world: World) -> None:
    reasons = {"static": "static", "black": "black", "too_short": "too_short", "text": "text"}
    for file in world.truth:
        if file["defect"] is None:
            for shot in file["shots"]:
                row = _shot(world.rows(file), shot)
                if row is not None and shot["defect"] is not None and row["outcome"] == "dropped":
                    assert row["reason"] == reasons[shot["defect"]]
        elif file["defect"] == "near_duplicate":
            assert {row["reason"] for row in world.rows(file)} <= {"near_duplicate", *reasons}


def test_the_ledger_adds_up(world: World, made_world: Path) -> None:
    report, clips = world.report, world.clips
    assert report.sources == len(world.truth) == report.sources_with_shots + report.sources_rejected
    assert report.shots == report.kept + report.dropped == len(clips.filter(pl.col("shot_index") >= 0))
    assert sum(report.rejected_reasons.values()) == report.sources_rejected
    assert sum(report.dropped_reasons.values()) == report.dropped
    assert report.kept == report.train + report.eval == report.kept_videos + report.kept_images
    assert report.eval > 0
    assert set(clips["source_id"]) == set(world.videos["source_id"])
    facts = manifest.load(str(world.root / "curate")).facts
    assert CurateReport.model_validate({**facts, "manifest_digest": report.manifest_digest}) == report
    kept = clips.filter(pl.col("outcome") == "kept")
    for column in ("caption", "split", "width", "height", "num_frames", "phash", "object_key"):
        assert kept[column].null_count() == 0, column


def test_running_again_changes_nothing(world: World) -> None:
    root, path = world.root, world.root / "curate" / "clips.parquet"
    before = path.stat().st_mtime_ns
    again = curate(CurateConfig(workers=1), f"{root}/ingest", f"{root}/objects", f"{root}/curate")
    assert again == world.report
    assert path.stat().st_mtime_ns == before


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Ingested: two videos of two shots with captions, one without, one that is broken, in tmp_path/run."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(["a", "b", "c"]):
        write_video(folder / f"{name}.mp4", textured_shots([14, 16], seed=number), 24)
        if name != "c":
            (folder / f"{name}.txt").write_text(f"video {name}", encoding="utf-8")
    (folder / "broken.mp4").write_bytes(b"broken")
    ingest(IngestConfig(), str(folder), str(tmp_path / "run/objects"), str(tmp_path / "run/ingest"))
    return tmp_path / "run"


def run(root: Path | str, config: CurateConfig | None = None, out: str = "curate") -> CurateReport:
    return curate(config or CurateConfig(workers=1), f"{root}/ingest", f"{root}/objects", f"{root}/{out}")


def test_the_number_of_processes_changes_no_byte(small: Path) -> None:
    one = run(small, CurateConfig(workers=1), "one")
    shutil.rmtree(small / "analysed")
    two = run(small, CurateConfig(workers=2), "two")
    assert one == two
    assert (small / "one/clips.parquet").read_bytes() == (small / "two/clips.parquet").read_bytes()
    assert (one.kept, one.dropped_reasons, one.rejected_reasons) == (4, {"no_caption": 2}, {"not_media": 1})


def test_an_object_store_gives_the_same_table(small: Path, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    for item in store.list_objects(str(small)):
        store.upload(small / item.key, store.join(bucket, item.key))
    local, remote = run(small), run(bucket)
    assert local == remote
    assert store.read_bytes(f"{bucket}/curate/clips.parquet") == (small / "curate/clips.parquet").read_bytes()


def test_a_threshold_is_new_work(small: Path) -> None:
    first = run(small)
    second = run(small, CurateConfig(workers=1, rules=CurationRules(min_frames=15)))
    assert first.manifest_digest != second.manifest_digest
    assert second.dropped_reasons == {"no_caption": 1, "too_short": 3}


def test_a_lost_object_is_a_row(small: Path) -> None:
    videos = tables.read(small / "ingest/videos.parquet", tables.VIDEOS)
    key = videos.filter(pl.col("path") == "a.mp4")["object_key"].item()
    store.delete(store.join(str(small / "objects"), key))
    report = run(small)
    assert report.rejected_reasons == {"missing_object": 1, "not_media": 1}
    strict = CurateConfig(workers=1, max_failed_share=0.3)
    with pytest.raises(KinoflowError, match=r"1 of 3 ingested files.*1 × missing_object; first: 'a.mp4'"):
        run(small, strict)
    shutil.rmtree(small / "objects")
    with pytest.raises(KinoflowError, match="3 of 3 ingested files give no clips"):
        run(small, CurateConfig(workers=1, eval_share=0))


def test_no_captions_at_all_is_one_sentence_before_any_work(small: Path) -> None:
    for path in (small.parent / "videos").glob("*.txt"):
        path.unlink()
    ingest(IngestConfig(), str(small.parent / "videos"), str(small / "objects"), str(small / "ingest"))
    shutil.rmtree(small / "objects")
    with pytest.raises(KinoflowError, match=r"no captions at all.*none of its 3 files.*captions\.required"):
        run(small)


def test_captions_may_be_optional(small: Path) -> None:
    report = run(small, CurateConfig(workers=1, captions=CaptionConfig(required=False)))
    assert report.kept == 6


def test_when_no_clip_is_left_it_says_why_again_and_again(small: Path) -> None:
    config = CurateConfig(workers=1, rules=CurationRules(min_frames=1000))
    for _ in range(2):
        with pytest.raises(KinoflowError, match=r"No clip is left of 6 shots \(6 × too_short\); loosen the rules"):
            run(small, config)


def test_a_wrong_prefix_is_one_sentence(small: Path) -> None:
    with pytest.raises(KinoflowError, match="run the step that makes it first"):
        curate(CurateConfig(), str(small / "nowhere"), str(small / "objects"), str(small / "curate"))
    run(small)
    with pytest.raises(KinoflowError, match="'clips', not 'videos'"):
        curate(CurateConfig(), str(small / "curate"), str(small / "objects"), str(small / "again"))


def test_the_command_line(small: Path, tmp_path: Path) -> None:
    config = tmp_path / "curate.json"
    config.write_text(CurateConfig(workers=1).model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "components.curate", "--config", str(config), "--objects", str(small / "objects")]
    out = ["--out", str(small / "curate")]
    done = subprocess.run(
        [*command, "--videos", str(small / "ingest"), *out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert CurateReport.model_validate_json(done.stdout).kept == 4
    failed = subprocess.run(
        [*command, "--videos", str(small), *out], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.strip().splitlines()[-1].startswith("error: Nothing is published at")
