"""`kinoflow whatif`: what it counts, shows and writes, on a real table and on a million clips."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from components import manifest, tables
from components.config import CurateConfig, CurationRules, IngestConfig, load
from components.curate import curate
from components.ingest import ingest
from pipelines.cli import main


@pytest.fixture(scope="module")
def curated(made_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made world, curated; below it a run's folder that points there."""
    root = tmp_path_factory.mktemp("project")
    (root / ".kinoflow").mkdir()
    ingest(IngestConfig(), str(made_world / "videos"), f"{root}/out/objects", f"{root}/out/ingest")
    config = CurateConfig(rules=CurationRules(min_motion=0.05))
    curate(config, f"{root}/out/ingest", f"{root}/out/objects", f"{root}/out/curate")
    run = root / "runs" / "mine"
    run.mkdir(parents=True)
    told = {"root": f"{root}/out", "objects": f"{root}/out/objects"}
    (run / "arguments.json").write_text(json.dumps(told), encoding="utf-8")
    return root


def whatif(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["kinoflow", "whatif", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def clips_of(project: Path) -> pl.DataFrame:
    return tables.read(project / "out/curate/clips.parquet", tables.CLIPS)


def test_without_a_change_nothing_changes(
    curated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = whatif(curated, monkeypatch, capsys, "mine", "--json", "same.json", "-p", "demo")
    assert (code, err) == (0, "")
    assert "0 clips newly kept, 0 newly dropped" in out
    found = json.loads((curated / "same.json").read_text(encoding="utf-8"))
    assert found["before"] == found["after"]
    assert found["config"]["rules"]["min_motion"] == 0.05
    facts = manifest.load(str(curated / "out/curate")).facts
    assert (found["shots"], found["after"]["clips"]) == (facts["shots"], facts["kept"])
    for stage in ("stage1", "stage2", "stage3"):
        counts = found["buckets"][stage]
        assert sum(row["after"] for row in counts.values()) == found["after"]["train"]
        assert stage in out


def test_a_threshold_is_counted_pictured_and_written(
    curated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = clips_of(curated)
    kept = clips.filter((pl.col("outcome") == "kept") & (pl.col("media") == "video"))
    limit = float(np.median(kept["motion"].to_numpy()))
    arguments = ["mine", "--set", f"curate.rules.min_motion={limit}", "--set", "rules.max_text_share=1"]
    files = ["--pictures", "margin.png", "--json", "new.json", "--write", "new.yaml", "--each", "3"]
    code, out, err = whatif(curated, monkeypatch, capsys, *arguments, *files)
    assert (code, err) == (0, ""), err
    found = json.loads((curated / "new.json").read_text(encoding="utf-8"))
    effects = {effect["rule"]: effect for effect in found["effects"]}
    motion = pl.col("motion") < limit
    shots = clips.filter((pl.col("media") == "video") & (pl.col("outcome") != "rejected"))
    open_shots = shots.filter(pl.col("reason").ne_missing("decode_error"))
    assert effects["min_motion"]["alone"] == len(open_shots.filter(motion)) >= effects["min_motion"]["only"] > 0
    assert (effects["max_text_share"]["alone"], effects["max_text_share"]["only"]) == (0, 0)
    assert effects["near_duplicates"]["alone"] >= effects["near_duplicates"]["only"] > 0
    assert found["newly_dropped"] >= len(kept.filter(motion)) - 1
    change = found["after"]["clips"] - found["before"]["clips"]
    assert change == found["newly_kept"] - found["newly_dropped"]
    assert found["before"]["dropped_reasons"]["text"] > 0
    assert "text" not in found["after"]["dropped_reasons"]
    assert "9 of 9 clips at the margin" in out  # nothing breaks the text rule now
    sheet = Image.open(curated / "margin.png")
    assert sheet.height == 9 * 84
    assert len(sheet.getcolors(1 << 20) or []) > 100
    again = load(CurateConfig, curated / "new.yaml")
    assert (again.rules.min_motion, again.rules.max_text_share) == (limit, 1)
    code, out, _ = whatif(curated, monkeypatch, capsys, "out/curate", "--rules", "new.yaml", "--json", "again.json")
    second = json.loads((curated / "again.json").read_text(encoding="utf-8"))
    assert {**second, "buckets": {}} == {**found, "buckets": {}}
    config = CurateConfig(rules=again.rules)
    report = curate(config, f"{curated}/out/ingest", f"{curated}/out/objects", f"{curated}/out/new")
    assert (report.kept, report.train) == (found["after"]["clips"], found["after"]["train"])


def test_objects_that_are_gone_leave_rows_without_pictures(
    curated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--pictures", "margin.png", "--objects", str(curated / "nowhere")]
    code, out, _ = whatif(curated, monkeypatch, capsys, "out/curate", "--set", "rules.min_motion=0.3", *files)
    assert code == 0
    assert "wrote margin.png: 0 of" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "There is no run 'nothing' in"),
        (["out/nothing"], "Nothing is published at out/nothing"),
        (["out/ingest"], "holds 'videos', not 'clips'"),
        (["mine", "--set", "rules.min_motoin=1"], "rules.min_motoin: unknown key"),
        (["mine", "--set", "rules.min_motion=fast"], "rules.min_motion: Input should be a valid number"),
        (["mine", "--set", "shots.threshold=2"], "that asks for measuring again"),
        (["mine", "--set", "rules.thresholds.colour.min=2"], "the clips table has no numeric column of that name"),
        (["mine", "--rules", "none.yaml"], "Could not read the config none.yaml"),
        (["out/curate", "--pictures", "x.png"], "--pictures needs --objects"),
        (["mine", "--json", "runs/mine/arguments.json/x"], "Could not write"),
    ],
)
def test_a_mistake_is_one_sentence(
    curated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    code, _, err = whatif(curated, monkeypatch, capsys, *arguments)
    assert (code, len(err.splitlines())) == (1, 1)
    assert words in err


@pytest.mark.slow
def test_a_million_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".kinoflow").mkdir()
    with manifest.publish(str(tmp_path / "curate"), "clips", config={}, inputs={}) as publication:
        tables.write(many_clips(1_000_000), publication.directory / "clips.parquet", tables.CLIPS)
    arguments = ["curate", "--set", "rules.min_motion=0.3", "-p", "opensora-v1.1", "--json", "new.json"]
    code, _, err = whatif(tmp_path, monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert found["shots"] == 1_000_000
    assert found["newly_dropped"] > 100_000


def many_clips(count: int) -> pl.DataFrame:
    """Kept clips of a quarter as many sources, some of which look like others."""
    draws = np.random.default_rng(3)
    number = pl.Series(np.arange(count))
    source = (number // 4).cast(pl.String).str.zfill(16)
    twin = pl.Series(draws.random(count) < 0.02)
    one: dict[str, object] = {
        "media": "video", "caption": "a cat", "caption_sha256": "0" * 32, "outcome": "kept", "split": "train",
        "sharpness": 100.0, "brightness": 120.0, "contrast": 40.0, "black_share": 0.0, "text_share": 0.0,
        "start_s": 0.0, "end_s": 4.0, "fps": 24.0, "start_frame": 0, "end_frame": 96, "shot_index": 0,
        "source": "web", "licence": "CC0-1.0",
    }  # fmt: skip
    clips = tables.frame([one], tables.CLIPS).select(pl.all().repeat_by(count).explode())
    sides = np.array([[480, 854], [720, 1280], [1080, 1920], [256, 256]], np.int32)[draws.integers(0, 4, count)]
    return clips.with_columns(
        clip_id=source + "-" + (number % 4).cast(pl.String).str.zfill(4), source_id=source, path=source + ".mp4",
        object_key=source + ".mp4", content_sha256=source, motion=pl.Series(draws.random(count)),
        num_frames=pl.Series(draws.integers(10, 300, count).astype(np.int32)),
        height=pl.Series(sides[:, 0]), width=pl.Series(sides[:, 1]),
        near_duplicate_group=pl.when(twin).then("g" + (number // 50).cast(pl.String)),
    ).select(list(tables.CLIPS)).sort("clip_id")  # fmt: skip
