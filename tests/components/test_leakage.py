"""What both sides must not share, and that the split never lets them."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import tables
from components.curate.split import assign_split
from components.errors import KinoflowError
from components.leakage import check_leakage


def clips(*rows: tuple[str, str, str | None]) -> pl.DataFrame:
    """Kept clips from (source, split, near-duplicate group)."""
    made = [
        {"clip_id": f"{source}-{number:04d}", "source_id": source, "media": "video", "outcome": "kept", "split": split}
        for number, (source, split, _) in enumerate(rows)
    ]
    groups = pl.Series("near_duplicate_group", [group for *_, group in rows], dtype=pl.String)
    return tables.frame(made, tables.CLIPS).with_columns(groups)


def test_a_source_on_both_sides_is_named() -> None:
    table = clips(("a", "train", None), ("b", "train", None), ("b", "eval", None), ("c", "eval", None))
    with pytest.raises(KinoflowError, match=r"share the source file b: b-0001 is trained on and b-0002 is held out"):
        check_leakage(table)
    check_leakage(table.filter(pl.col("clip_id") != "b-0002"))


def test_a_group_of_near_duplicates_on_both_sides_is_named() -> None:
    table = clips(("a", "train", "g"), ("b", "eval", "g"), ("c", "train", "h"), ("d", "eval", "h"))
    with pytest.raises(KinoflowError, match=r"group of near-duplicates g \(and 1 more\)"):
        check_leakage(table)
    dropped = pl.when(pl.col("split") == "eval").then(pl.lit("dropped")).otherwise("outcome")
    check_leakage(table.with_columns(outcome=dropped))


def test_a_pair_of_near_duplicates_on_both_sides_is_named() -> None:
    table = clips(("a", "train", None), ("b", "eval", None)).drop("near_duplicate_group")
    pair = pl.when(pl.col("source_id") == "b").then(pl.lit("a-0000"))
    with pytest.raises(KinoflowError, match="pair of near-duplicates b-0001, a-0000: a-0000 is trained on and b-0001"):
        check_leakage(table.with_columns(near_duplicate_of=pair))


groups = st.one_of(st.none(), st.integers(0, 6).map(lambda number: f"group{number}"))
rows = st.lists(st.tuples(st.integers(0, 15).map(lambda number: f"source{number:02d}"), groups), max_size=40)


@given(rows, st.integers(0, 3), st.sampled_from([0.0, 0.2, 0.9]))
def test_a_split_never_leaks(made: list[tuple[str, str | None]], seed: int, share: float) -> None:
    split = assign_split(clips(*((source, "", group) for source, group in made)), seed, share)
    check_leakage(split)
    assert split["split"].null_count() == 0
