"""A stage and what is taken down while it runs, before it, and in the stages before it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from components import manifest
from components.errors import KinoflowError
from components.held_out import open_held_out
from components.lineage.seen import chain, touched_by
from components.takedown import Filed, Rules, Tombstone, revoke, write
from components.train import train
from tests.components.test_train import STEPS, TRACKING, config, digests, write_dataset

FIRST = [f"clip{number}" for number in range(6)]  # batch n of the plan holds clips n % 3 and n % 3 + 3


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def tombstones(tmp_path) -> str:
    return str(tmp_path / "tombstones")


@pytest.fixture
def data(tmp_path, tombstones) -> str:
    return write_dataset(str(tmp_path / "bucket"), ("stage1", "stage2"), tombstones=tombstones)


def take_down(tombstones: str, *clip_ids: str) -> Filed:
    rules = Rules(sources=("somewhere",))
    return write(tombstones, Tombstone(
        rules=rules, reason="asked", by="me", at="2026-01-01T00:00:00Z", clip_ids=clip_ids, tables=("table",)
    ))  # fmt: skip


def run(data: str, out: Path, parent: str | None = None, **changes):
    return train(config(**{"checkpoint_every": 1, "keep_checkpoints": 99, **changes}), TRACKING, data=data,
                 parent=parent, out=str(out))  # fmt: skip


def interrupted(data: str, out: Path, steps: int, tmp_path: Path, **changes) -> None:
    """Leave what a run killed after so many steps leaves."""
    run(data, tmp_path / "whole", **changes)
    out.mkdir()
    for step in range(1, steps + 1):
        shutil.copytree(tmp_path / "whole" / f"step-{step:08d}", out / f"step-{step:08d}")


def test_a_stage_without_tombstones_is_what_it_was(data, tombstones, tmp_path):
    plain = run(write_dataset(str(tmp_path / "plain"), ("stage1", "stage2")), tmp_path / "a")
    take_down(tombstones, "clip of another dataset")
    same = run(data, tmp_path / "b")
    assert digests(same.checkpoint) == digests(plain.checkpoint) and same.checkpoint_digest == plain.checkpoint_digest
    assert same.checkpoint_digest == manifest.load(same.checkpoint).digest


def test_a_stage_does_not_see_what_is_taken_down(data, tombstones, tmp_path):
    before = run(data, tmp_path / "before")
    assert touched_by(before.checkpoint) == (0, set())
    filed = take_down(tombstones, "clip1", "clip0", "clip3")
    after = run(data, tmp_path / "after")
    [seen], [seen_before] = chain(after.checkpoint), chain(before.checkpoint)
    assert seen_before.clip_ids.to_list() == FIRST
    assert seen.clip_ids.to_list() == ["clip2", "clip4", "clip5"]
    assert touched_by(after.checkpoint) == (0, set()) and touched_by(before.checkpoint) == (3, {filed.id})
    published = manifest.load(after.checkpoint)
    assert published.inputs.keys() == {"data", "clips", "taken_down"}
    assert published.facts["taken_down"][0]["num_clips"] == 3
    assert [point.samples for point in before.history] == [2] * STEPS
    assert [point.samples for point in after.history] == [1, 1, 2] * 4, "clips 0+3, 1+4, 2+5 become 4, 4, 2+5"
    again = run(data, tmp_path / "after")
    assert again == after, "it has ended already"
    with open_held_out(data, "stage1", tmp_path / "held-out") as batches:
        assert [len(batches.read(index)) for index in range(len(batches))] == [1, 2]


def test_it_goes_on_exactly_where_nothing_taken_down_was_seen(data, tombstones, tmp_path):
    interrupted(data, tmp_path / "run", 1, tmp_path)
    take_down(tombstones, "clip1", "clip2")
    resumed = run(data, tmp_path / "run")
    fresh = run(data, tmp_path / "fresh")
    assert resumed.checkpoint_digest == fresh.checkpoint_digest and digests(resumed.checkpoint) == digests(
        fresh.checkpoint
    )
    assert manifest.load(f"{tmp_path}/run/step-00000001").inputs.keys() == {"data", "clips"}, "it was not trained again"


def test_it_refuses_to_keep_what_it_learnt_until_told(data, tombstones, tmp_path, caplog):
    interrupted(data, tmp_path / "run", 7, tmp_path)
    filed = take_down(tombstones, "clip2")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(KinoflowError, match=f"checkpoint of step 7 has seen 1 clips .*{filed.id}.*touched_checkpoint"):
        run(data, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == kept
    shutil.copytree(tmp_path / "run", tmp_path / "on")

    with caplog.at_level(logging.INFO):
        back = run(data, tmp_path / "run", touched_checkpoint="go_back")
    assert f"going on from {tmp_path}/run/step-00000002" in caplog.text
    fresh = run(data, tmp_path / "fresh")
    assert back.checkpoint_digest == fresh.checkpoint_digest and digests(back.checkpoint) == digests(fresh.checkpoint)
    assert touched_by(back.checkpoint) == (0, set())

    on = run(data, tmp_path / "on", touched_checkpoint="go_on")
    assert "has seen 1 clips which are taken down" in caplog.text
    published = manifest.load(on.checkpoint)
    assert [(period["first_step"], period["num_clips"]) for period in published.facts["taken_down"]] == [(0, 0), (7, 1)]
    assert published.inputs["taken_down"] != manifest.load(fresh.checkpoint).inputs["taken_down"]
    assert touched_by(on.checkpoint) == (1, {filed.id}) and on.checkpoint_digest != fresh.checkpoint_digest
    assert run(data, tmp_path / "on", touched_checkpoint="go_on").checkpoint_digest == on.checkpoint_digest
    with pytest.raises(KinoflowError, match="checkpoint of step 12 has seen 1 clips"):
        run(data, tmp_path / "on")


def test_a_revoked_takedown_leaves_the_stage_as_it_would_have_been(data, tombstones, tmp_path):
    whole = run(data, tmp_path / "never")
    filed = take_down(tombstones, "clip5")
    run(data, tmp_path / "run")
    revoke(tombstones, filed.id, reason="a mistake", by="me")
    again = run(data, tmp_path / "run")
    assert again.checkpoint_digest == whole.checkpoint_digest
    assert touched_by(again.checkpoint) == (0, set())


def test_children_inherit_what_their_parents_saw(data, tombstones, tmp_path):
    parent = run(data, tmp_path / "stage1")
    filed = take_down(tombstones, "clip4")
    told = {"name": "stage2", "steps": 3}
    with pytest.raises(KinoflowError, match=r"'stage2' does not start: it starts from .*, which has seen 1 clips"):
        run(data, tmp_path / "stage2", parent.checkpoint, **told)
    child = run(data, tmp_path / "stage2", parent.checkpoint, **told, touched_checkpoint="go_on")
    assert [stage.stage for stage in chain(child.checkpoint)] == ["stage2", "stage1"]
    assert "clip4" not in next(chain(child.checkpoint)).clip_ids
    assert touched_by(child.checkpoint) == (1, {filed.id})
    clean = run(data, tmp_path / "clean")
    assert run(data, tmp_path / "other", clean.checkpoint, **told).steps == 3


def test_nothing_left_is_one_sentence(data, tombstones, tmp_path):
    take_down(tombstones, *FIRST)
    with pytest.raises(KinoflowError, match="Every clip of the plan is taken down"):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
