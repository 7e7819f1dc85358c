"""Tombstones, and plans without what they take down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import store, tables
from components.errors import KinoflowError
from components.plan_file import PlanFile
from components.takedown import (
    Rules,
    Span,
    TakenDown,
    Tombstone,
    beside,
    concerning,
    in_force,
    mark,
    meets,
    revoke,
    write,
)
from components.takedown.periods import Period, Seen, counted
from components.takedown.plans import held_out_without, without
from tests.components.plans import plan_of


def tombstone(*clip_ids: str, at: str = "2026-01-02T03:04:05Z", **rules: tuple[object, ...]) -> Tombstone:
    made = Rules.model_validate(rules or {"sources": ("s",)})
    return Tombstone(rules=made, reason="asked by its owner", by="me", at=at, clip_ids=clip_ids, tables=("t",))


# --- tombstones -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3"])
def prefix(request, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_server").bucket()
    return beside(f"{root}/objects")


def test_tombstones_are_filed_and_revoked(prefix: str) -> None:
    assert in_force(prefix) == () == in_force(None)
    later = write(prefix, tombstone("b", at="2026-01-03T00:00:00Z"))
    first = write(prefix, tombstone("a", "c"))
    store.write_bytes(f"{prefix}/notes.txt", b"not ours")
    assert in_force(prefix) == (first, later)
    before = {item.key: store.read_bytes(f"{prefix}/{item.key}") for item in store.list_objects(prefix)}
    revoke(prefix, first.id, reason="a mistake", by="me")
    assert in_force(prefix) == (later,)
    assert all(store.read_bytes(f"{prefix}/{name}") == data for name, data in before.items()), "nothing is deleted"
    with pytest.raises(KinoflowError, match="revoked already"):
        revoke(prefix, first.id, reason="again", by="me")
    with pytest.raises(KinoflowError, match=f"no tombstone x below .*; there are {first.id}, {later.id}"):
        revoke(prefix, "x", reason="?", by="me")


def test_a_damaged_tombstone_stops_whoever_asks(tmp_path: Path) -> None:
    filed = write(str(tmp_path), tombstone("a"))
    (tmp_path / f"{filed.id}.json").write_text('{"rules": ')
    with pytest.raises(KinoflowError, match=r"tombstone .* is damaged; put it back"):
        in_force(str(tmp_path))


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ("s3://b/data/objects", "s3://b/data/tombstones"),
        ("s3://b/objects/", "s3://b/tombstones"),
        ("s3://b", "s3://b/tombstones"),
        ("work/objects", "work/tombstones"),
        ("/objects", "/objects/tombstones"),
        ("objects", "tombstones"),
    ],
)
def test_tombstones_lie_beside_the_objects(objects: str, expected: str) -> None:
    assert beside(objects) == expected


# --- rules ------------------------------------------------------------------------------------------------------


def clips() -> pl.DataFrame:
    rows = [
        {"clip_id": f"{path}-{shot}", "source_id": path, "path": path, "content_sha256": f"sha {path}",
         "source": source, "licence": licence, "shot_index": shot,
         "start_frame": shot * 10, "end_frame": shot * 10 + 10}
        for path, source, licence in (("a/1.mp4", "web", "CC0"), ("a/2.mp4", "web", None), ("b/1.mp4", "own", "CC0"))
        for shot in range(2)
    ]  # fmt: skip
    rejected = {"clip_id": "bad", "path": "b/bad.mp4", "source": "own", "shot_index": -1, "outcome": "rejected"}
    return tables.frame([*rows, rejected], tables.CLIPS)


def span(start_frame: int, end_frame: int, content: str = "sha a/1.mp4") -> Span:
    return Span(clip_id="x", content_sha256=content, start_frame=start_frame, end_frame=end_frame)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, []),
        ({"sources": ("web",)}, ["a/1.mp4-0", "a/1.mp4-1", "a/2.mp4-0", "a/2.mp4-1"]),
        ({"licences": ("CC0",)}, ["a/1.mp4-0", "a/1.mp4-1", "b/1.mp4-0", "b/1.mp4-1"]),
        ({"paths": ("a/2.mp4",)}, ["a/2.mp4-0", "a/2.mp4-1"]),
        ({"paths": ("b/",)}, ["b/1.mp4-0", "b/1.mp4-1", "bad"]),
        ({"paths": ("b",)}, []),
        ({"spans": (span(10, 20),)}, ["a/1.mp4-1"]),
        ({"spans": (span(9, 11),)}, ["a/1.mp4-0", "a/1.mp4-1"]),
        ({"spans": (span(5, 6), span(0, 99, "sha b/1.mp4"))}, ["a/1.mp4-0", "b/1.mp4-0", "b/1.mp4-1"]),
        ({"sources": ("own",), "spans": (span(0, 1),)}, ["a/1.mp4-0", "b/1.mp4-0", "b/1.mp4-1", "bad"]),
    ],
)
def test_rules_meet_clips(rules: dict[str, tuple[object, ...]], expected: list[str]) -> None:
    table = clips()
    assert table.filter(meets(table, [Rules.model_validate(rules)]))["clip_id"].to_list() == expected
    assert len(meets(table.clear(), [Rules.model_validate(rules)])) == 0


def test_taken_down_shots_are_marked_with_the_first_tombstone(tmp_path: Path) -> None:
    one = write(str(tmp_path), tombstone(sources=("web",)))
    two = write(str(tmp_path), tombstone(at="2027-01-01T00:00:00Z", licences=("CC0",)))
    table = clips().with_columns(outcome=pl.when(pl.col("shot_index") == 0).then(pl.lit("kept")).otherwise("outcome"))
    marked = mark(table, in_force(str(tmp_path)))
    assert marked["outcome"].to_list() == ["dropped"] * 6 + ["rejected"]
    assert marked["reason"].to_list() == ["taken_down"] * 6 + [None]
    assert [one.id in str(detail) for detail in marked["detail"]] == [True] * 4 + [False] * 3
    assert [two.id in str(detail) for detail in marked["detail"]] == [False] * 4 + [True] * 2 + [False]
    assert marked.schema == table.schema and mark(table, ()).equals(table)


def test_tombstones_that_concern_nothing_of_a_table_are_told_apart(tmp_path: Path) -> None:
    for at, rules in enumerate(
        ({"sources": ("elsewhere",)}, {"paths": ("a/",)}, {"spans": (span(0, 1, "sha other"),)})
    ):
        write(str(tmp_path), tombstone(at=f"2026-01-0{at + 1}T00:00:00Z", **rules))
    assert [each.tombstone.rules.paths for each in concerning(clips(), in_force(str(tmp_path)))] == [("a/",)]


# --- plans ------------------------------------------------------------------------------------------------------


def of(plan: PlanFile) -> list[list[str]]:
    return [plan.rows(batch)["clip_id"].to_list() for batch in range(len(plan))]


def mask(plan: PlanFile, *ids: str) -> np.ndarray:
    return TakenDown(frozenset(ids), ("t",)).mask(plan)


def small() -> PlanFile:
    """Batches of two buckets in turns, a and b in one each, the rest mixed."""
    names = ["a a", "x", "b c", "y z", "c d", "x y"]
    shapes = [{"num_frames": 2}, {"num_frames": 1}] * 3
    return plan_of(
        [[{"clip_id": clip, "epoch": n // 3, **shapes[n]} for clip in batch.split()] for n, batch in enumerate(names)]
    )


def test_rows_go_and_batches_keep_their_place() -> None:
    plan = small()
    assert without(plan, mask(plan, "nobody")) is plan
    left = without(plan, mask(plan, "c", "y"))
    assert of(left) == [["a", "a"], ["x"], ["b"], ["z"], ["d"], ["x"]]
    assert left.epoch.tolist() == plan.epoch.tolist()
    assert [left.shape(n).num_frames for n in range(6)] == [2, 1] * 3
    assert left.table().select("start_frame", "fps", "latent_key").row(0) == plan.table().select(
        "start_frame", "fps", "latent_key"
    ).row(0)


def test_an_empty_batch_is_stood_in_for_by_the_next_of_its_bucket() -> None:
    plan = small()
    assert of(without(plan, mask(plan, "a", "x"))) == [
        ["b", "c"],
        ["y", "z"],
        ["b", "c"],
        ["y", "z"],
        ["c", "d"],
        ["y"],
    ]
    assert of(without(plan, mask(plan, "c", "d")))[4] == ["a", "a"], "after the last comes the first"
    other = without(plan, mask(plan, "x", "y", "z"))
    assert of(other) == [["a", "a"], ["b", "c"], ["b", "c"], ["c", "d"], ["c", "d"], ["a", "a"]]
    assert {other.shape(n).num_frames for n in range(6)} == {2}, "no batch of the other bucket is left"
    with pytest.raises(KinoflowError, match="Every clip of the plan is taken down"):
        without(plan, mask(plan, *"abcdxyz"))


def test_a_held_out_batch_goes_with_its_last_row() -> None:
    plan = small()
    assert of(held_out_without(plan, mask(plan, "a", "c"))) == [["x"], ["b"], ["y", "z"], ["d"], ["x", "y"]]
    assert len(held_out_without(plan, mask(plan, *"abcdxyz"))) == 0
    assert held_out_without(plan, mask(plan)) is plan


names = st.sampled_from("abcdefgh")
plans = st.lists(st.tuples(st.integers(1, 3), st.lists(names, min_size=1, max_size=4)), min_size=1, max_size=12)


@settings(deadline=None)
@given(plans, st.sets(names, max_size=6))
def test_a_plan_without_clips(made: list[tuple[int, list[str]]], taken: set[str]) -> None:
    plan = plan_of([[{"clip_id": clip, "num_frames": frames} for clip in batch] for frames, batch in made])
    before, is_taken = of(plan), mask(plan, *taken)
    if all(clip in taken for batch in before for clip in batch):
        with pytest.raises(KinoflowError):
            without(plan, is_taken)
        return
    left = of(without(plan, is_taken))
    rest = [[clip for clip in batch if clip not in taken] for batch in before]
    assert len(left) == len(before) and not {clip for batch in left for clip in batch} & taken
    assert all(new == old for new, old in zip(left, rest, strict=True) if old)
    assert all(new in rest for new in left)
    assert of(held_out_without(plan, is_taken)) == [batch for batch in rest if batch]


# --- what a stage has seen --------------------------------------------------------------------------------------


def test_what_was_seen_follows_what_was_left_out_at_the_time() -> None:
    plan = plan_of([[{"clip_id": clip}] for clip in "abcdef"])
    sets = {("t1",): TakenDown(frozenset("b"), ("t1",)), ("t2",): TakenDown(frozenset("bef"), ("t2",))}
    seen = Seen(plan, 2, lambda ids: sets[tuple(ids)])
    never = (Period(),)
    one, two = (Period.since(0, plan, taken) for taken in sets.values())
    changed = (Period(), two.model_copy(update={"first_step": 1}))

    def clips_of(history: tuple[Period, ...], end: int, *left_out: tuple[int, int]) -> str:
        return "".join(plan.clips.ids[row] for row in seen.clips(history, end, left_out).tolist())

    assert clips_of(never, 2) == "abcd" and clips_of(never, 0) == ""
    assert clips_of(never, 3, (1, 2)) == "abef" and clips_of(never, 2, (1, 9)) == "ab"
    assert clips_of((one,), 1) == "ac", "c stands in for b"
    assert clips_of(changed, 3) == "abcd"
    assert seen.is_same(never, (two,), 0) and not seen.is_same(never, (two,), 1)
    assert seen.is_same(never, changed, 2) and not seen.is_same(never, changed, 3)
    assert seen.is_same((one,), (two,), 2) and not seen.is_same((one,), (two,), 3)
    assert counted(10, [(2, 3), (8, 20)]) == [(0, 2), (3, 8)]
    sets["t1",] = TakenDown(frozenset("a"), ("t1",))
    with pytest.raises(KinoflowError, match="t1 do not take down the clips"):
        Seen(plan, 2, lambda ids: sets[tuple(ids)]).clips((one,), 1)
