"""Curation in parts: the same bytes whatever their number, and nothing is looked at twice."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from components import layout, manifest, store, tables
from components.config import CaptionConfig, CurateConfig, CurationRules, IngestConfig, ShotConfig
from components.curate import CurateReport, PartReport, curate, curate_part, merge
from components.curate.analysed import AnalysedFiles, analysis_digest
from components.curate.parts import deal
from components.errors import KinoflowError
from components.ingest import ingest
from components.video import write_video
from tests.components.curate.test_shots import textured_shots
from tests.conftest import S3Server

CONFIG = CurateConfig(workers=1)
NUM_VIDEOS = 9


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested: videos of two shots, a damaged one, one that is none, with captions for all but one."""
    root = tmp_path_factory.mktemp("ingested")
    folder = root / "videos"
    folder.mkdir()
    for number in range(NUM_VIDEOS):
        path = folder / f"{number}.mp4"
        write_video(path, textured_shots([12, 14], seed=number), 24)
        if number:
            path.with_suffix(".txt").write_text(f"video {number}", encoding="utf-8")
    data = (folder / "1.mp4").read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) // 2])
    (folder / "none.mp4").write_bytes(b"none")
    ingest(IngestConfig(), str(folder), f"{root}/objects", f"{root}/ingest")
    return root


@pytest.fixture
def run(ingested: Path, tmp_path: Path) -> Path:
    """A run of its own on the ingested videos."""
    for name in ("objects", "ingest"):
        for item in store.list_objects(str(ingested / name)):
            store.upload(ingested / name / item.key, str(tmp_path / name / item.key))
    return tmp_path


def in_parts(root: Path | str, parts: int, config: CurateConfig = CONFIG, shots: str = "shots") -> CurateReport:
    for part in reversed(range(parts)):
        out = f"{root}/{shots}/{layout.part_folder(part, parts)}"
        curate_part(config, f"{root}/ingest", f"{root}/objects", out, part, parts)
    return merge(config, f"{root}/ingest", f"{root}/objects", f"{root}/{shots}", parts, f"{root}/curate-{parts}")


def forget(root: Path) -> None:
    """Remove what was measured before."""
    for item in store.list_objects(str(root / layout.ANALYSED)):
        store.delete(str(root / layout.ANALYSED / item.key))


def known_before(root: Path, caplog: pytest.LogCaptureFixture, config: CurateConfig, out: str) -> int:
    """Curate; how many files were looked at before, as it says in the log."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        curate(config, f"{root}/ingest", f"{root}/objects", f"{root}/{out}")
    said = re.search(rf"(\d+) of {NUM_VIDEOS + 1} files were looked at before", caplog.text)
    return int(said[1]) if said else 0


def test_any_number_of_parts_gives_the_same_bytes(run: Path) -> None:
    whole = curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/curate")
    assert (whole.shots, whole.sources) == (19, 11)
    for parts in (1, 3, 8):
        forget(run)
        assert in_parts(run, parts) == whole
        assert (run / f"curate-{parts}/clips.parquet").read_bytes() == (run / "curate/clips.parquet").read_bytes()


def test_an_object_store_gives_the_same_bytes(run: Path, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    for name in ("objects", "ingest"):
        for item in store.list_objects(str(run / name)):
            store.upload(run / name / item.key, f"{bucket}/{name}/{item.key}")
    local, remote = in_parts(run, 2), in_parts(bucket, 2)
    assert local == remote
    assert store.read_bytes(f"{bucket}/curate-2/clips.parquet") == (run / "curate-2/clips.parquet").read_bytes()
    segments = store.list_objects(f"{bucket}/{layout.ANALYSED}")
    assert 1 <= len(segments) <= 2


def test_sources_are_dealt_out_once_and_evenly() -> None:
    rows: list[dict[str, object]] = [
        {"source_id": f"{number:016x}", "duration_s": float(number % 7) or None} for number in range(40)
    ]
    videos = tables.frame(rows, tables.VIDEOS)
    dealt = deal(videos, 3)
    assert sorted(pl.concat(dealt)["source_id"]) == sorted(videos["source_id"])
    lengths = [part["duration_s"].sum() for part in dealt]
    assert max(lengths) - min(lengths) <= 7
    assert all(mine.equals(theirs) for mine, theirs in zip(dealt, deal(videos.reverse(), 3), strict=True))
    assert [len(part) for part in deal(videos.head(1), 3)] == [1, 0, 0]


def test_a_threshold_makes_no_part_anew_and_a_detector_does(run: Path) -> None:
    first = in_parts(run, 2)
    table = run / "shots" / layout.part_folder(0, 2) / "shots.parquet"
    before = table.stat().st_mtime_ns
    stricter = in_parts(run, 2, CurateConfig(workers=1, rules=CurationRules(min_frames=13)))
    assert stricter.dropped_reasons["too_short"] > 0 == first.dropped_reasons.get("too_short", 0)
    assert table.stat().st_mtime_ns == before
    in_parts(run, 2, CurateConfig(workers=1, shots=ShotConfig(threshold=5.0)))
    assert table.stat().st_mtime_ns > before


def test_parts_that_do_not_belong_together_are_refused(run: Path) -> None:
    in_parts(run, 2)
    with pytest.raises(KinoflowError, match=r"Nothing is published at .*00000-of-00003"):
        merge(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/shots", 3, f"{run}/three")
    other = CurateConfig(workers=1, analysis_long_side_px=128)
    with pytest.raises(KinoflowError, match="00000-of-00002 was made from other videos or with other settings"):
        merge(other, f"{run}/ingest", f"{run}/objects", f"{run}/shots", 2, f"{run}/other")
    with pytest.raises(KinoflowError, match="There is no part 2 of 2"):
        curate_part(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/x", 2, 2)


def test_a_killed_process_loses_no_finished_file(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys\n"
        "from components.config import CurateConfig\n"
        "from components.curate import analysed, curate\n"
        "analysed.FLUSH_S = 0.0\n"
        "root = sys.argv[1]\n"
        "curate(CurateConfig(workers=1), f'{root}/ingest', f'{root}/objects', f'{root}/curate')\n"
    )
    segments = run / layout.ANALYSED / analysis_digest(CONFIG)
    process = subprocess.Popen([sys.executable, "-c", code, str(run)])
    while len(list(segments.glob("*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(segments.glob("*.parquet")))
    assert 3 <= finished < NUM_VIDEOS + 1
    assert known_before(run, caplog, CONFIG, "curate") == finished
    forget(run)
    curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/whole")
    assert (run / "curate/clips.parquet").read_bytes() == (run / "whole/clips.parquet").read_bytes()


def test_what_is_known_is_told_under_the_present_names(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that moved and got another caption is not decoded again."""
    videos = run / "renamed"
    videos.mkdir()
    table = tables.read(run / "ingest/videos.parquet", tables.VIDEOS)
    for row in table.filter(pl.col("outcome") == "ingested").iter_rows(named=True):
        target = videos / f"new-{row['path']}"
        store.upload(run / "objects" / row["object_key"], str(target))
        target.with_suffix(".txt").write_text(f"  new   caption of {row['path']}", encoding="utf-8")
    curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/before")
    ingest(IngestConfig(licence="CC0"), str(videos), f"{run}/objects", f"{run}/ingest")
    for captions in (CaptionConfig(), CaptionConfig(clean=False)):
        config = CurateConfig(workers=1, captions=captions)
        assert known_before(run, caplog, config, "after") == NUM_VIDEOS + 1
        remembered = tables.read(run / "after/clips.parquet", tables.CLIPS)
        forget(run)
        curate(config, f"{run}/ingest", f"{run}/objects", f"{run}/afresh")
        assert remembered.equals(tables.read(run / "afresh/clips.parquet", tables.CLIPS), null_equal=True)
        assert manifest.load(f"{run}/after").digest == manifest.load(f"{run}/afresh").digest


def test_what_is_damaged_or_gone_is_looked_at_again(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/before")
    (segment,) = (run / layout.ANALYSED).rglob("*.parquet")
    segment.write_bytes(segment.read_bytes()[:-1] + b"x")
    assert known_before(run, caplog, CONFIG, "damaged") == 0
    assert (run / "before/clips.parquet").read_bytes() == (run / "damaged/clips.parquet").read_bytes()
    key = tables.read(run / "ingest/videos.parquet", tables.VIDEOS).filter(pl.col("path") == "3.mp4")["object_key"]
    store.delete(f"{run}/objects/{key.item()}")
    report = curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/lost")
    assert report.rejected_reasons["missing_object"] == 1


def test_small_segments_are_put_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.curate.analysed.FLUSH_FILES", 1)
    curate(CONFIG, f"{run}/ingest", f"{run}/objects", f"{run}/curate")
    assert len(list((run / layout.ANALYSED).rglob("*.parquet"))) == 1
    videos = tables.read(run / "ingest/videos.parquet", tables.VIDEOS)
    found = list(AnalysedFiles(f"{run}/objects", CONFIG).find(videos.filter(pl.col("outcome") == "ingested")))
    assert sum(len(shots) for shots in found) == 19


def test_the_command_lines(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "curate.json"
    config.write_text(CONFIG.model_dump_json(), encoding="utf-8")
    shared = ["--config", str(config), "--videos", f"{run}/ingest", "--objects", f"{run}/objects", "--parts", "1"]
    shots = f"{run}/shots"
    outputs = []
    for command in (
        ["part", "--part", "0", "--out", f"{shots}/{layout.part_folder(0, 1)}"],
        ["merge", "--shots", shots, "--out", f"{run}/curate"],
    ):
        arguments = [sys.executable, "-m", "components.curate", *command, *shared]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert PartReport.model_validate_json(outputs[0]).shots == 19
    assert CurateReport.model_validate_json(outputs[1]).shots == 19
