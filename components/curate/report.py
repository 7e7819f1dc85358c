"""The ledger as a page: what came in, what was kept, why the rest was not, and what that looks like.

One file without any reference to others. The same tables and the same objects give the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.config import CurateConfig
from components.contact_sheet import jpeg
from components.curate import scores
from components.curate.rules import Rule, threshold_rules
from components.stored_media import example_frames
from components.takedown.tombstones import REASON as TAKEN_DOWN

Row = dict[str, Any]

EXAMPLES_PER_REASON = 6
MAX_REASONS_PICTURED = 24
MAX_ORIGINS = 100
THUMBNAIL_PX = 160
BINS = 40
PLOT_WIDTH, PLOT_HEIGHT = 400, 110
SEARCH_FRAMES = 48
"""Examples come from early in their files, because a file is decoded from its beginning."""
EXAMPLE_PLACE = 6
"""So many frames after the beginning of its clip an example lies at most."""
_SCORES = (
    "motion", "flow", "sharpness", "brightness", "contrast", "black_share", "frozen_share", "letterbox_share",
    "text_share", "aesthetic", "text_match", "num_frames",
)  # fmt: skip
_PICTURED = (
    "clip_id", "source_id", "path", "object_key", "start_frame", "num_frames", "height", "width", "start_s",
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """One bin, in the units of the plot: dropped clips stand on kept ones."""

    left: float
    width: float
    kept_height: float
    dropped_height: float
    title: str


@dataclass(frozen=True)
class Limit:
    """A threshold drawn into a plot."""

    left: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Values of one score over all shots."""

    name: str
    meaning: str
    low: str
    high: str
    bars: Sequence[Bar]
    limits: Sequence[Limit]
    outside: int


@dataclass(frozen=True)
class Reason:
    """One outcome with its reason: how many, for how long, in words of the first of them, and pictures."""

    slug: str
    what: str
    count: int
    share: float
    hours: float
    sentence: str
    examples: Sequence[Row]


def write_report(path: Path, config: CurateConfig, videos: pl.DataFrame, clips: pl.DataFrame, objects: str) -> None:
    """Write the report of a decided table as one HTML file.

    Args:
        path: of the file.
        config: which rules were applied.
        videos: the table that `ingest` published.
        clips: of the `clips` schema, decided and split.
        objects: URI prefix of the content-addressed objects; a picture that cannot be had is left out.
    """
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    shots = clips.filter(pl.col("shot_index") >= 0)
    kept = shots.filter(pl.col("outcome") == "kept")
    reasons, examples = _reasons(clips), _examples(kept)
    pictured = [row for rows in (examples, *(reason.examples for reason in reasons)) for row in rows]
    pictures = _pictures(pictured, objects)
    page = environment.get_template("report.html.j2").render(
        funnel=_funnel(videos, shots, kept),
        hours=_hours(shots),
        kept_hours=_hours(kept),
        reasons=reasons,
        kept_examples=examples,
        pictures=pictures,
        histograms=_histograms(shots, threshold_rules(config.rules)),
        splits=_groups(kept, ["split", "media"]),
        origins=_origins(clips),
        captions=_groups(kept, ["caption_origin", "caption_model"]),
        plot_width=PLOT_WIDTH,
        plot_height=PLOT_HEIGHT,
    )
    path.write_text(page, encoding="utf-8")


def _funnel(videos: pl.DataFrame, shots: pl.DataFrame, kept: pl.DataFrame) -> list[tuple[str, int, float]]:
    """(what, how many, per cent of the step of the same unit before): files first, then shots."""
    files, ingested = len(videos), len(videos.filter(pl.col("outcome") == "ingested"))
    steps = [
        ("source files", files, files),
        ("ingested", ingested, files),
        ("files with shots", shots["source_id"].n_unique(), ingested),
        ("shots", len(shots), len(shots)),
        ("kept", len(kept), len(shots)),
        ("for training", len(kept.filter(pl.col("split") == "train")), len(kept)),
    ]
    return [(name, count, 100 * count / max(1, before)) for name, count, before in steps]


def _hours(clips: pl.DataFrame) -> float:
    return float((clips["end_s"] - clips["start_s"]).sum()) / 3600


def _reasons(clips: pl.DataFrame) -> list[Reason]:
    """Dropped shots and rejected files by reason, the most frequent first."""
    found = []
    out = clips.filter(pl.col("outcome").is_in(["dropped", "rejected"]))
    for (outcome, slug), group in out.group_by(["outcome", "reason"], maintain_order=True):
        is_shot = outcome == "dropped"
        total = len(clips.filter((pl.col("shot_index") >= 0) == is_shot))
        found.append((str(slug), "shots" if is_shot else "files", group.sort("clip_id"), len(group) / max(1, total)))
    found.sort(key=lambda item: (item[1], -len(item[2]), item[0]), reverse=False)
    found.sort(key=lambda item: item[1], reverse=True)
    return [
        Reason(
            slug, what, len(group), 100 * share, _hours(group), str(group["detail"][0]),
            _examples(group) if _is_pictured(slug, what) and place < MAX_REASONS_PICTURED else (),
        )
        for place, (slug, what, group, share) in enumerate(found)
    ]  # fmt: skip


def _is_pictured(reason: str, what: str) -> bool:
    return what == "shots" and reason != TAKEN_DOWN


def _examples(clips: pl.DataFrame) -> list[Row]:
    """Some clips of different files, chosen by their ids and early in their files."""
    early = clips.select(_PICTURED).with_columns(_late=pl.col("start_frame") // SEARCH_FRAMES).sort("_late", "clip_id")
    chosen = early.unique("source_id", keep="first", maintain_order=True).head(EXAMPLES_PER_REASON)
    return chosen.drop("_late").to_dicts()


def _pictures(rows: Sequence[Row], objects: str) -> dict[str, tuple[str, str]]:
    """(data URI, caption) by clip id, of those that can be read."""
    frames = example_frames(rows, objects, THUMBNAIL_PX, place=EXAMPLE_PLACE)
    captions = {str(row["clip_id"]): f"{row['path']} at {row['start_s']:.1f} s" for row in rows}
    return {
        name: (f"data:image/jpeg;base64,{base64.b64encode(jpeg(frame)).decode()}", captions[name])
        for name, frame in frames.items()
    }


def _histograms(shots: pl.DataFrame, rules: Sequence[Rule]) -> list[Histogram]:
    thresholds = sorted({rule.column for rule in rules} - set(_SCORES))
    return [
        drawn
        for column in (*_SCORES, *thresholds)
        if column in shots.columns and (drawn := _histogram(shots, column, [r for r in rules if r.column == column]))
    ]


def _histogram(shots: pl.DataFrame, column: str, rules: Sequence[Rule]) -> Histogram | None:
    """Bins from the least value to nearly the largest: the top half per cent would squeeze the rest."""
    kept = (shots["outcome"] == "kept").to_numpy()
    values = shots[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    known = np.isfinite(values)
    values, kept = values[known], kept[known]
    if not len(values):
        return None
    low, high = float(values.min()), float(np.quantile(values, 0.995))
    low, high = min([low, *(r.limit for r in rules)]), max([high, *(r.limit for r in rules if r.limit < 2 * high)])
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, BINS + 1)
    all_counts, kept_counts = (np.histogram(part, edges)[0].tolist() for part in (values, values[kept]))
    scale, width = PLOT_HEIGHT / max(1, *all_counts), PLOT_WIDTH / BINS
    bars = [
        Bar(
            round(place * width, 2), round(width, 2), round(some * scale, 2), round((every - some) * scale, 2),
            f"{edges[place]:.4g} to {edges[place + 1]:.4g}: {some} kept, {every - some} dropped",
        )
        for place, (every, some) in enumerate(zip(all_counts, kept_counts, strict=True))
    ]  # fmt: skip
    limits = [
        Limit(round((rule.limit - low) / (high - low) * PLOT_WIDTH, 2), f"{rule.name} {rule.limit:g}")
        for rule in rules
        if low <= rule.limit <= high
    ]
    outside = int((values > high).sum())
    return Histogram(column, _meaning(column), f"{low:.4g}", f"{high:.4g}", bars, limits, outside)


def _meaning(column: str) -> str:
    known = getattr(scores, "SCORES", {})
    return str(known[column].meaning) if column in known else ""


def _groups(clips: pl.DataFrame, columns: Sequence[str]) -> list[tuple[str, int, float]]:
    """(name, clips, hours) of each combination of values."""
    hours = (pl.col("end_s") - pl.col("start_s")).sum() / 3600
    groups = clips.group_by(columns).agg(pl.len().alias("clips"), hours.alias("hours")).sort(columns)
    return [
        (", ".join(str(row[name]) for name in columns if row[name] is not None) or "none", row["clips"], row["hours"])
        for row in groups.iter_rows(named=True)
    ]


def _origins(clips: pl.DataFrame) -> list[tuple[str, str, int, int, float]]:
    """(source, licence, files, kept clips, their hours), the most hours first."""
    is_kept = pl.col("outcome") == "kept"
    seconds = (pl.col("end_s") - pl.col("start_s")).filter(is_kept).sum()
    columns = ["source", "licence"]
    groups = clips.group_by(columns).agg(
        pl.col("source_id").n_unique().alias("files"), is_kept.sum().alias("kept"), (seconds / 3600).alias("hours")
    )
    ordered = groups.sort(["hours", "kept", *columns], descending=[True, True, False, False]).head(MAX_ORIGINS)
    return [
        (source or "unknown", licence or "unknown", files, kept, hours)
        for source, licence, files, kept, hours in ordered.iter_rows()
    ]
