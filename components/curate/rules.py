"""Decisions: thresholds on columns that are already measured, so that a new threshold costs no decoding.

A clip is dropped for the first rule it breaks, in this order: the thresholds of `CurationRules` as they are listed
there, captions, near-duplicates and then semantic duplicates among what is left. Everything is a few passes over whole
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components import tables
from components.errors import KinoflowError
from components.rules_config import CurationRules

NO_CAPTION, CAPTION_FAILED = "no_caption", "caption_failed"
NEAR_DUPLICATE, SEMANTIC_DUPLICATE = "near_duplicate", "semantic_duplicate"
_UNDECIDED = pl.col("outcome").is_null()
# Reason, column, name of the limit, whether it is a minimum, whether stills are exempt; in the order they are asked.
_LISTED = (
    ("too_short", "num_frames", "min_frames", True, True),
    ("black", "black_share", "max_black_share", False, False),
    ("dark", "brightness", "min_brightness", True, False),
    ("bright", "brightness", "max_brightness", False, False),
    ("flat", "contrast", "min_contrast", True, False),
    ("blurred", "sharpness", "min_sharpness", True, False),
    ("text", "text_share", "max_text_share", False, False),
    ("static", "motion", "min_motion", True, True),
    ("frozen", "frozen_share", "max_frozen_share", False, True),
    ("letterbox", "letterbox_share", "max_letterbox_share", False, False),
    ("slow", "flow", "min_flow", True, True),
    ("fast", "flow", "max_flow", False, True),
    ("low_aesthetic", "aesthetic", "min_aesthetic", True, False),
    ("low_text_match", "text_match", "min_text_match", True, False),
)


@dataclass(frozen=True)
class Rule:
    """A limit of one column; a clip beyond it is dropped, one without a value is not.

    Attributes:
        reason: slug of the dropped clips.
        column: of the clips table, numeric.
        name: what the limit is called in the configuration.
        limit: the last value that is still good.
        is_minimum: whether smaller values are bad, or larger ones.
        videos_only: whether still images are exempt.
    """

    reason: str
    column: str
    name: str
    limit: float
    is_minimum: bool
    videos_only: bool = False

    @property
    def breaks(self) -> pl.Expr:
        """True where a clip is beyond the limit; never null."""
        value = pl.col(self.column)
        beyond = value < self.limit if self.is_minimum else value > self.limit
        beyond &= ~value.cast(pl.Float64).is_nan()
        return (beyond & (pl.col("media") == "video") if self.videos_only else beyond).fill_null(False)

    def sentence(self, value: float) -> str:
        """Why a clip with this value is dropped."""
        if self.column == "num_frames" and self.is_minimum:
            return f"{value} frames, fewer than {self.name} {self.limit:g}."
        side = "below" if self.is_minimum else "above"
        return f"{self.column} {value:.4g} is {side} {self.name} {self.limit:g}."


def threshold_rules(rules: CurationRules) -> list[Rule]:
    """The rules on single columns that are on, in the order they are asked.

    Raises:
        KinoflowError: a threshold names no numeric column of the clips table.
    """
    found = [
        Rule(reason, column, name, limit, is_minimum, videos_only)
        for reason, column, name, is_minimum, videos_only in _LISTED
        if (limit := getattr(rules, name)) is not None
    ]
    for column, bounds in sorted(rules.thresholds.items()):
        _require_numeric(column)
        if bounds.min is not None:
            found.append(Rule(f"low_{column}", column, f"thresholds.{column}.min", bounds.min, True))
        if bounds.max is not None:
            found.append(Rule(f"high_{column}", column, f"thresholds.{column}.max", bounds.max, False))
    return found


def _require_numeric(column: str) -> None:
    numeric = sorted(name for name, kind in pl.Schema(tables.CLIPS).items() if kind.is_numeric())
    if column not in numeric:
        raise KinoflowError(
            f"rules.thresholds.{column}: the clips table has no numeric column of that name; "
            f"choose one of {', '.join(numeric)}."
        )


def unmeasured(clips: pl.DataFrame, rules: Sequence[Rule]) -> list[str]:
    """Names of limits that can drop nothing, because no clip has a value in their column."""
    shots = clips.filter(pl.col("shot_index") >= 0)
    if shots.is_empty():
        return []
    return [rule.name for rule in rules if rule.column not in shots.columns or shots[rule.column].count() == 0]


def apply_rules(clips: pl.DataFrame, rules: CurationRules, *, caption_required: bool) -> pl.DataFrame:
    """Decide every undecided clip: `outcome` becomes "kept" or "dropped", one reason each, the first in order.

    Rows that already have an outcome stay as they are. Of the clips of one `near_duplicate_group` that no other rule
    drops the largest picture is kept (the first by path among equals); the others name it in `near_duplicate_of`. Of
    what is left then of one `semantic_group`, where that rule is on, likewise.

    Args:
        clips: table of the `clips` schema, scores filled in, `outcome` null where undecided.
        rules: thresholds.
        caption_required: whether a clip without a caption is dropped.
    """
    asked = [rule for rule in threshold_rules(rules) if rule.column in clips.columns]
    broken = _first_broken(clips, asked)
    reasons, details = _reasons(clips, asked, broken)
    decided = clips.with_columns(_reason=reasons, _detail=details)
    if caption_required:
        uncaptioned = pl.col("_reason").is_null() & pl.col("caption").is_null()
        decided = decided.with_columns(
            _reason=pl.when(uncaptioned).then(pl.lit(NO_CAPTION)).otherwise("_reason"),
            _detail=pl.when(uncaptioned).then(pl.lit("There is no caption for it.")).otherwise("_detail"),
        )
    if not rules.keep_near_duplicates:
        decided = _drop_repeats(decided, "near_duplicate_group", NEAR_DUPLICATE, "It looks the same as clip {}.")
    if rules.max_similarity is not None and "semantic_group" in decided.columns:
        decided = _drop_repeats(decided, "semantic_group", SEMANTIC_DUPLICATE, "It shows the same as clip {}.")
    dropped = _UNDECIDED & pl.col("_reason").is_not_null()
    return decided.with_columns(
        outcome=pl.when(dropped).then(pl.lit("dropped")).when(_UNDECIDED).then(pl.lit("kept")).otherwise("outcome"),
        reason=pl.when(_UNDECIDED).then("_reason").otherwise("reason"),
        detail=pl.when(_UNDECIDED).then("_detail").otherwise("detail"),
    ).select(clips.columns)


def reopen(clips: pl.DataFrame, *, caption_required: bool) -> pl.DataFrame:
    """Published clips as they were before the rules: what a threshold, a caption or a near-duplicate decided is open.

    Files that were rejected stay so, and shots that were dropped for what they are (damaged, taken down).
    """
    rules = pl.col("reason").is_in(_reasons_of_rules(clips))
    if not caption_required:
        rules |= pl.col("reason") == CAPTION_FAILED
    is_open = (pl.col("outcome") == "kept") | (pl.col("outcome").eq("dropped") & rules)
    empty = pl.lit(None, pl.String)
    return clips.with_columns(
        pl.when(is_open).then(empty).otherwise(name).alias(name)
        for name in ("outcome", "reason", "detail", "near_duplicate_of", "split")
    )


def _reasons_of_rules(clips: pl.DataFrame) -> list[str]:
    """Every slug that a rule of any configuration can give."""
    numeric = [name for name, kind in clips.schema.items() if kind.is_numeric()]
    generic = [f"{side}_{name}" for name in numeric for side in ("low", "high")]
    return [*(reason for reason, *_ in _LISTED), *generic, NO_CAPTION, NEAR_DUPLICATE, SEMANTIC_DUPLICATE]


def _first_broken(clips: pl.DataFrame, rules: Sequence[Rule]) -> NDArray[np.int64]:
    """(N,) position of the first rule that each undecided clip breaks; -1 where it breaks none."""
    first = pl.coalesce(
        *(pl.when(rule.breaks).then(pl.lit(place, pl.Int64)) for place, rule in enumerate(rules)),
        pl.lit(-1, pl.Int64),
    )
    broken = clips.select(pl.when(_UNDECIDED).then(first).otherwise(pl.lit(-1, pl.Int64)).alias("broken"))
    found: NDArray[np.int64] = broken["broken"].to_numpy()
    return found


def _reasons(clips: pl.DataFrame, rules: Sequence[Rule], broken: NDArray[np.int64]) -> tuple[pl.Series, pl.Series]:
    reasons = np.full(len(clips), None, dtype=object)
    details = np.full(len(clips), None, dtype=object)
    for place, rule in enumerate(rules):
        rows = np.flatnonzero(broken == place)
        reasons[rows] = rule.reason
        details[rows] = [rule.sentence(value) for value in clips[rule.column].gather(rows).to_list()]
    return (
        pl.Series(reasons.tolist(), dtype=pl.String),
        pl.Series(details.tolist(), dtype=pl.String),
    )


def _drop_repeats(clips: pl.DataFrame, group: str, reason: str, sentence: str) -> pl.DataFrame:
    """Of each group only the largest stays; stills are compared with stills and videos with videos."""
    competes = _UNDECIDED & pl.col("_reason").is_null() & pl.col(group).is_not_null()
    area = pl.col("width").cast(pl.Int64) * pl.col("height")
    best = pl.col("clip_id").sort_by([-area, "path", "shot_index", "clip_id"]).first()
    originals = (
        clips.filter(competes)
        .with_columns(_original=best.over([group, "media"]))
        .filter(pl.col("_original") != pl.col("clip_id"))
        .select("clip_id", "_original")
    )
    repeats = pl.col("_original").is_not_null()
    return (
        clips.join(originals, on="clip_id", how="left", maintain_order="left")
        .with_columns(
            _reason=pl.when(repeats).then(pl.lit(reason)).otherwise("_reason"),
            _detail=pl.when(repeats).then(pl.format(sentence, "_original")).otherwise("_detail"),
            near_duplicate_of=pl.coalesce("_original", "near_duplicate_of"),
        )
        .drop("_original")
    )
