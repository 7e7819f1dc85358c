"""What `kinoflow verify` and `kinoflow gc` do and say."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table

from components import manifest
from components.collect import Retention, Rubbish, Survey, remove, survey
from components.manifest import ManifestError
from components.published import Published


def verify_below(uri: str) -> tuple[int, list[str]]:
    """Check every byte of every output at or below `uri`.

    Returns:
        how many outputs there are, and one sentence for everything that is not as published.

    Raises:
        ManifestError: nothing is published there.
    """
    published = Published(uri)
    prefixes = _folders(published, manifest.NAME)
    if not prefixes:
        raise ManifestError(f"Nothing is published at or below {uri} (no {manifest.NAME}).")
    faults = []
    for prefix in prefixes:
        try:
            faults += manifest.verify(prefix)
        except ManifestError as error:
            faults.append(str(error))
    unfinished = set(_folders(published, manifest.NOTE)) - set(prefixes)
    for prefix in sorted(unfinished):
        faults.append(f"{prefix} is half-written: its writer is still at it or was killed; run the step again.")
    return len(prefixes), faults


def _folders(published: Published, name: str) -> list[str]:
    return [published.uri(folder) for folder in sorted(published.folders_with(name))]


def collect_garbage(root: str, retention: Retention, *, dry_run: bool, console: Console) -> Survey:
    """Remove what nobody needs below `root` and print what it was.

    Args:
        root: URI of a run, a stage, or everything.
        retention: what stays.
        dry_run: print and remove nothing.
        console: where to print.
    """
    found = survey(root, retention)
    if not dry_run:
        remove(found.rubbish)
    for fault in found.faults:
        console.print(fault, markup=False, soft_wrap=True)
    console.print(_table(found.rubbish, dry_run))
    for uri, reason in sorted(found.kept.items()):
        console.print(f"kept {uri}: {reason}", markup=False, soft_wrap=True)
    return found


def _table(rubbish: list[Rubbish], dry_run: bool) -> Table:
    groups: dict[str, list[Rubbish]] = defaultdict(list)
    for item in rubbish:
        groups[item.what].append(item)
    table = Table(title="would be removed" if dry_run else "removed", title_justify="left")
    table.add_column("what")
    table.add_column("where", overflow="fold")
    table.add_column("things", justify="right")
    table.add_column("bytes", justify="right")
    for what, items in sorted(groups.items()):
        for item in items:
            table.add_row(what, item.uri, str(max(1, len(item.keys))), f"{item.size_bytes:,}")
    table.add_row("all", "", str(len(rubbish)), f"{sum(item.size_bytes for item in rubbish):,}", end_section=True)
    return table
