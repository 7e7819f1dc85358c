"""Split and takedown on a table of a million clips, with a dataset and checkpoints made from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import polars as pl

from components import manifest, tables
from components.curate.split import assign_split
from components.leakage import check_leakage
from components.lineage.seen import touched_by
from components.plan_file import PlanFile, PlannedClips, Shape, training_plan
from components.published import Published
from components.shards import LOCATIONS_FILE, ROW, hash_keys, write_locations
from components.takedown.plans import without
from components.takedown.reach import Tables, file
from components.texts import Texts
from model.checkpoint import STATE, Progress
from model.diffusion_config import IDDPMConfig
from model.optimizer_config import OptimizerConfig
from tests.benchmarks.measuring import Figure, Settings

NUM_CLIPS, TOY_CLIPS = 1_000_000, 2_000
SHOTS_PER_FILE, EPOCHS, BATCH_SIZE, NUM_CHECKPOINTS = 4, 3, 8, 3
NUM_SOURCES = 10
SHAPES = [Shape("144p", frames, "1.00", 144, 256) for frames in (1, 16)]


def run(settings: Settings) -> list[Figure]:
    """Seconds of each answer; a tenth of the clips is taken down."""
    count = TOY_CLIPS if settings.toy else NUM_CLIPS
    clock = process_time if settings.cpu_time else perf_counter
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as folder:
        clips = make_clips(count)
        made = {
            f"split, {count:,} clips": lambda: assign_split(clips, 42, 0.1),
            f"leakage check, {count:,} clips": lambda: check_leakage(clips),
        }
        publish_all(folder, clips)
        made[f"takedown of a tenth, {count:,} clips, {NUM_CHECKPOINTS} checkpoints"] = lambda: take_down(folder)
        figures = [Figure(name, seconds(call, clock, settings.rounds), "s") for name, call in made.items()]
        last = f"{folder}/stage1/step-{NUM_CHECKPOINTS:08d}"
        figures.append(Figure("has a checkpoint seen what is taken down", seconds(
            lambda: touched_by(last), clock, settings.rounds), "s"))  # fmt: skip
        plan = PlanFile.open(Path(folder) / "bucket" / training_plan("stage1"))
        taken = np.arange(len(plan.clips.ids)) % NUM_SOURCES == 0
        rows = f"a plan of {plan.num_samples:,} samples without them"
        return [*figures, Figure(rows, seconds(lambda: without(plan, taken), clock, settings.rounds), "s")]


def seconds(call: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    """The median time of some calls."""
    times = []
    for _ in range(rounds):
        began_s = clock()
        call()
        times.append(clock() - began_s)
    return median(times)


def take_down(root: str) -> None:
    """As `kinoflow takedown --source source3`."""
    published = Published(root)
    table = Tables(published)
    reach = table.reach(table.rules(["source3"], [], [], []))
    assert not reach.unknown and {each.kind for each in reach.touched} >= {"clips", "shard", "dataset", "checkpoint"}
    file(published, reach, reason="a benchmark", by="nobody")


def make_clips(count: int) -> pl.DataFrame:
    """A clips table with what split and takedown look at."""
    number = np.arange(count)
    file_number = number // SHOTS_PER_FILE
    rng = np.random.default_rng(3)
    names = np.sort(rng.integers(0, 2**63, int(file_number[-1]) + 1, dtype=np.uint64)).tolist()
    source_ids = pl.Series([f"{name:016x}" for name in names])
    table = pl.DataFrame({"file": file_number, "number": number}).with_columns(
        source_id=source_ids.gather(file_number),
        shot_index=pl.col("number") % SHOTS_PER_FILE,
        group=pl.Series(rng.integers(0, count, count)),
    )
    shot = pl.col("shot_index")
    made = table.with_columns(
        clip_id=pl.format("{}-{}", "source_id", shot.cast(pl.String).str.zfill(4)),
        path=pl.format("videos/{}.mp4", "source_id"),
        content_sha256=pl.concat_str([pl.col("source_id")] * 4),
        source=pl.format("source{}", pl.col("file") % NUM_SOURCES),
        licence=pl.lit("CC-BY-4.0"),
        media=pl.lit("video"),
        outcome=pl.when(pl.col("number") % 5 == 0).then(pl.lit("dropped")).otherwise(pl.lit("kept")),
        start_frame=shot * 100,
        end_frame=shot * 100 + 100,
        near_duplicate_group=pl.when(pl.col("number") % 50 == 0).then(pl.format("{}", pl.col("group") // 100)),
    )
    absent = [pl.lit(None).alias(name) for name in tables.CLIPS if name not in made.columns]
    schema = dict(tables.CLIPS) | {"near_duplicate_group": pl.String}
    clips = made.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in schema.items())
    return assign_split(clips, 42, 0.1)


def publish_all(root: str, clips: pl.DataFrame) -> None:
    """A clips table, a dataset planned on it, where its tensors lie, and checkpoints of one stage."""
    with manifest.publish(f"{root}/curate", "clips", config={}, inputs={}) as publication:
        tables.write(clips.select(list(tables.CLIPS)), publication.directory / "clips.parquet", tables.CLIPS)
    assert publication.manifest is not None
    inputs = {"clips": publication.manifest.digest}
    with manifest.publish(f"{root}/bucket", "dataset", config={}, inputs=inputs) as dataset:
        plan = make_plan(clips.filter((pl.col("outcome") == "kept") & (pl.col("split") == "train"))["clip_id"])
        plan.save(dataset.directory / training_plan("stage1"))
        windows = plan.windows()
        keys = [*windows["latent_key"].unique(), *windows["text_key"].unique()]
        rows = np.zeros(len(keys), ROW)
        rows["key_high"], rows["key_low"] = hash_keys(keys)
        rows["shard"] = np.arange(len(keys)) % 100
        write_locations(dataset.directory / LOCATIONS_FILE, rows, [f"latents/{n:05d}.safetensors" for n in range(100)])
        dataset.facts["stages"] = {"stage1": {}}
        dataset.annotations.update({"clips": f"{root}/curate", "tombstones": f"{root}/tombstones"})
    assert dataset.manifest is not None
    for step in range(1, NUM_CHECKPOINTS + 1):
        steps_each = len(plan) // NUM_CHECKPOINTS
        state = Progress(
            stage="stage1", step=step, steps=NUM_CHECKPOINTS, batches_per_step=steps_each, seed=0, random_stream="",
            optimizer=OptimizerConfig(), diffusion=IDDPMConfig(), ema_decay=0.9,
        )  # fmt: skip
        with manifest.publish(
            f"{root}/stage1/step-{step:08d}", "checkpoint", config={}, inputs={"data": dataset.manifest.digest}
        ) as checkpoint:
            (checkpoint.directory / STATE).write_text(state.model_dump_json(), encoding="utf-8")
            checkpoint.facts.update({"stage": "stage1", "step": step})
            checkpoint.annotations["data"] = f"{root}/bucket"


def make_plan(ids: pl.Series) -> PlanFile:
    """Every clip once an epoch, shuffled."""
    rng = np.random.default_rng(5)
    clip = np.concatenate([rng.permutation(len(ids)) for _ in range(EPOCHS)])
    clip = clip[: len(clip) // BATCH_SIZE * BATCH_SIZE]
    batches = len(clip) // BATCH_SIZE
    captions = rng.integers(0, 2**63, (len(ids), 2), dtype=np.uint64)
    return PlanFile.build(
        SHAPES, PlannedClips(Texts.of(ids), captions, np.full(len(ids), 24.0, np.float32)), frame_interval=3,
        sizes=np.full(batches, BATCH_SIZE), bucket=rng.integers(0, len(SHAPES), batches),
        epoch=np.zeros(batches, np.int32), clip=clip, start_frame=rng.integers(0, 2, len(clip)),
    )  # fmt: skip
