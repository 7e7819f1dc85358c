"""Shows what other thresholds would keep."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from components.curate.whatif import Comparison, Kept
from pipelines.whatif import BucketCounts


def print_comparison(comparison: Comparison, buckets: BucketCounts, console: Console) -> None:
    """Yield before and after, the rules, reasons, and clips by bucket."""
    console.print(_yield_table(comparison))
    console.print(
        f"{comparison.newly_kept:,} clips newly kept, {comparison.newly_dropped:,} newly dropped"
        + (f"; {comparison.to_caption:,} of the kept are still to be captioned" if comparison.to_caption else "")
    )
    console.print()
    console.print(_rules_table(comparison))
    console.print("alone: dropped if there were no other rule; only: dropped by it and by no other")
    for name in comparison.unmeasured:
        console.print(f"{name} drops nothing: no clip has a value in its column")
    console.print()
    console.print(_reasons_table(comparison))
    for stage, counts in buckets.items():
        console.print()
        console.print(_buckets_table(stage, counts))


def _yield_table(comparison: Comparison) -> Table:
    table = _table(f"{comparison.shots:,} shots, {comparison.hours:,.2f} h of video", "", "before", "after", "change")
    before, after = comparison.before, comparison.after

    def row(name: str, first: float, second: float, digits: int = 0) -> None:
        table.add_row(name, f"{first:,.{digits}f}", f"{second:,.{digits}f}", f"{second - first:+,.{digits}f}")

    row("kept clips", before.clips, after.clips)
    shares = [100 * kept.clips / max(1, comparison.shots) for kept in (before, after)]
    table.add_row("yield", *(f"{share:.1f} %" for share in shares), f"{shares[1] - shares[0]:+.1f}")
    row("kept hours", before.hours, after.hours, 2)
    for name in ("videos", "images", "train", "eval"):
        row(name, getattr(before, name), getattr(after, name))
    return table


def _rules_table(comparison: Comparison) -> Table:
    table = _table("rules", "rule", "limit", "alone", "hours", "only", "hours")
    for effect in comparison.effects:
        limit = "" if effect.limit is None else f"{effect.limit:g}"
        table.add_row(
            effect.rule, limit, f"{effect.alone:,}", f"{effect.hours_alone:,.2f}", f"{effect.only:,}",
            f"{effect.hours_only:,.2f}",
        )  # fmt: skip
    return table


def _reasons_table(comparison: Comparison) -> Table:
    table = _table("dropped for", "reason", "before", "after")

    def count(kept: Kept, reason: str) -> int:
        return kept.dropped_reasons.get(reason, 0)

    before, after = comparison.before, comparison.after
    for reason in dict.fromkeys([*after.dropped_reasons, *before.dropped_reasons]):
        table.add_row(reason, f"{count(before, reason):,}", f"{count(after, reason):,}")
    return table


def _buckets_table(stage: str, counts: dict[str, tuple[int, int]]) -> Table:
    table = _table(f"{stage}: training clips by bucket", "bucket", "before", "after", "")
    largest = max(max(pair) for pair in counts.values()) or 1
    for name, (before, after) in counts.items():
        table.add_row(name, f"{before:,}", f"{after:,}", "█" * round(30 * after / largest))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 or not name else "right")
    return table
