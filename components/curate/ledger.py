"""The ledger of one curation: every source and every shot is in it exactly once, with one outcome."""

from __future__ import annotations

from collections import Counter

import polars as pl
from pydantic import BaseModel, ConfigDict

from components.config import CurateConfig
from components.curate.captioning import check_captioner
from components.errors import KinoflowError


class CurateReport(BaseModel):
    """The ledger of one curation; also the facts stored with the table.

    `sources == sources_with_shots + sources_rejected`, `shots == kept + dropped`, `kept == train + eval`. Hours are
    those of videos; images count no time.
    """

    model_config = ConfigDict(frozen=True)
    sources: int
    sources_with_shots: int
    sources_rejected: int
    rejected_reasons: dict[str, int]
    shots: int
    kept: int
    dropped: int
    dropped_reasons: dict[str, int]
    train: int
    eval: int
    kept_videos: int
    kept_images: int
    decoded_frames: int
    hours: float
    kept_hours: float
    manifest_digest: str = ""


def check_captions(config: CurateConfig, videos: str, table: pl.DataFrame) -> None:
    """Without captions, or the model that writes them, every clip would be dropped: said before hours of decoding.

    Raises:
        KinoflowError: captions are required, and no ingested file has one or the model is not there.
    """
    check_captioner(config.captions)
    if config.captions.captioner is not None:
        return
    ingested = table.filter(pl.col("outcome") == "ingested")
    captioned = ingested.filter(pl.col("caption").is_not_null() | pl.col("caption_shots").is_not_null())
    if config.captions.required and len(ingested) and captioned.is_empty():
        raise KinoflowError(
            f"There are no captions at all in {videos}: none of its {len(ingested)} files has one; put a .txt or .json "
            "of the same name beside each video, list captions in a table's column 'text', name a model in "
            "captions.captioner, or set captions.required to false."
        )


def check_failures(config: CurateConfig, videos: pl.DataFrame, shots: pl.DataFrame) -> None:
    """Refuse to go on when more ingested files gave nothing than the config allows.

    Raises:
        KinoflowError: with the reasons, and what was wrong with the first such file.
    """
    ingested = videos.filter(pl.col("outcome") == "ingested")["source_id"]
    failed = shots.filter((pl.col("outcome") == "rejected") & pl.col("source_id").is_in(ingested.to_list()))
    if len(failed) and (len(failed) == len(ingested) or len(failed) / len(ingested) > config.max_failed_share):
        first = failed.row(0, named=True)
        counts = ", ".join(f"{count} × {reason}" for reason, count in _reasons(failed).items())
        raise KinoflowError(
            f"{len(failed)} of {len(ingested)} ingested files give no clips ({counts}; first: "
            f"{first['path']!r}: {first['detail']}) which is more than max_failed_share {config.max_failed_share:g} "
            "allows; check the source and the objects prefix."
        )


def check_kept(report: CurateReport, table: str) -> None:
    """Refuse an empty data set.

    Raises:
        KinoflowError: with the reasons; `table` says where the measures are.
    """
    if report.kept == 0:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in report.dropped_reasons.items())
        raise KinoflowError(
            f"No clip is left of {report.shots} shots ({reasons}); loosen the rules, or look at {table} to see "
            "what was measured."
        )


def count(videos: pl.DataFrame, clips: pl.DataFrame) -> CurateReport:
    """Add everything up; a sum that is not right is a fault of this program."""
    shots = clips.filter(pl.col("shot_index") >= 0)
    rejected = clips.filter(pl.col("outcome") == "rejected")
    kept = shots.filter(pl.col("outcome") == "kept")
    dropped = shots.filter(pl.col("outcome") == "dropped")
    with_shots = shots["source_id"].n_unique()
    assert len(videos) == with_shots + len(rejected), "every source has shots or is rejected"
    assert set(videos["source_id"]) == set(clips["source_id"]), "no source is lost or invented"
    assert len(shots) == len(kept) + len(dropped), "every shot is kept or dropped"
    assert clips["clip_id"].n_unique() == len(clips), "clip ids are unique"
    assert clips.filter(pl.col("outcome") != "kept")["reason"].null_count() == 0, "whatever is left out has a reason"
    assert kept["split"].null_count() == 0, "every kept clip is on one side"
    seconds = pl.col("end_s") - pl.col("start_s")
    return CurateReport(
        sources=len(videos),
        sources_with_shots=with_shots,
        sources_rejected=len(rejected),
        rejected_reasons=_reasons(rejected),
        shots=len(shots),
        kept=len(kept),
        dropped=len(dropped),
        dropped_reasons=_reasons(dropped),
        train=len(kept.filter(pl.col("split") == "train")),
        eval=len(kept.filter(pl.col("split") == "eval")),
        kept_videos=len(kept.filter(pl.col("media") == "video")),
        kept_images=len(kept.filter(pl.col("media") == "image")),
        decoded_frames=int(shots["num_frames"].sum()),
        hours=round(float(shots.select(seconds.sum()).item()) / 3600, 6),
        kept_hours=round(float(kept.select(seconds.sum()).item()) / 3600, 6),
    )


def _reasons(table: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(Counter(table["reason"].to_list()).items()))
