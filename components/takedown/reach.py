"""What a takedown touches: the clips its rules mean, and everything below a root that was made with any of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest, store, tables
from components.errors import KinoflowError
from components.lineage.occurrences import Occurrence, Search, runs_of
from components.manifest import Manifest
from components.published import Published
from components.takedown.dataset import CLIPS, CLIPS_TABLE
from components.takedown.tombstones import ANNOTATION, FOLDER, Filed, Rules, Span, Tombstone, meets, now, write

ASKED = (
    "clip_id", "source", "licence", "path", "content_sha256", "start_frame", "end_frame", "shot_index", "outcome",
)  # fmt: skip
"""Columns of a clips table that rules look at."""


class Reach(BaseModel):
    """All that a takedown touches.

    Attributes:
        clip_ids: Of all tables, sorted.
        kept: How many of them were kept in some table.
        tables: Digests of the clips tables that were asked.
        touched: By kind, then by place.
        unknown: Sentences about outputs of which it cannot be told.
    """

    model_config = ConfigDict(frozen=True)
    rules: Rules
    clip_ids: tuple[str, ...]
    kept: int
    tables: tuple[str, ...]
    touched: tuple[Occurrence, ...]
    unknown: tuple[str, ...]


class Tables:
    """The clips tables below a root, as far as rules look at them."""

    def __init__(self, published: Published) -> None:
        self.published = published
        self.tables: dict[str, tuple[Manifest, pl.DataFrame]] = {}
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            for number, (uri, found) in enumerate(published.of_kind(CLIPS)):
                folder = Path(scratch) / str(number)
                manifest.fetch(uri, folder, [CLIPS_TABLE])
                columns = tables.scan(folder / CLIPS_TABLE, tables.CLIPS).select(ASKED)
                self.tables[uri] = found, columns.collect()
        if not self.tables:
            raise KinoflowError(f"There is no clips table below {published.root}; name the folder that holds all runs.")

    def rules(
        self, sources: Sequence[str], licences: Sequence[str], paths: Sequence[str], clip_ids: Sequence[str]
    ) -> Rules:
        """Rules for these values.

        Raises:
            KinoflowError: None is given, or one occurs in no table.
        """
        if not (sources or licences or paths or clip_ids):
            raise KinoflowError("Say what to take down: --source, --licence, --path or --clip.")
        for column, values in (("source", sources), ("licence", licences), ("path", paths)):
            for value in values:
                rule = Rules.model_validate({f"{column}s": (value,)})
                if not any(meets(table, [rule]).any() for _, table in self.tables.values()):
                    raise self._nothing(column, value)
        return Rules(
            sources=tuple(sources), licences=tuple(licences), paths=tuple(paths),
            spans=tuple(span for clip_id in clip_ids for span in self._spans(clip_id)),
        )  # fmt: skip

    def _spans(self, clip_id: str) -> set[Span]:
        rows = [t.filter((pl.col("clip_id") == clip_id) & (pl.col("shot_index") >= 0)) for _, t in self.tables.values()]
        found = pl.concat(rows).select("content_sha256", "start_frame", "end_frame").unique().drop_nulls()
        if found.is_empty():
            raise self._nothing("clip", clip_id)
        return {Span(clip_id=clip_id, **row) for row in found.to_dicts()}

    def _nothing(self, what: str, value: str) -> KinoflowError:
        known = [] if what in ("clip", "path") else sorted(
            {v for _, table in self.tables.values() for v in table[what].drop_nulls().unique()}
        )  # fmt: skip
        there = f"; there are {', '.join(map(repr, known[:10]))}" if known else ""
        return KinoflowError(f"No clip below {self.published.root} has the {what} {value!r}{there}.")

    def reach(self, rules: Rules) -> Reach:
        """Everything that these rules touch."""
        touched, ids, kept = list[Occurrence](), set[str](), set[str]()
        for uri, (found, table) in self.tables.items():
            met = table.filter(meets(table, [rules]) & (table["shot_index"] >= 0))
            if len(met):
                ids |= set(met["clip_id"])
                held = met.filter(pl.col("outcome") == "kept")["clip_id"]
                kept |= set(held)
                detail = f"{len(held)} kept"
                touched.append(Occurrence(kind=CLIPS, uri=uri, digest=found.digest, clips=len(met), detail=detail))
        search = Search(self.published, ids)
        touched += search.run()
        touched += runs_of(touched)
        return Reach(
            rules=rules, clip_ids=tuple(sorted(ids)), kept=len(kept), touched=tuple(touched),
            tables=tuple(sorted({found.digest for found, _ in self.tables.values()})), unknown=tuple(search.unknown),
        )  # fmt: skip


def file(published: Published, reach: Reach, *, reason: str, by: str) -> list[tuple[str, Filed]]:
    """Take down what a reach describes: from now on nobody who looks there uses it.

    Args:
        published: What lies below the root.
        reach: From `Tables.reach`.
        reason: Why.
        by: Who.

    Returns:
        The prefix and the tombstone, for every prefix that outputs below the root look at.
    """
    tombstone = Tombstone(
        rules=reach.rules, reason=reason, by=by, at=now(), clip_ids=reach.clip_ids, tables=reach.tables
    )  # fmt: skip
    return [(uri, write(uri, tombstone)) for uri in prefixes(published)]


def prefixes(published: Published) -> list[str]:
    """Where outputs below a root look for tombstones; beside the objects of the root when none of them says."""
    told = {found.annotations[ANNOTATION] for found in published.manifests.values() if _is_read(found)}
    return sorted(told) or [store.join(published.root, FOLDER)]


def _is_read(found: Manifest) -> bool:
    """Checkpoints use the same annotation for what their stage left out."""
    return ANNOTATION in found.annotations and found.kind in (CLIPS, "dataset")
