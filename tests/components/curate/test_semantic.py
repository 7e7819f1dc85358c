"""Semantic duplicates: every pair counts, whatever the order; of a group the largest is kept, on one side."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from components import manifest, tables
from components.config import ClipModelConfig, CurateConfig, CurationRules, IngestConfig, parse
from components.curate import curate
from components.curate.connected import connected
from components.curate.rules import apply_rules, reopen
from components.curate.semantic import COLUMNS_AT_ONCE, similar_groups, with_semantic_groups
from components.curate.split import assign_split
from components.errors import KinoflowError
from components.ingest import ingest
from components.video import write_video
from pipelines.cli import app
from tests.components.curate.test_clip import clip as clip
from tests.components.curate.test_rules import clip as row
from tests.components.curate.test_shots import textured_shots

Vectors = NDArray[np.float16]


def vectors(count: int, width: int, seed: int = 0) -> Vectors:
    """Around one direction, as those of pictures are, a tenth of them close to another one."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(count, width)) / np.arange(1, width + 1) ** 0.5 + rng.normal(size=width)
    copies = rng.integers(0, count, (2, count // 10))
    made[copies[0]] = made[copies[1]] + 0.02 * rng.normal(size=(count // 10, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def brute_force(found: Vectors, min_similarity: float) -> NDArray[np.int64]:
    values = found.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    edges = np.argwhere(np.triu(values @ values.T >= min_similarity, 1)).reshape(-1, 2)
    return connected(edges, len(found))


@pytest.mark.parametrize(("count", "width", "limit"), [(700, 48, 0.98), (700, 48, 0.9), (900, 8, 0.999), (5, 3, 0.99)])
def test_the_bound_rules_nothing_out_that_counts(count: int, width: int, limit: float) -> None:
    found = vectors(count, width)
    assert similar_groups(found, limit).tolist() == brute_force(found, limit).tolist()


def test_clips_far_apart_in_the_table_and_a_crowd() -> None:
    made = vectors(COLUMNS_AT_ONCE + 600, 40)
    made[[3, COLUMNS_AT_ONCE + 500]] = np.eye(40, dtype=np.float16)[7]
    made[1000:3000] = np.eye(40, dtype=np.float16)[9]
    made[-2:] = 0  # a picture without features is like no other
    label = similar_groups(made, 0.999)
    assert label[COLUMNS_AT_ONCE + 500] == 3
    assert set(label[1000:3000]) == {1000}
    assert label[-2:].tolist() == [len(made) - 2, len(made) - 1]


def described(**embeddings: list[float] | None) -> pl.DataFrame:
    rows = [
        row(clip_id=name, source_id=name, path=name, width=100 * len(name))
        | {"embedding": None if value is None else np.array(value, np.float16).tobytes()}
        for name, value in embeddings.items()
    ]
    return tables.frame(rows, tables.CLIPS)


def test_groups_are_named_by_their_smallest_clip_in_any_order() -> None:
    clips = described(b=[1, 0], a=[0.99, 0.1], c=[0, 1], d=None)
    for table in (clips, clips.reverse(), clips.drop("semantic_group")):
        found = with_semantic_groups(table, 0.95)
        assert dict(found.select("clip_id", "semantic_group").iter_rows()) == {"b": "a", "a": "a", "c": None, "d": None}
        assert found["clip_id"].equals(table["clip_id"])
    assert with_semantic_groups(found, None)["semantic_group"].null_count() == 4
    apart = clips.with_columns(media=pl.when(pl.col("clip_id") == "a").then(pl.lit("image")).otherwise("media"))
    assert with_semantic_groups(apart, 0.95)["semantic_group"].null_count() == 4


def test_the_largest_of_what_other_rules_leave_is_kept() -> None:
    clips = described(a=[1, 0], bb=[1, 0], ccc=[1, 0], d=[0, 1])
    clips = clips.with_columns(
        caption=pl.when(pl.col("clip_id") == "ccc").then(None).otherwise("caption"),
        near_duplicate_group=pl.when(pl.col("clip_id").is_in(["a", "d"])).then(pl.lit("a")),
    )
    grouped = with_semantic_groups(clips, 0.95)
    rules = CurationRules(max_similarity=0.95)
    decided = apply_rules(grouped, rules, caption_required=True)
    assert dict(decided.select("clip_id", "reason").iter_rows()) == {
        "a": "semantic_duplicate", "bb": None, "ccc": "no_caption", "d": "near_duplicate",
    }  # fmt: skip
    assert decided["detail"][0] == "It shows the same as clip bb." and decided["near_duplicate_of"][0] == "bb"
    opened = reopen(assign_split(decided, 1, 0.5), caption_required=True)
    assert apply_rules(opened, rules, caption_required=True).equals(decided)
    without = apply_rules(opened, CurationRules(), caption_required=True)
    assert without.filter(pl.col("outcome") == "kept")["clip_id"].to_list() == ["a", "bb"]


def test_a_group_goes_to_one_side() -> None:
    clips = described(**{f"{number:03d}": [1.0, 0.0] if number % 2 else [0.0, 1.0] for number in range(40)})
    kept = with_semantic_groups(clips, 0.95).with_columns(outcome=pl.lit("kept"))
    for seed in range(5):
        split = assign_split(kept, seed, 0.3)
        assert set(split.group_by("semantic_group").agg(pl.col("split").n_unique())["split"]) == {1}
        assert set(split["split"]) == {"train", "eval"}


def test_the_rule_needs_features() -> None:
    with pytest.raises(KinoflowError, match=r"max_similarity compares CLIP's features; name a local CLIP"):
        parse(CurateConfig, {"rules": {"max_similarity": 0.9}}, "curate")


def test_a_curation_drops_them_and_whatif_says_the_same(tmp_path: Path, clip: ClipModelConfig) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (frames,) = [textured_shots([20], seed=number)]
        write_video(tmp_path / "in" / f"{number}.mp4", frames, 24)
        (tmp_path / "in" / f"{number}.txt").write_text("a cat")
        if number == 0:  # larger and turned upside down: another picture that shows the same
            large = np.stack([cv2.resize(frame[::-1], (192, 144)) for frame in frames]).astype(np.uint8)
            write_video(tmp_path / "in" / "0-turned.mp4", large, 24)
            (tmp_path / "in" / "0-turned.txt").write_text("a cat")
    places = {"videos": f"{tmp_path}/videos", "objects": f"{tmp_path}/objects"}
    ingest(IngestConfig(), str(tmp_path / "in"), places["objects"], places["videos"])
    config = CurateConfig(clip=clip, workers=1)
    curate(config, **places, out=f"{tmp_path}/all")
    before = tables.read(tmp_path / "all/clips.parquet", tables.CLIPS)
    assert before["semantic_group"].null_count() == len(before) == 5
    features = np.stack([np.frombuffer(value, np.float16).astype(np.float32) for value in before["embedding"]])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.sort((features @ features.T)[np.triu_indices(5, 1)])
    limit = float(cosines[-1] + cosines[-2]) / 2  # one pair is more alike
    rules = CurationRules(max_similarity=limit)
    report = curate(config.model_copy(update={"rules": rules}), **places, out=f"{tmp_path}/fewer")
    assert report.dropped_reasons == {"semantic_duplicate": 1} and report.kept == 4
    after = tables.read(tmp_path / "fewer/clips.parquet", tables.CLIPS)
    assert after["semantic_group"].count() == 2
    assert "semantic_duplicate" in (tmp_path / "fewer/report.html").read_text(encoding="utf-8")
    assert manifest.load(f"{tmp_path}/fewer").facts["kept"] == 4
    for table, change in (("all", str(limit)), ("fewer", "null")):
        written = tmp_path / f"{table}.json"
        arguments = ["whatif", f"{tmp_path}/{table}", "--set", f"rules.max_similarity={change}", "--json", str(written)]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        told = json.loads(written.read_text(encoding="utf-8"))
        other = {"all": report.kept, "fewer": 5}[table]
        assert told["after"]["clips"] == other
        effects = {effect["rule"]: effect for effect in told["effects"]}
        assert ("max_similarity" in effects) == (table == "all")
        if table == "all":
            assert (effects["max_similarity"]["alone"], effects["max_similarity"]["only"]) == (1, 1)
            assert told["after"]["dropped_reasons"] == {"semantic_duplicate": 1}
