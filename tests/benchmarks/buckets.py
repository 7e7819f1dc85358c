"""Bucket choice, a million clips at once over the rule spelled out for one clip; and the whole plan of an epoch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import yaml

from components.config import Draws
from model.buckets import BucketTable, choose_bucket, choose_buckets
from tests.benchmarks import planning
from tests.benchmarks.measuring import Figure, Settings, by_turns

PRESETS = Path(__file__).resolve().parents[2] / "pipelines" / "presets"
SIZES = np.array([(1080, 1920), (720, 1280), (480, 854), (1920, 1080), (2160, 3840), (512, 512), (240, 426), (96, 128)])


def run(settings: Settings) -> list[Figure]:
    """Rows per second with Open-Sora 1.1's keep probabilities (exact coins), and with every probability 1."""
    rows, scalar_rows = (2_000, 50) if settings.toy else (1_000_000, 2_000)
    figures = []
    for name, table in (("stage 1 table", stage_table()), ("keep = 1", always_kept(stage_table()))):
        clips = random_clips(rows)
        seeds = table.row_seeds(42, 0, rows)

        def at_once(table: BucketTable = table, seeds: np.ndarray = seeds, clips: np.ndarray = clips) -> object:
            return choose_buckets(table, clips[0], clips[1], clips[2], seeds)

        def one_by_one(table: BucketTable = table, seeds: np.ndarray = seeds, clips: np.ndarray = clips) -> object:
            columns = [column[:scalar_rows].tolist() for column in (*clips, seeds)]
            return [choose_bucket(table, *row) for row in zip(*columns, strict=True)]

        check_equal(table, clips[:, :scalar_rows], seeds[:scalar_rows])
        timings = by_turns({"at once": at_once, "one by one": one_by_one}, settings, f"buckets, {name}")
        figures += [
            timings.rate("at once", rows / 1e6, f"choose_buckets, {name}", "million rows/s"),
            timings.rate("one by one", scalar_rows, f"choose_bucket, {name}", "rows/s"),
            timings.speed_ratio("at once", "one by one", f"at once over one by one, {name}", rows, scalar_rows),
        ]
    with tempfile.TemporaryDirectory() as folder:
        figures += planning.figures(Path(folder), random_clips(planned_rows(settings)), plan_cases(), settings)
    return figures


def planned_rows(settings: Settings) -> int:
    """Rows of the clips table that is planned; PLAN_ROWS asks for another size than a million."""
    return 2_000 if settings.toy else int(os.environ.get("PLAN_ROWS", "1_000_000"))


def plan_cases() -> dict[str, tuple[BucketTable, Draws]]:
    """Bucket table and draws, the cheapest last."""
    table = stage_table()
    return {
        "stage 1 table, draws of Open-Sora 1.1": (table, "opensora-1.1"),
        "stage 1 table, fast draws": (table, "fast"),
        "keep = 1, fast draws": (always_kept(table), "fast"),
    }


def stage_table(stage: str = "stage1") -> BucketTable:
    """Bucket table of a stage of the Open-Sora 1.1 preset."""
    preset = yaml.safe_load((PRESETS / "opensora-v1.1.yaml").read_text(encoding="utf-8"))
    return BucketTable.model_validate(next(s["buckets"] for s in preset["stages"] if s["name"] == stage))


def always_kept(table: BucketTable) -> BucketTable:
    """The same table with every probability above 0 raised to 1: no coin is tossed."""
    buckets = {
        name: {frames: (float(keep > 0), size) for frames, (keep, size) in entries.items()}
        for name, entries in table.buckets.items()
    }
    return BucketTable(buckets=buckets, frame_interval=table.frame_interval, batch_sizes=table.batch_sizes)


def random_clips(rows: int) -> np.ndarray:
    """(3, rows) int64: source frames (a tenth are images), height, width."""
    rng = np.random.default_rng(0)
    frames = np.clip(rng.lognormal(5.0, 0.8, rows).astype(np.int64), 2, 5_000)
    frames[rng.random(rows) < 0.1] = 1
    return np.stack((frames, *SIZES[rng.integers(len(SIZES), size=rows)].T))


def check_equal(table: BucketTable, clips: np.ndarray, seeds: np.ndarray) -> None:
    """Refuse to time two things that do not do the same."""
    chosen = choose_buckets(table, clips[0], clips[1], clips[2], seeds)
    for row, values in enumerate(zip(*clips.tolist(), seeds.tolist(), strict=True)):
        if chosen.bucket(row) != choose_bucket(table, *values):
            raise RuntimeError(f"row {row}: the two implementations chose different buckets")
