"""Decisions on columns: one reason each, the first rule in order."""

from __future__ import annotations

import polars as pl
import pytest
from pydantic import ValidationError

from components import tables
from components.config import CurationRules
from components.curate.rules import apply_rules

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


def test_an_empty_table_stays_empty() -> None:
    assert decide().is_empty()


def test_an_impossible_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="no clip could be kept"):
        CurationRules(min_brightness=200, max_brightness=100)
