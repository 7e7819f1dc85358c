"""What training and evaluation must not share: source files and groups of clips that look the same.

`assign_split` in `components.curate` sees to it when clips are curated; `check_leakage` makes sure, there and wherever
a table of clips is read again.
"""

from __future__ import annotations

import polars as pl

from components.errors import KinoflowError

SHARED_BY_CLIPS = {
    "source_id": "source file",
    "near_duplicate_group": "group of near-duplicates",
    "semantic_group": "group of semantic duplicates",
}
"""Columns whose values must lie on one side, and what a value stands for."""


def check_leakage(clips: pl.DataFrame) -> None:
    """Make sure that no kept clip of the training side has anything in common with one held out.

    Args:
        clips: table with (at least) `clip_id`, `source_id`, `split` and `outcome`; duplicates are compared by
            their groups and, through the clip that was kept of them, by `near_duplicate_of`.

    Raises:
        KinoflowError: something is on both sides; names the first such thing and two of its clips.
    """
    kept = clips.filter(pl.col("outcome") == "kept")
    for column, what in SHARED_BY_CLIPS.items():
        if column in kept.columns:
            _check_column(kept, column, what)
    if "near_duplicate_of" in kept.columns:
        _check_pairs(kept)


def _check_column(kept: pl.DataFrame, column: str, what: str) -> None:
    sides = kept.lazy().filter(pl.col(column).is_not_null()).group_by(column)
    both = sides.agg(pl.col("split").n_unique().alias("sides")).filter(pl.col("sides") > 1).collect()
    if len(both):
        name = str(both[column].min())
        clips = kept.filter(pl.col(column) == name).sort("clip_id")
        raise _leak(f"the {what} {name}", len(both), clips)


def _check_pairs(kept: pl.DataFrame) -> None:
    sides = kept.select("clip_id", "split")
    pairs = kept.filter(pl.col("near_duplicate_of").is_not_null()).select("clip_id", "split", "near_duplicate_of")
    joined = pairs.join(sides, left_on="near_duplicate_of", right_on="clip_id", suffix="_of_original")
    leaks = joined.filter(pl.col("split") != pl.col("split_of_original")).sort("clip_id")
    if len(leaks):
        pair = [leaks["clip_id"][0], leaks["near_duplicate_of"][0]]
        raise _leak(f"the pair of near-duplicates {pair[0]}, {pair[1]}", len(leaks), kept.filter(
            pl.col("clip_id").is_in(pair)))  # fmt: skip


def _leak(what: str, count: int, clips: pl.DataFrame) -> KinoflowError:
    trained, held_out = (str(clips.filter(pl.col("split") == side)["clip_id"].first()) for side in ("train", "eval"))
    more = f" (and {count - 1} more)" if count > 1 else ""
    return KinoflowError(
        f"Training and evaluation share {what}{more}: {trained} is trained on and {held_out} is held out; "
        "losses on it would flatter the model. Curate again so that the split is made anew."
    )
