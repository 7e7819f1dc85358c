"""Which sources are held out: by hash, so that a source stays on its side when others come or go."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import polars as pl


def assign_split(clips: pl.DataFrame, seed: int, eval_share: float) -> pl.DataFrame:
    """Fill `split` of the kept clips with "train" or "eval".

    Sources that share a near-duplicate go to one side together. For each medium with at least two such groups, one
    is held out even when no hash falls below `eval_share`; one is always left to train on. A share of 0 holds out
    none.
    """
    group_of = _groups(clips)
    kept = clips.filter(pl.col("outcome") == "kept")
    groups_by_media: dict[str, set[str]] = defaultdict(set)
    for source_id, media in kept.select("source_id", "media").iter_rows():
        groups_by_media[media].add(group_of[source_id])
    held_out = {group for groups in groups_by_media.values() for group in groups if _draw(seed, group) < eval_share}
    if eval_share > 0:
        for media in sorted(groups_by_media):
            held_out = _with_both_sides(groups_by_media[media], held_out, seed)
    splits = [
        None if outcome != "kept" else "eval" if group_of[source_id] in held_out else "train"
        for source_id, outcome in clips.select("source_id", "outcome").iter_rows()
    ]
    return clips.with_columns(pl.Series("split", splits, dtype=pl.String))


def _with_both_sides(groups: set[str], held_out: set[str], seed: int) -> set[str]:
    ordered = sorted(groups, key=lambda group: (_draw(seed, group), group))
    if len(ordered) < 2:
        return held_out - groups
    if not groups & held_out:
        return held_out | {ordered[0]}
    if groups <= held_out:
        return held_out - {ordered[-1]}
    return held_out


def _groups(clips: pl.DataFrame) -> dict[str, str]:
    """The group of each source, named by its smallest source id: connected by near-duplicates (union-find)."""
    parent = {source_id: source_id for source_id in clips["source_id"]}

    def find(source_id: str) -> str:
        while parent[source_id] != source_id:
            parent[source_id] = parent[parent[source_id]]
            source_id = parent[source_id]
        return source_id

    source_of = dict(clips.select("clip_id", "source_id").iter_rows())
    pairs: Iterable[tuple[str, str]] = (
        clips.filter(pl.col("near_duplicate_of").is_not_null()).select("source_id", "near_duplicate_of").iter_rows()
    )
    for source_id, original in pairs:
        first, second = sorted((find(source_id), find(source_of[original])))
        parent[second] = first
    return {source_id: find(source_id) for source_id in parent}


def _draw(seed: int, group: str) -> float:
    """A number in [0, 1) that only the seed and the group decide."""
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
