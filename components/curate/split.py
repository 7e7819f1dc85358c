"""Which sources are held out: by hash, so that a source stays on its side when others come or go."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.curate.connected import connected

Int64 = NDArray[np.int64]
GROUPS = ("near_duplicate_group", "semantic_group")


def assign_split(clips: pl.DataFrame, seed: int, eval_share: float) -> pl.DataFrame:
    """Fill `split` of the kept clips with "train" or "eval".

    Sources that share a near-duplicate or a semantic one, kept or not, go to one side together. For each medium with at
    least two such groups, one is held out even when no hash falls below `eval_share`; one is always left to train on. A
    share of 0 holds out none.

    Args:
        clips: table of the `clips` schema; the columns of groups may be missing.
        seed: decides which groups are held out.
        eval_share: of the groups.
    """
    names, source = _numbered(clips["source_id"])
    group = _groups(clips, source, len(names))[source]
    kept = clips.select("media", is_kept=pl.col("outcome") == "kept", group=pl.Series(group, dtype=pl.Int64))
    by_media = kept.filter("is_kept").group_by("media").agg(pl.col("group").unique()).sort("media")
    present = np.unique(kept.filter("is_kept")["group"].to_numpy())
    draws = np.array([_draw(seed, names[number]) for number in present.tolist()], dtype=np.float64)
    held_out = draws < eval_share
    if eval_share > 0:
        for groups in by_media["group"]:
            _see_to_both_sides(np.searchsorted(present, np.sort(groups.to_numpy())), held_out, draws)
    is_eval = pl.Series(np.isin(group, present[held_out]))
    split = pl.when(pl.col("outcome") == "kept").then(pl.when(is_eval).then(pl.lit("eval")).otherwise(pl.lit("train")))
    return clips.with_columns(split.cast(pl.String).alias("split"))


def _see_to_both_sides(members: Int64, held_out: NDArray[np.bool_], draws: NDArray[np.float64]) -> None:
    """Leave one group of a medium to each side where there are two; `members` point into the other arrays, by name."""
    order = members[np.argsort(draws[members], kind="stable")]
    if len(order) < 2:
        held_out[order] = False
    elif not held_out[order].any():
        held_out[order[0]] = True
    elif held_out[order].all():
        held_out[order[-1]] = False


def _numbered(column: pl.Series) -> tuple[list[str], Int64]:
    """The different values in their order, and of each row the position of its value."""
    names = column.unique().sort()
    numbers = column.to_frame("name").join(
        names.to_frame("name").with_row_index("number"), on="name", how="left", maintain_order="left"
    )
    return names.to_list(), numbers["number"].to_numpy().astype(np.int64)


def _groups(clips: pl.DataFrame, source: Int64, num_sources: int) -> Int64:
    """(num_sources,) the smallest source that each one is connected to by duplicates."""
    rows = clips.select("clip_id", "near_duplicate_of", source=pl.Series(source))
    originals = rows.select("near_duplicate_of", "source").drop_nulls()
    pairs = originals.join(rows.select("clip_id", other="source"), left_on="near_duplicate_of", right_on="clip_id")
    edges = [pairs.select("source", "other")]
    for group in GROUPS:
        if group in clips.columns:
            members = rows.select("source", clips[group]).drop_nulls()
            edges.append(members.select("source", other=pl.col("source").min().over(group)))
    return connected(pl.concat(edges).unique().to_numpy(), num_sources)


def _draw(seed: int, group: str) -> float:
    """A number in [0, 1) that only the seed and the group decide."""
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
