"""What `kinoflow takedown` and `kinoflow lineage` do and say."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree as Drawing

from components import manifest, store
from components.errors import KinoflowError
from components.layout import CHECKPOINT
from components.lineage.occurrences import Occurrence, Search, runs_of
from components.lineage.seen import chain
from components.lineage.tree import Node, Tree, clips_table, ends_of, made_from
from components.manifest import ManifestError
from components.published import Published
from components.takedown import revoke
from components.takedown.reach import Reach, Tables, file, prefixes
from pipelines.local.services import home_folder, running_services

MAX_LISTED = 20
TOLD_OF_A_CLIP = (
    "clip_id", "path", "source", "licence", "attribution", "start_s", "end_s", "start_frame", "end_frame",
    "content_sha256", "object_key", "outcome", "reason", "split",
)  # fmt: skip


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """The embedded object store around work on an `s3://` URI, unless the environment names another one."""
    if not store.is_s3(uri):
        yield
        return
    with running_services(home_folder(), only_store=True):
        yield


# --- takedown ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a person wants taken down, and why."""

    sources: Sequence[str]
    licences: Sequence[str]
    paths: Sequence[str]
    clip_ids: Sequence[str]
    reason: str
    by: str


class Answer(BaseModel):
    """What a takedown did; the JSON form of it."""

    model_config = ConfigDict(frozen=True)
    tombstone: str | None
    filed: tuple[str, ...]
    reach: Reach


def take_down(root: str, asked: Asked, *, dry_run: bool) -> Answer:
    """Find what a takedown touches below a root and, unless it is only tried, put it in force.

    Raises:
        KinoflowError: nothing is asked for, it means no clip, or there are no clips.
    """
    if not asked.reason.strip():
        raise KinoflowError("Say why with --reason; whoever meets the gap later will ask.")
    published = Published(root)
    tables = Tables(published)
    reach = tables.reach(tables.rules(asked.sources, asked.licences, asked.paths, asked.clip_ids))
    filed = [] if dry_run else file(published, reach, reason=asked.reason, by=asked.by or person())
    return Answer(
        tombstone=filed[0][1].id if filed else None,
        filed=tuple(store.join(uri, f"{each.id}.json") for uri, each in filed),
        reach=reach,
    )


def revoke_below(root: str, tombstone: str, *, reason: str, by: str) -> list[str]:
    """End a takedown everywhere below a root; returns the prefixes where it was in force.

    Raises:
        KinoflowError: there is no such tombstone, or it is revoked already.
    """
    places = prefixes(Published(root))
    faults, done = list[KinoflowError](), list[str]()
    for place in places:
        try:
            revoke(place, tombstone, reason=reason, by=by or person())
            done.append(place)
        except KinoflowError as error:
            faults.append(error)
    if not done:
        raise faults[0]
    return done


def person() -> str:
    """Who is at the keyboard, as far as the system knows."""
    with suppress(OSError, KeyError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def print_answer(answer: Answer, console: Console) -> None:
    """Tell a person what a takedown touches."""
    reach = answer.reach
    console.print(
        f"{reach.rules}: {len(reach.clip_ids)} clips, {reach.kept} of them kept", markup=False, soft_wrap=True
    )
    console.print(occurrence_table(reach.touched))
    for sentence in reach.unknown:
        console.print(f"unknown: {sentence}", markup=False, soft_wrap=True)
    for uri in answer.filed:
        console.print(f"wrote {uri}", markup=False, soft_wrap=True)
    if answer.tombstone:
        told = (
            "From now on nothing reads these clips. Runs, checkpoints and evaluations above were made with them: run "
            f"again, or remove them. `kinoflow takedown --revoke {answer.tombstone}` ends it."
        )
        console.print(told, markup=False, soft_wrap=True)
    else:
        console.print("nothing was written", markup=False)


def occurrence_table(occurrences: Sequence[Occurrence]) -> Table:
    """Outputs with the number of clips in each."""
    table = Table(title="made with these clips", title_justify="left")
    for name in ("what", "where"):
        table.add_column(name, overflow="fold")
    table.add_column("clips", justify="right")
    table.add_column("and before", justify="right")
    table.add_column("detail", overflow="fold")
    for each in occurrences:
        detail = "; ".join(filter(None, [each.detail, ", ".join(each.used_by)]))
        inherited = str(each.inherited) if each.inherited else ""
        table.add_row(each.kind, escape(each.uri), str(each.clips), inherited, escape(detail))
    return table


# --- lineage ----------------------------------------------------------------------------------------------------


class ClipLineage(BaseModel):
    """Where clips come from and where they went."""

    model_config = ConfigDict(frozen=True)
    clips: tuple[dict[str, str | float | int | None], ...]
    occurrences: tuple[Occurrence, ...]
    unknown: tuple[str, ...]


class OutputLineage(BaseModel):
    """What outputs were made from and what was made from them."""

    model_config = ConfigDict(frozen=True)
    outputs: tuple[Node, ...]
    made_from_it: tuple[Node, ...]


def lineage_of(target: str, root: str) -> OutputLineage | ClipLineage:
    """Lineage of an output, a run (by URI or name), a clip id or the path of a source file.

    Args:
        target: What to look for.
        root: URI below which all runs lie.

    Raises:
        KinoflowError: there is no such thing.
    """
    with suppress(ManifestError):
        found = manifest.load(target)
        published = Published(root)
        return OutputLineage(
            outputs=(Tree(published).of(target),), made_from_it=tuple(made_from(published, found.digest))
        )
    published = Published(root)
    for place in (target, store.join(root, "runs", target)):
        run = Published(place) if store.is_s3(place) or Path(place).is_dir() else None
        if run is not None and run.manifests:
            tree = Tree(published)
            return OutputLineage(outputs=tuple(tree.of(uri) for uri in ends_of(run)), made_from_it=())
    return _clip_lineage(target, published)


def _clip_lineage(target: str, published: Published) -> ClipLineage:
    rows = []
    for uri, _ in published.of_kind("clips"):
        table = clips_table(uri)
        met = table.filter((pl.col("clip_id") == target) | (pl.col("path") == target))
        told = met.select(name for name in TOLD_OF_A_CLIP if name in met.columns)
        rows += [{"table": uri, **row} for row in told.to_dicts()]
    if not rows:
        raise KinoflowError(
            f"{target} is no output, no run below {published.root}/runs, and neither a clip nor a path in any clips "
            f"table below {published.root}; name the folder that holds all runs with --root."
        )
    search = Search(published, {str(row["clip_id"]) for row in rows})
    found = list(search.run())
    tables = [
        Occurrence(kind="clips", uri=uri, clips=sum(row["table"] == uri for row in rows))
        for uri in dict.fromkeys(str(row["table"]) for row in rows)
    ]
    occurrences = (*tables, *found, *runs_of([*tables, *found]))
    return ClipLineage(clips=tuple(rows), occurrences=occurrences, unknown=tuple(search.unknown))


def write_clip_ids(checkpoint: str, path: Path) -> int:
    """Write the ids of the clips that a checkpoint or one before it has seen, one a line; returns how many.

    Raises:
        KinoflowError: it is no checkpoint, or it cannot be told.
    """
    published = manifest.load(checkpoint)
    if published.kind != CHECKPOINT:
        raise KinoflowError(f"{checkpoint} holds {published.kind!r}; only a checkpoint has seen clips.")
    ids = set[str]()
    for stage in chain(checkpoint):
        if stage.fault:
            raise KinoflowError(f"Which clips {checkpoint} has seen cannot be told: {stage.fault}.")
        ids |= set(stage.clip_ids)
    store.write_bytes(str(path), "".join(f"{clip_id}\n" for clip_id in sorted(ids)).encode())
    return len(ids)


def print_lineage(found: OutputLineage | ClipLineage, console: Console) -> None:
    """Draw lineage for a person."""
    if isinstance(found, ClipLineage):
        for row in found.clips[:MAX_LISTED]:
            drawing = Drawing(f"clip {escape(str(row['clip_id']))}")
            for name, value in row.items():
                if name != "clip_id" and value is not None:
                    drawing.add(f"{name}: {escape(str(value))}")
            console.print(drawing)
        if len(found.clips) > MAX_LISTED:
            console.print(f"and {len(found.clips) - MAX_LISTED} more", markup=False)
        console.print(occurrence_table(found.occurrences))
        for sentence in found.unknown:
            console.print(f"unknown: {sentence}", markup=False, soft_wrap=True)
        return
    seen = set[str]()
    for node in found.outputs:
        console.print(_drawn(node, seen), soft_wrap=True)
    if found.made_from_it:
        drawing = Drawing("made from it")
        for node in found.made_from_it:
            drawing.add(escape(f"{node.kind} {node.uri} {node.digest[:12]}"))
        console.print(drawing, soft_wrap=True)


def _drawn(node: Node, seen: set[str], into: Drawing | None = None) -> Drawing:
    """A node and everything below it; what was drawn already is only named."""
    name = f"{node.name}: " if node.name and node.name != node.kind else ""
    again = " (above)" if node.digest in seen else ""
    fault = f" ({node.fault})" if node.fault else ""
    label = escape(f"{name}{node.kind} {node.uri} {node.digest[:12]}{again}{fault}")
    drawing = Drawing(label) if into is None else into.add(label)
    if again or node.fault:
        return drawing
    seen.add(node.digest)
    told: Mapping[str, object] = {"code": node.code_version, "config": node.config_digest[:12], **node.facts}
    for key, value in told.items():
        drawing.add(escape(f"{key.replace('_', ' ')}: {_in_words(value)}"))
    for origin in node.origins:
        licence = origin.licence or "no licence given"
        by = f", {origin.attribution}" if origin.attribution else ""
        drawing.add(escape(f"{origin.clips} clips of {origin.files} files from {origin.source} ({licence}{by})"))
    for key, digest in node.other_inputs.items():
        drawing.add(escape(f"{key}: {digest[:12]}"))
    for below in node.inputs:
        _drawn(below, seen, drawing)
    return drawing


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {amount}" for name, amount in value.items())
    return str(value)
