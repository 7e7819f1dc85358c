"""Clips that lie closest to a threshold, on either side of it: where it is right or wrong is seen there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from components.contact_sheet import Strip, write_sheet
from components.curate.rules import Rule
from components.curate.whatif import breaking
from components.stored_media import clip_frames

LONG_SIDE_PX = 192
FRAMES_SHOWN = 3


@dataclass(frozen=True)
class Marginal:
    """A clip near a limit: its row, the rule, and whether it is dropped."""

    row: dict[str, object]
    rule: Rule
    is_dropped: bool


def marginal_clips(opened: pl.DataFrame, rules: Sequence[Rule], asked: Sequence[Rule], each: int) -> list[Marginal]:
    """For each asked rule the clips closest to its limit, at most `each` on either side, the furthest dropped first.

    Only clips that break no other rule count: with them the limit decides.

    Args:
        opened: table of the `clips` schema, open to rules.
        rules: all that are on.
        asked: those of interest.
        each: clips on one side.
    """
    broken = breaking(opened, rules, caption_required=False)
    total = broken.select(pl.sum_horizontal(pl.all().cast(pl.Int32)).alias("n"))["n"]
    found = []
    for rule in asked:
        if rule.column not in opened.columns:
            continue
        breaks = broken[rule.name]
        subject = (pl.col("media") == "video") if rule.videos_only else pl.lit(True)
        near = opened.with_columns(
            _dropped=breaks,
            _free=total - breaks.cast(pl.Int32) == 0,
            _distance=(pl.col(rule.column) - rule.limit).abs(),
        ).filter(pl.col("outcome").is_null() & pl.col("_free") & pl.col("_distance").is_not_null() & subject)
        for is_dropped in (True, False):
            side = near.filter(pl.col("_dropped") == is_dropped).sort("_distance", "clip_id").head(each)
            rows = side.drop("_dropped", "_free", "_distance").to_dicts()
            found += [Marginal(row, rule, is_dropped) for row in (reversed(rows) if is_dropped else rows)]
    return found


def draw_margin(marginal: Sequence[Marginal], objects: str, path: Path) -> int:
    """Write a contact sheet of them; frames that cannot be read are left out.

    Returns:
        of how many clips the frames are shown.
    """
    strips = [Strip(_lines(item), clip_frames(item.row, objects, LONG_SIDE_PX)) for item in marginal]
    write_sheet(strips, path, frames_shown=FRAMES_SHOWN)
    return sum(len(strip.frames) > 0 for strip in strips)


def _lines(item: Marginal) -> list[str]:
    value = item.row[item.rule.column]
    return [
        f"{'DROPPED' if item.is_dropped else 'KEPT'}: {item.rule.column} {value:.4g}",
        f"{item.rule.name} {item.rule.limit:g}",
        str(item.row["path"])[-72:],
        f"{item.row['start_s']:.2f} s to {item.row['end_s']:.2f} s" if item.row["media"] == "video" else "",
    ]
