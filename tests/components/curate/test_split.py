"""Held-out sources: whole, together with their near-duplicates, and the same ones tomorrow."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from components import tables
from components.curate.split import assign_split

Sources = dict[int, tuple[str, int, int | None]]
"""Number -> (media, shots, number of the source that it repeats)."""


def table(sources: Sources) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for number, (media, shots, original) in sources.items():
        source_id = f"{number * 7919:016x}"
        for shot in range(shots):
            repeats = original is not None and shot == 0
            rows.append({
                "clip_id": f"{source_id}-{shot:04d}", "source_id": source_id, "media": media,
                "outcome": "dropped" if repeats else "kept",
                "near_duplicate_of": f"{(original or 0) * 7919:016x}-0000" if repeats else None,
            })  # fmt: skip
    return tables.frame(rows, tables.CLIPS)


def sides(clips: pl.DataFrame) -> dict[str, set[str]]:
    kept = clips.filter(pl.col("outcome") == "kept")
    return {source: set(group["split"]) for (source,), group in kept.group_by("source_id")}


@given(
    st.lists(st.tuples(st.sampled_from(["video", "image"]), st.integers(1, 3), st.booleans()), max_size=25),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]),
)
def test_properties(shapes: list[tuple[str, int, bool]], seed: int, share: float) -> None:
    sources: Sources = {}
    for number, (media, shots, repeats) in enumerate(shapes):
        original = number - 1 if repeats and number and sources[number - 1][2] is None else None
        sources[number] = (media, shots + (original is not None), original)
    clips = assign_split(table(sources), seed, share)
    found = sides(clips)
    assert all(len(split) == 1 and split <= {"train", "eval"} for split in found.values())
    assert clips.filter(pl.col("outcome") != "kept")["split"].null_count() == len(
        clips.filter(pl.col("outcome") != "kept")
    )
    for number, (_, _, original) in sources.items():
        if original is not None:
            assert found[f"{number * 7919:016x}"] == found[f"{original * 7919:016x}"]
    if share == 0:
        assert not any("eval" in split for split in found.values())


def test_one_of_two_is_held_out_and_one_of_one_is_not() -> None:
    for seed in range(20):
        two = sides(assign_split(table({0: ("video", 2, None), 1: ("video", 2, None)}), seed, 0.1))
        assert sorted(two.values(), key=str) == [{"eval"}, {"train"}]
        nearly_all = sides(assign_split(table({0: ("video", 2, None), 1: ("video", 2, None)}), seed, 0.99))
        assert sorted(nearly_all.values(), key=str) == [{"eval"}, {"train"}]
        assert list(sides(assign_split(table({0: ("video", 2, None)}), seed, 0.1)).values()) == [{"train"}]


def test_each_medium_has_both_sides() -> None:
    sources: Sources = {number: ("image" if number < 2 else "video", 1, None) for number in range(60)}
    for seed in range(20):
        clips = assign_split(table(sources), seed, 0.1)
        for media in ("image", "video"):
            assert set(clips.filter(pl.col("media") == media)["split"]) == {"train", "eval"}


def test_a_source_keeps_its_side_when_others_come() -> None:
    few: Sources = dict.fromkeys(range(100), ("video", 1, None))
    many: Sources = dict.fromkeys(range(200), ("video", 1, None))
    before, after = sides(assign_split(table(few), 1, 0.2)), sides(assign_split(table(many), 1, 0.2))
    assert all(after[source] == split for source, split in before.items())
    share = sum(split == {"eval"} for split in after.values()) / len(after)
    assert 0.1 < share < 0.3
    assert sides(assign_split(table(many), 2, 0.2)) != after
