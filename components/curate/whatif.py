"""Other thresholds on a table that is already measured: what would be kept, and what each rule takes away."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from pydantic import BaseModel, ConfigDict

from components.config import CurateConfig
from components.curate.rules import (
    NEAR_DUPLICATE,
    NO_CAPTION,
    SEMANTIC_DUPLICATE,
    Rule,
    apply_rules,
    reopen,
    threshold_rules,
    unmeasured,
)
from components.curate.semantic import with_semantic_groups
from components.curate.split import assign_split

IGNORED_COLUMNS = ("phash", "embedding", "extra")
"""Wide columns that no rule reads."""
_HOURS = (pl.col("end_s") - pl.col("start_s")).sum() / 3600


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Kept(_Record):
    """What a table keeps; hours are those of videos."""

    clips: int
    hours: float
    videos: int
    images: int
    train: int
    eval: int
    dropped_reasons: dict[str, int]


class Effect(_Record):
    """What one rule does to the clips that are open to rules.

    Attributes:
        rule: name of the limit; "captions.required", "near_duplicates" and "max_similarity" for what follows the
            thresholds.
        alone, hours_alone: clips that it would drop if there were no other rule.
        only, hours_only: clips that it drops and no other rule would.
    """

    rule: str
    reason: str
    limit: float | None
    alone: int
    hours_alone: float
    only: int
    hours_only: float


class Comparison(_Record):
    """A published table, and what other rules would make of it.

    Attributes:
        to_caption: kept clips that a model would have to describe first.
        unmeasured: limits that drop nothing because no clip has a value in their column.
    """

    shots: int
    hours: float
    before: Kept
    after: Kept
    newly_kept: int
    newly_dropped: int
    to_caption: int
    unmeasured: tuple[str, ...]
    effects: tuple[Effect, ...]


def decide_again(
    clips: pl.DataFrame, config: CurateConfig, made_with: CurateConfig | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A published table opened again, and decided and split by other rules; the clips stay in their order.

    Where the configuration names a model for captions, a clip without one counts as captioned.

    Args:
        clips: the table; its `embedding` is read if `reads_embeddings` says so.
        config: of what to decide.
        made_with: what the table was made with.
    """
    opened = reopen(clips, caption_required=config.captions.required)
    if not _has_groups(config, made_with):
        opened = with_semantic_groups(opened, config.rules.max_similarity)
    decided = apply_rules(opened, config.rules, caption_required=_drops_uncaptioned(config))
    return opened, assign_split(decided, config.seed, config.eval_share)


def reads_embeddings(config: CurateConfig, made_with: CurateConfig | None) -> bool:
    """Whether deciding asks for groups of semantic duplicates that the table does not have."""
    return config.rules.max_similarity is not None and not _has_groups(config, made_with)


def _has_groups(config: CurateConfig, made_with: CurateConfig | None) -> bool:
    """Whether the table's groups of semantic duplicates are those that a configuration asks for."""
    return config.rules.max_similarity == (made_with.rules.max_similarity if made_with is not None else None)


def compare(before: pl.DataFrame, opened: pl.DataFrame, after: pl.DataFrame, config: CurateConfig) -> Comparison:
    """Count what changes from the published table to the one decided again."""
    was_kept, is_kept = before["outcome"] == "kept", after["outcome"] == "kept"
    rules = threshold_rules(config.rules)
    shots = after.filter(pl.col("shot_index") >= 0)
    return Comparison(
        shots=len(shots),
        hours=float(shots.select(_HOURS).item()),
        before=count_kept(before),
        after=count_kept(after),
        newly_kept=int((is_kept & ~was_kept).sum()),
        newly_dropped=int((was_kept & ~is_kept).sum()),
        to_caption=len(after.filter(is_kept & after["caption"].is_null())) if config.captions.required else 0,
        unmeasured=tuple(unmeasured(opened, rules)),
        effects=tuple(_effects(opened, after, rules, config)),
    )


def count_kept(clips: pl.DataFrame) -> Kept:
    """What a decided table keeps."""
    kept = clips.filter(pl.col("outcome") == "kept")
    reasons = clips.filter(pl.col("outcome") == "dropped")["reason"].value_counts(sort=True)
    return Kept(
        clips=len(kept),
        hours=float(kept.select(_HOURS).item()),
        videos=len(kept.filter(pl.col("media") == "video")),
        images=len(kept.filter(pl.col("media") == "image")),
        train=len(kept.filter(pl.col("split") == "train")),
        eval=len(kept.filter(pl.col("split") == "eval")),
        dropped_reasons=dict(reasons.sort(["count", "reason"], descending=[True, False]).iter_rows()),
    )


def breaking(clips: pl.DataFrame, rules: Sequence[Rule], *, caption_required: bool) -> pl.DataFrame:
    """A column of booleans for each rule by its name, true where an open clip breaks it."""
    is_open = pl.col("outcome").is_null()
    columns = [(is_open & rule.breaks).alias(rule.name) for rule in rules if rule.column in clips.columns]
    if caption_required:
        columns.append((is_open & pl.col("caption").is_null()).alias("captions.required"))
    return clips.select(columns)


def _drops_uncaptioned(config: CurateConfig) -> bool:
    return config.captions.required and config.captions.captioner is None


def _effects(opened: pl.DataFrame, after: pl.DataFrame, rules: list[Rule], config: CurateConfig) -> list[Effect]:
    broken = breaking(opened, rules, caption_required=_drops_uncaptioned(config))
    count = broken.select(pl.sum_horizontal(pl.all().cast(pl.Int32)).alias("count"))["count"]
    seconds = (opened["end_s"] - opened["start_s"]).fill_null(0)
    known = {rule.name: rule for rule in rules}
    found = []
    for name in broken.columns:
        rule, alone = known.get(name), broken[name]
        reason, limit = (rule.reason, rule.limit) if rule else (NO_CAPTION, None)
        found.append(_effect(name, reason, limit, alone, alone & (count == 1), seconds))
    if not config.rules.keep_near_duplicates:
        only = after["reason"].eq(NEAR_DUPLICATE).fill_null(False)
        repeats = _repeats(opened, "near_duplicate_group")
        found.append(_effect("near_duplicates", NEAR_DUPLICATE, None, repeats, only, seconds))
    if config.rules.max_similarity is not None:
        only, repeats = after["reason"].eq(SEMANTIC_DUPLICATE).fill_null(False), _repeats(opened, "semantic_group")
        limit = config.rules.max_similarity
        found.append(_effect("max_similarity", SEMANTIC_DUPLICATE, limit, repeats, only, seconds))
    return found


def _repeats(opened: pl.DataFrame, group: str) -> pl.Series:
    """Open clips but one of each group."""
    is_open, is_first = pl.col("outcome").is_null(), pl.struct(group, "media", "outcome").is_first_distinct()
    return opened.select(repeats=is_open & pl.col(group).is_not_null() & ~is_first)["repeats"]


def _effect(
    name: str, reason: str, limit: float | None, alone: pl.Series, only: pl.Series, seconds: pl.Series
) -> Effect:
    return Effect(
        rule=name,
        reason=reason,
        limit=limit,
        alone=int(alone.sum()),
        hours_alone=float(seconds.filter(alone).sum()) / 3600,
        only=int(only.sum()),
        hours_only=float(seconds.filter(only).sum()) / 3600,
    )
