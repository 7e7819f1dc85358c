"""Decisions on columns: one reason each, the first rule in order."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from components import tables
from components.config import CurationRules
from components.curate.rules import apply_rules, reopen, threshold_rules, unmeasured
from components.errors import KinoflowError

RULES = CurationRules(min_brightness=10, max_brightness=240)
_counter = iter(range(1_000_000))


def clip(**changes: object) -> dict[str, object]:
    number = next(_counter)
    row: dict[str, object] = {
        "clip_id": f"{number:016x}-0000", "source_id": f"{number:016x}", "path": f"{number:06d}.mp4", "media": "video",
        "shot_index": 0, "num_frames": 48, "width": 96, "height": 96, "caption": "a cat", "motion": 1.0,
        "sharpness": 100.0, "brightness": 120.0, "contrast": 40.0, "black_share": 0.0, "text_share": 0.0,
        "phash": None,
    }  # fmt: skip
    return row | changes


def decide(*rows: dict[str, object], rules: CurationRules = RULES, caption_required: bool = True) -> pl.DataFrame:
    return apply_rules(tables.frame(list(rows), tables.CLIPS), rules, caption_required=caption_required)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"num_frames": 9}, "too_short"),
        ({"black_share": 0.51}, "black"),
        ({"brightness": 9.9}, "dark"),
        ({"brightness": 240.1}, "bright"),
        ({"contrast": 4.9}, "flat"),
        ({"sharpness": 2.9}, "blurred"),
        ({"text_share": 0.021}, "text"),
        ({"motion": 0.039}, "static"),
        ({"caption": None}, "no_caption"),
        ({"num_frames": 10, "black_share": 0.5, "brightness": 240.0, "contrast": 5.0, "sharpness": 3.0}, None),
        ({"text_share": 0.02, "motion": 0.04}, None),
        ({"media": "image", "num_frames": 1, "motion": None}, None),
        ({"media": "image", "num_frames": 1, "motion": None, "text_share": 0.5}, "text"),
        ({"num_frames": 3, "black_share": 1.0, "motion": 0.0, "caption": None}, "too_short"),
        ({"motion": 0.0, "caption": None}, "static"),
    ],
)
def test_each_rule(changes: dict[str, object], reason: str | None) -> None:
    row = decide(clip(**changes)).row(0, named=True)
    assert (row["outcome"], row["reason"]) == ("kept" if reason is None else "dropped", reason)
    assert (row["detail"] is None) == (reason is None)


def test_the_detail_names_the_number_and_the_limit() -> None:
    row = decide(clip(text_share=0.25)).row(0, named=True)
    assert row["detail"] == "text_share 0.25 is above max_text_share 0.02."


def test_decided_rows_stay_as_they_are() -> None:
    rejected = clip(outcome="rejected", reason="not_media", detail="No.", num_frames=None, phash=None)
    damaged = clip(outcome="dropped", reason="decode_error", detail="Damaged.", near_duplicate_group="a")
    twin = clip(near_duplicate_group="a")
    table = tables.frame([rejected, damaged, twin], tables.CLIPS)
    decided = apply_rules(table, RULES, caption_required=True)
    assert decided.head(2).equals(table.head(2))
    assert decided["outcome"].to_list() == ["rejected", "dropped", "kept"]
    assert decided.schema == table.schema


def test_captions_may_be_optional() -> None:
    assert decide(clip(caption=None), caption_required=False)["outcome"].to_list() == ["kept"]


def test_of_near_duplicates_the_largest_is_kept_then_the_first_path() -> None:
    same = {"near_duplicate_group": "a"}
    small, large, later = clip(path="a", **same), clip(path="b", width=192, **same), clip(path="c", width=192, **same)
    decided = decide(small, large, later)
    assert decided["outcome"].to_list() == ["dropped", "kept", "dropped"]
    assert decided["reason"].to_list() == ["near_duplicate", None, "near_duplicate"]
    assert decided["near_duplicate_of"].to_list() == [large["clip_id"], None, large["clip_id"]]
    assert str(large["clip_id"]) in decided["detail"][0]


def test_a_dropped_clip_is_nobodys_original() -> None:
    same = {"near_duplicate_group": "b"}
    decided = decide(clip(path="a", caption=None, **same), clip(path="b", **same))
    assert decided["reason"].to_list() == ["no_caption", None]


def test_stills_are_not_compared_with_videos() -> None:
    same = {"near_duplicate_group": "c"}
    decided = decide(clip(**same), clip(media="image", num_frames=1, motion=None, **same))
    assert decided["outcome"].to_list() == ["kept", "kept"]


def test_an_empty_table_stays_empty() -> None:
    assert decide().is_empty()


def test_an_impossible_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="no clip could be kept"):
        CurationRules(min_brightness=200, max_brightness=100)


def test_new_rules_are_off_until_they_have_a_limit() -> None:
    assert [rule.name for rule in threshold_rules(CurationRules())] == [
        "min_frames", "max_black_share", "min_brightness", "max_brightness", "min_contrast", "min_sharpness",
        "max_text_share", "min_motion",
    ]  # fmt: skip
    on = CurationRules(max_frozen_share=0.5, max_letterbox_share=0.1, min_flow=1, max_flow=9, min_aesthetic=4)
    assert [rule.reason for rule in threshold_rules(on)][8:] == [
        "frozen", "letterbox", "slow", "fast", "low_aesthetic"
    ]  # fmt: skip


def test_any_numeric_column_may_have_bounds() -> None:
    rules = CurationRules.model_validate({"thresholds": {"height": {"min": 64}, "fps": {"min": 10, "max": 60}}})
    rows = [clip(fps=5.0), clip(fps=120.0), clip(fps=30.0, height=32), clip(fps=30.0), clip(fps=None)]
    decided = decide(*rows, rules=rules)
    assert decided["reason"].to_list() == ["low_fps", "high_fps", "low_height", None, None]
    assert decided["detail"][2] == "height 32 is below thresholds.height.min 64."
    for column in ("path", "nowhere"):
        with pytest.raises(KinoflowError, match=rf"rules.thresholds.{column}: .* no numeric column .* brightness"):
            threshold_rules(CurationRules.model_validate({"thresholds": {column: {"min": 1}}}))
    for bounds, message in (({}, "give min, max or both"), ({"min": 2, "max": 1}, "min 2 is above max 1")):
        with pytest.raises(ValidationError, match=message):
            CurationRules.model_validate({"thresholds": {"fps": bounds}})


def test_a_value_that_is_no_number_breaks_nothing_and_a_limit_nobody_was_measured_for_is_told() -> None:
    decided = decide(clip(motion=float("nan")), clip(motion=None), clip(sharpness=float("nan")))
    assert decided["outcome"].to_list() == ["kept"] * 3
    rules = threshold_rules(CurationRules.model_validate({"thresholds": {"fps": {"min": 10}}}))
    table = tables.frame([clip(fps=None), clip(fps=None)], tables.CLIPS)
    assert unmeasured(table, rules) == ["thresholds.fps.min"]
    assert unmeasured(table.clear(), rules) == []


def test_a_published_table_can_be_decided_again() -> None:
    same = {"near_duplicate_group": "d"}
    rows = [
        clip(motion=0.5), clip(motion=1.5), clip(caption=None), clip(width=192, **same), clip(**same),
        clip(outcome="dropped", reason="decode_error", detail="Damaged."),
        clip(outcome="rejected", reason="not_media", detail="No.", shot_index=-1),
        clip(outcome="dropped", reason="caption_failed", detail="Down.", caption=None),
    ]  # fmt: skip
    first = decide(*rows)
    opened = reopen(first, caption_required=True)
    assert opened["outcome"].to_list() == [None] * 5 + ["dropped", "rejected", "dropped"]
    assert apply_rules(opened, RULES, caption_required=True).equals(first)
    stricter = apply_rules(opened, CurationRules(min_motion=1.0, keep_near_duplicates=True), caption_required=True)
    assert stricter["reason"].to_list()[:5] == ["static", None, "no_caption", None, None]
    without = apply_rules(reopen(stricter, caption_required=False), RULES, caption_required=False)
    assert without["reason"].to_list() == [None, None, None, None, "near_duplicate", "decode_error", "not_media", None]


def test_a_million_clips_are_decided() -> None:
    count = 1_000_000
    draws = np.random.default_rng(3)
    few = tables.frame([clip()], tables.CLIPS)
    ids = pl.Series([f"{number:016x}-0000" for number in range(count)])
    clips = few.select(pl.all().repeat_by(count).explode()).with_columns(
        clip_id=ids, source_id=ids, motion=draws.random(count), sharpness=10 * draws.random(count),
        near_duplicate_group=pl.when(pl.Series(draws.random(count) < 0.2)).then(pl.lit("g") + ids.str.slice(0, 15)),
    )  # fmt: skip
    decided = apply_rules(clips, RULES, caption_required=True)
    assert 0.2 < (decided["outcome"] == "dropped").mean() < 0.5
    row = decided.filter(pl.col("reason") == "static").row(0, named=True)
    assert row["detail"] == f"motion {row['motion']:.4g} is below min_motion 0.04."
