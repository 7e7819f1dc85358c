"""Decisions: thresholds on columns that are already measured, so that a new threshold costs no decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from components.config import CurationRules

Row = dict[str, object]


@dataclass(frozen=True)
class Rule:
    """A condition under which a clip is dropped, and the sentence that says why."""

    reason: str
    breaks: pl.Expr
    detail: Callable[[Row], str]


def threshold_rules(rules: CurationRules) -> list[Rule]:
    """The rules on single clips, in the order they are asked."""
    is_video = pl.col("media") == "video"
    return [
        Rule(
            "too_short",
            is_video & (pl.col("num_frames") < rules.min_frames),
            lambda row: f"{row['num_frames']} frames, fewer than min_frames {rules.min_frames}.",
        ),
        _at_most("black", "black_share", rules.max_black_share, "max_black_share"),
        _at_least("dark", "brightness", rules.min_brightness, "min_brightness"),
        _at_most("bright", "brightness", rules.max_brightness, "max_brightness"),
        _at_least("flat", "contrast", rules.min_contrast, "min_contrast"),
        _at_least("blurred", "sharpness", rules.min_sharpness, "min_sharpness"),
        _at_most("text", "text_share", rules.max_text_share, "max_text_share"),
        _at_least("static", "motion", rules.min_motion, "min_motion", also=is_video),
    ]


def apply_rules(clips: pl.DataFrame, rules: CurationRules, *, caption_required: bool) -> pl.DataFrame:
    """Decide every undecided clip: `outcome` becomes "kept" or "dropped", one reason each, the first in order.

    Rows that already have an outcome stay as they are. After the thresholds come captions, then near-duplicates among
    what is left: the largest picture is kept (the first by path among equals), the others name it in
    `near_duplicate_of`.

    Args:
        clips: table of the `clips` schema, scores filled in, `outcome` null where undecided.
        rules: thresholds.
        caption_required: whether a clip without a caption is dropped.
    """
    rows = clips.with_row_index("_row")
    undecided = pl.col("outcome").is_null()
    all_rules = [*threshold_rules(rules)]
    if caption_required:
        all_rules.append(Rule("no_caption", pl.col("caption").is_null(), lambda _: "There is no caption for it."))
    decisions: dict[int, Row] = {}
    for rule in all_rules:
        open_rows = undecided & ~pl.col("_row").is_in(list(decisions))
        for row in rows.filter(open_rows & rule.breaks.fill_null(False)).iter_rows(named=True):
            decisions[row["_row"]] = _drop(rule.reason, rule.detail(row))
    left = rows.filter(undecided & ~pl.col("_row").is_in(list(decisions)))
    decisions |= _near_duplicate_decisions(left, rules)
    kept: Row = {"outcome": "kept", "reason": None, "detail": None}
    decided = [
        row if row["outcome"] is not None else row | decisions.get(index, kept)
        for index, row in enumerate(clips.iter_rows(named=True))
    ]
    return pl.DataFrame(decided, schema=clips.schema)


def _near_duplicate_decisions(clips: pl.DataFrame, rules: CurationRules) -> dict[int, Row]:
    """Decisions by row number: of each group of near-duplicates one is kept."""
    if rules.near_duplicate_bits < 0:
        return {}
    decisions: dict[int, Row] = {}
    ordered = clips.sort(-pl.col("width").cast(pl.Int64) * pl.col("height"), "path", "shot_index")
    groups = ordered.filter(pl.col("near_duplicate_group").is_not_null())
    for _, group in groups.group_by("near_duplicate_group", maintain_order=True):
        original = group["clip_id"][0]
        for number in group["_row"][1:]:
            decisions[number] = _drop("near_duplicate", f"It looks the same as clip {original}.") | {
                "near_duplicate_of": original
            }
    return decisions


def _drop(reason: str, detail: str) -> Row:
    return {"outcome": "dropped", "reason": reason, "detail": detail}


def _at_most(reason: str, column: str, limit: float, name: str) -> Rule:
    return Rule(reason, pl.col(column) > limit, lambda row: f"{column} {row[column]:.4g} is above {name} {limit:g}.")


def _at_least(reason: str, column: str, limit: float, name: str, *, also: pl.Expr | None = None) -> Rule:
    breaks = pl.col(column) < limit
    return Rule(
        reason,
        breaks if also is None else breaks & also,
        lambda row: f"{column} {row[column]:.4g} is below {name} {limit:g}.",
    )
