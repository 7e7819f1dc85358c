"""A takedown of one source on a real run: it reaches the checkpoints, and the next run does not see its clips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from components import manifest, store, tables
from components.bucket import bucket
from components.config import TrackingConfig
from components.curate import curate
from components.errors import KinoflowError
from components.evaluate import EvaluateReport, evaluate
from components.ingest import ingest
from components.lineage.seen import chain, open_plan, touched_by
from components.published import Published
from components.shapes.generate import generate
from components.shapes.plan import ShapesConfig
from components.takedown import in_force, taken_down
from components.train import train
from pipelines.cli import app
from pipelines.config import RunConfig, load_run_config

SMALL = {
    "num_threads": 1, "curate.workers": 1, "autoencoder.steps": 4, "stages.0.steps": 4, "stages.1.steps": 2,
    "stages.2.steps": 1, "evaluate.sampling.num_inference_steps": 1, "evaluate.num_text_to_image": 1,
    "evaluate.num_text_to_video": 1, "evaluate.num_image_to_video": 1, "evaluate.timesteps": 1,
}  # fmt: skip
TRACKING = TrackingConfig(run_name="takedown")
SOURCES = {"own": "CC0-1.0", "web": "CC-BY-4.0"}


@dataclass(frozen=True)
class Base:
    """A folder that runs share, with the videos of two sources ingested."""

    root: Path
    config: RunConfig

    def __str__(self) -> str:
        return str(self.root)

    def run(self, name: str, videos: str) -> str:
        """The stages from curation to evaluation; returns the URI of the last checkpoint."""
        out, config = f"{self}/runs/{name}", self.config
        objects = f"{self}/objects"
        curate(config.curate, videos, objects, f"{out}/curate")
        bucket(config.bucket_config(), f"{out}/curate", objects, f"{self}/latents", f"{out}/bucket")
        parent = None
        for stage in ("stage1", "stage2", "stage3"):
            parent = train(
                config.train_config(stage), TRACKING, data=f"{out}/bucket", parent=parent, out=f"{out}/{stage}"
            ).checkpoint
        assert parent is not None
        self.evaluate(parent, name, f"{out}/evaluate")
        return parent

    def evaluate(self, checkpoint: str, name: str, out: str) -> EvaluateReport:
        """The last stage of a run."""
        run = f"{self}/runs/{name}"
        return evaluate(
            self.config.evaluate_config(), TRACKING, checkpoint=checkpoint, data=f"{run}/bucket", clips=f"{run}/curate",
            objects=f"{self}/objects", out=out,
        )  # fmt: skip

    def kinoflow(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--root", str(self)])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    def answer(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.kinoflow(*arguments, "--json")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Two sources in one videos table, and a whole run on it."""
    root = tmp_path_factory.mktemp("takedown")
    made = Base(root / "base", load_run_config("smoke", SMALL))
    parts = []
    for seed, (source, licence) in enumerate(SOURCES.items()):
        generate(root / source, ShapesConfig(seed=seed, num_videos=4, num_images=5))
        config = made.config.ingest.model_copy(update={"source_name": source, "licence": licence})
        ingest(config, str(root / source / "videos"), f"{made}/objects", f"{root}/ingested-{source}")
        table = tables.read(root / f"ingested-{source}" / "videos.parquet", tables.VIDEOS)
        apart = {"source_id": pl.col("source_id").str.slice(1) + str(seed), "path": f"{source}/" + pl.col("path")}
        parts.append(table.with_columns(**apart))
    first_of_content = (pl.col("outcome") != "ingested") | pl.struct("content_sha256", "outcome").is_first_distinct()
    videos = pl.concat(parts).filter(first_of_content).sort("source_id")
    with manifest.publish(f"{made}/runs/ingest", "videos", config={}, inputs={}) as publication:
        tables.write(videos, publication.directory / "videos.parquet", tables.VIDEOS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made.run("first", f"{made}/runs/ingest")
    return made


def checkpoints(root: object) -> dict[str, str]:
    """Stage -> its last checkpoint."""
    return {name.rsplit("/", 1)[-1]: folders[-1] for name, folders in Published(str(root)).stages().items()}


@pytest.mark.slow
def test_a_takedown_reaches_the_checkpoints_and_the_next_run_does_not_see_its_clips(
    base: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = f"{base}/runs/first"
    clips = tables.read(Path(first) / "curate" / "clips.parquet", tables.CLIPS).filter(pl.col("shot_index") >= 0)
    web = set(clips.filter(pl.col("source") == "web")["clip_id"])
    own = set(clips.filter((pl.col("source") == "own") & (pl.col("outcome") == "kept"))["clip_id"])
    last = {stage: f"{first}/{folder}" for stage, folder in checkpoints(first).items()}
    seen = {stage: set(next(chain(uri)).clip_ids) for stage, uri in last.items()}
    assert seen["stage1"] & web and seen["stage1"] & own

    # --- what it would touch, without touching anything
    tried = base.answer("takedown", "--source", "web", "--reason", "asked by its owner", "--dry-run")
    assert tried["tombstone"] is None and not Path(f"{base}/tombstones").exists()
    assert set(tried["reach"]["clip_ids"]) == web and not tried["reach"]["unknown"]

    # --- in force
    answer = base.answer("takedown", "--source", "web", "--reason", "asked by its owner")
    assert answer["reach"] == tried["reach"] and answer["filed"] == [f"{base}/tombstones/{answer['tombstone']}.json"]
    [filed] = in_force(f"{base}/tombstones")
    assert (
        filed.tombstone.reason == "asked by its owner" and filed.tombstone.by and set(filed.tombstone.clip_ids) == web
    )
    touched = {(each["kind"], each["uri"]): each for each in answer["reach"]["touched"]}
    assert touched["clips", f"{first}/curate"]["clips"] == len(web)
    assert touched["dataset", f"{first}/bucket"]["clips"] > 0 and touched["run", first]["clips"] == len(web)
    for stage, uri in last.items():
        assert touched["checkpoint", uri]["clips"] == len(seen[stage] & web)
        assert touched_by(uri)[0] >= len(seen[stage] & web)
    before = seen["stage1"] | seen["stage2"]
    assert touched["checkpoint", last["stage3"]]["inherited"] == len((before - seen["stage3"]) & web)
    assert touched["checkpoint", last["stage3"]]["used_by"] == ["models:/kinoflow@candidate"]
    assert ("evaluation", f"{first}/evaluate") in touched
    shards = [uri for kind, uri in touched if kind == "shard"]
    assert shards and all(store.exists(uri) for uri in shards)

    # --- who looks at the checkpoint is told
    caplog.clear()
    evaluated = base.evaluate(last["stage3"], "first", f"{base}/runs/evaluated")
    count, tombstones = touched_by(last["stage3"])
    assert (evaluated.taken_down_clips, evaluated.tombstones) == (count, (filed.id,)) and tombstones == {filed.id}
    assert f"{last['stage3']} was trained on {count} clips that are taken down since ({filed.id})" in caplog.text
    page = Path(f"{base}/runs/evaluated/report.html").read_text(encoding="utf-8")
    assert f"trained on {count} clips that are taken down since ({filed.id})" in page
    [node] = base.answer("lineage", last["stage3"])["outputs"]
    assert node["facts"]["clips_seen_that_are_taken_down"] == count and node["facts"]["tombstones"] == filed.id
    assert "clips seen that are taken down" in base.kinoflow("lineage", last["stage3"])

    # --- a dataset that was made before there were takedowns finds them all the same
    old = Path(f"{first}/bucket") / manifest.NAME
    told = json.loads(old.read_text(encoding="utf-8"))
    without = {**told, "annotations": {k: v for k, v in told["annotations"].items() if k != "tombstones"}}
    old.write_text(json.dumps(without), encoding="utf-8")
    assert taken_down(f"{first}/bucket", manifest.load(f"{first}/bucket")).ids == web
    assert touched_by(last["stage3"])[0] == count
    old.write_text(json.dumps(told), encoding="utf-8")

    # --- the next training, on what is there already and from the beginning
    with pytest.raises(KinoflowError, match=r"has seen .* clips that are taken down"):
        train(base.config.train_config("stage2"), TRACKING, data=f"{first}/bucket", parent=last["stage1"],
              out=f"{base}/runs/child/stage2")  # fmt: skip
    again = train(base.config.train_config("stage1"), TRACKING, data=f"{first}/bucket", parent=None,
                  out=f"{base}/runs/again/stage1")  # fmt: skip
    assert not set(next(chain(again.checkpoint)).clip_ids) & web
    config, shared = base.config.bucket_config(), (f"{base}/objects", f"{base}/latents")
    bucket(config, f"{first}/curate", *shared, f"{base}/runs/replanned/bucket")
    replanned = manifest.load(f"{base}/runs/replanned/bucket")
    assert "taken_down" in replanned.inputs and "taken_down" not in manifest.load(f"{first}/bucket").inputs
    assert not set(open_plan(f"{base}/runs/replanned/bucket", "stage1").clips.ids.each()) & web
    final = base.run("second", f"{base}/runs/ingest")
    for stage in chain(final):
        assert stage.clip_ids.len() and not set(stage.clip_ids) & web
    assert touched_by(final) == (0, set())
    assert manifest.load(f"{base}/runs/second/evaluate").facts["taken_down_clips"] == 0
    ledger = tables.read(Path(f"{base}/runs/second/curate/clips.parquet"), tables.CLIPS)
    gone = ledger.filter((pl.col("source") == "web") & (pl.col("shot_index") >= 0))
    assert set(gone["reason"]) == {"taken_down"} and set(gone["outcome"]) == {"dropped"}
    assert all(filed.id in detail for detail in gone["detail"])
    assert set(ledger.filter(pl.col("outcome") == "kept")["clip_id"]) == own
    known = {
        each["uri"]
        for each in base.answer("takedown", "--source", "web", "--reason", "x", "--dry-run")["reach"]["touched"]
    }
    assert f"{base}/runs/second/bucket" not in known and f"{base}/runs/second/curate" in known

    # --- and back
    assert "no longer in force" in base.kinoflow("takedown", "--revoke", filed.id, "--reason", "settled")
    assert in_force(f"{base}/tombstones") == ()
    assert touched_by(last["stage3"]) == (0, set())
    before = manifest.load(f"{first}/bucket")
    assert bucket(config, f"{first}/curate", *shared, f"{first}/bucket").manifest_digest == before.digest


@pytest.mark.slow
def test_lineage_answers_both_directions(base: Base, tmp_path: Path) -> None:
    first = f"{base}/runs/first"
    last = f"{first}/{checkpoints(first)['stage3']}"
    # --- a checkpoint: down to the videos
    [node] = base.answer("lineage", last, "--clips", str(tmp_path / "seen.txt"))["outputs"]
    ids = [stage.clip_ids.to_list() for stage in chain(last)]
    assert node["facts"]["clips_seen"] == dict(zip(("stage3", "stage2", "stage1"), map(len, ids), strict=True))
    everything = sorted({clip_id for stage in ids for clip_id in stage})
    assert (tmp_path / "seen.txt").read_text().splitlines() == everything
    assert {(o["source"], o["licence"]) for o in node["origins"]} == set(SOURCES.items())
    assert sum(origin["clips"] for origin in node["origins"]) == len(everything) == node["facts"]["clips_seen_together"]
    inputs = {below["name"]: below for below in node["inputs"]}
    assert inputs["parent"]["facts"]["stage"] == "stage2" and inputs["data"]["uri"] == f"{first}/bucket"
    [curated] = [below for below in inputs["data"]["inputs"] if below["name"] == "clips"]
    assert [(below["kind"], below["uri"]) for below in curated["inputs"]] == [("videos", f"{base}/runs/ingest")]
    # --- and up to what was made from it
    made = base.answer("lineage", f"{first}/curate")["made_from_it"]
    assert {"bucket", "evaluate"} <= {node["uri"].rsplit("/", 1)[-1] for node in made}
    # --- a clip, a file, a run
    clip_id = next(chain(last)).clip_ids[0]
    clip = base.answer("lineage", clip_id)
    told = clip["clips"][0]
    assert told["clip_id"] == clip_id and SOURCES[told["source"]] == told["licence"] and told["end_frame"] > 0
    assert ("checkpoint", last) in {(each["kind"], each["uri"]) for each in clip["occurrences"]}
    assert {row["clip_id"] for row in base.answer("lineage", told["path"])["clips"]} >= {clip_id}
    drawn = base.kinoflow("lineage", "first")
    assert "evaluation" in drawn and "checkpoint" in drawn and "clips of" in drawn and "CC-BY-4.0" in drawn
    with pytest.raises(KinoflowError, match="nobody is no output, no run below"):
        base.kinoflow("lineage", "nobody")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Say why with --reason"),
        (("--reason", "x"), "Say what to take down"),
        (("--reason", "x", "--source", "wbe"), "has the source 'wbe'; there are 'own', 'web'"),
        (("--reason", "x", "--clip", "nobody"), "has the clip 'nobody'"),
        (("--revoke", "20260101T000000Z-0123456789ab"), "There is no tombstone"),
    ],
)
def test_mistakes_are_one_sentence(base: Base, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(KinoflowError, match=sentence):
        base.kinoflow("takedown", *arguments)
