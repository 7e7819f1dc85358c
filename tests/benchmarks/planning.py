"""A whole plan, from the clips table to the plan file. As a program it tells the memory that takes."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import polars as pl
import typer

from components import tables
from components.bucket.plan import plan_training
from components.config import Draws
from components.kept_clips import Clips
from model.buckets import BucketTable, choose_buckets
from tests.benchmarks.measuring import Figure, Settings, by_turns

SEED = 42
COST_GROUP = 8
EVAL_SHARE = 0.01
SHOTS_PER_SOURCE = 3
ROWS_AT_ONCE = 1_000_000


def figures(
    folder: Path, clips: np.ndarray, cases: dict[str, tuple[BucketTable, Draws]], settings: Settings
) -> list[Figure]:
    """Rows of the clips table per second and bytes a row, of one epoch.

    Args:
        folder: For the files.
        clips: (3, N) source frames, height, width.
        cases: Bucket table and draws by name; the memory is that of the last.
        settings: Rounds and clock.
    """
    source, out = folder / "clips.parquet", folder / "plan.safetensors"
    write_clips(source, clips)
    epochs = {name: one_epoch(source, *case) for name, case in cases.items()}
    runs = {name: partial(make, source, out, *case, epochs[name]) for name, case in cases.items()}
    timings = by_turns(runs, settings, "clips table to plan file")
    rows = clips.shape[1]
    found = [timings.rate(name, rows / 1e6, f"clips table to plan file, {name}", "million rows/s") for name in cases]
    name, (table, draws) = list(cases.items())[-1]
    (folder / "table.json").write_text(table.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "tests.benchmarks.planning", str(folder), draws, str(epochs[name])]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs[name]()
    return [
        *found,
        Figure(f"peak memory over that of an idle process, {name}", peak / rows, "bytes/row"),
        Figure(f"plan file, {name}", out.stat().st_size / rows, "bytes/row"),
    ]


def write_clips(path: Path, clips: np.ndarray) -> None:
    """A clips table as curation writes it, with nothing in the columns that planning does not read."""
    rows = clips.shape[1]
    rng = np.random.default_rng(1)
    sources = np.sort(rng.integers(0, 2**63, -(-rows // SHOTS_PER_SOURCE), dtype=np.uint64))
    starts = range(0, rows, ROWS_AT_ONCE)
    table = pl.concat([_clips_part(rng, sources, clips, slice(start, start + ROWS_AT_ONCE)) for start in starts])
    absent = [pl.lit(None).alias(name) for name in tables.CLIPS if name not in table.columns]
    columns = [pl.col(name).cast(kind) for name, kind in tables.CLIPS.items()]
    table.lazy().with_columns(absent).select(columns).sink_parquet(path, compression="zstd")


def _clips_part(rng: np.random.Generator, sources: np.ndarray, clips: np.ndarray, rows: slice) -> pl.DataFrame:
    numbers = np.arange(*rows.indices(clips.shape[1]))
    ids = zip(sources[numbers // SHOTS_PER_SOURCE].tolist(), (numbers % SHOTS_PER_SOURCE).tolist(), strict=True)
    digests = rng.integers(0, 2**63, (len(numbers), 2), dtype=np.uint64).tolist()
    return pl.DataFrame(
        {
            "clip_id": [f"{source:016x}-{shot:04d}" for source, shot in ids],
            "caption_sha256": [f"{high:016x}{low:016x}" for high, low in digests],
            "fps": rng.choice([24.0, 25.0, 29.97], len(numbers)),
            "split": np.where(rng.random(len(numbers)) < EVAL_SHARE, "eval", "train").tolist(),
            "outcome": ["kept"] * len(numbers),
            **dict(zip(("num_frames", "height", "width"), clips[:, rows], strict=True)),
        }
    )


def one_epoch(source: Path, table: BucketTable, draws: Draws) -> int:
    """Whole groups of batches in the first epoch."""
    clips = Clips.read(source, split="train", seed=SEED, draws=draws)
    index = choose_buckets(table, *clips.sizes, clips.seeds, uniform=clips.uniform).index
    counts = np.bincount(index[index >= 0], minlength=len(table.triples))
    batch_sizes = np.array([bucket.batch_size or 1 for bucket in table.triples])
    return max(1, int((-(-counts // batch_sizes)).sum()) // COST_GROUP * COST_GROUP)


def make(source: Path, out: Path, table: BucketTable, draws: Draws, num_batches: int) -> None:
    """From file to file."""
    clips = Clips.read(source, split="train", seed=SEED, draws=draws)
    plan = plan_training(
        clips, table, stage="s", seed=SEED, num_batches=num_batches, crops_per_clip=2, cost_group=COST_GROUP
    )
    plan.save(out)


def memory_bytes(name: str) -> int:
    """A figure of this process that Linux keeps: VmRSS, memory now, or VmHWM, the most so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) << 10


def measure_memory(
    folder: Annotated[Path, typer.Argument()],
    draws: Annotated[str, typer.Argument()],
    num_batches: Annotated[int, typer.Argument()],
) -> None:
    """Print the bytes by which one plan raises the memory of this process."""
    table = BucketTable.model_validate_json((folder / "table.json").read_text(encoding="utf-8"))
    before = memory_bytes("VmRSS")
    make(folder / "clips.parquet", folder / "again.safetensors", table, cast(Draws, draws), num_batches)
    print(memory_bytes("VmHWM") - before)  # noqa: T201


if __name__ == "__main__":
    typer.run(measure_memory)
