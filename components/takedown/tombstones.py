"""Tombstones: who asked when and why that which clips are no longer used; the format, both ends.

One JSON file each, below a prefix beside the source objects that all runs on them share. A file never changes and its
name is never used twice; a second file of nearly the same name revokes it. A tombstone holds rules (source, licence,
path, spans of source files) and the ids of the clips they met when it was written; other tables are asked by rule.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import store
from components.errors import KinoflowError

FOLDER = "tombstones"
ANNOTATION = "tombstones"
"""Of a dataset's and a clips table's manifest: URI of the prefix that says which clips are taken down."""
REASON = "taken_down"
"""In the ledger of clips; also the name of the input by which outputs made without taken-down clips tell themselves."""
FORMAT_VERSION = 1
_NAME = re.compile(r"(?P<id>\d{8}T\d{6}Z-[0-9a-f]{12})(?P<revoked>\.revoked)?\.json")


class Span(BaseModel):
    """A part of a source file, known by its bytes: it is taken down however shots are cut later."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    clip_id: str = Field(description="Under which it was asked for.")
    content_sha256: str
    start_frame: int = Field(description="In decoded frames of the source file.")
    end_frame: int = Field(description="Exclusive.")


class Rules(BaseModel):
    """Which clips: those that any of these describes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sources: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    paths: tuple[str, ...] = Field(
        (), description="Of source files as the tables have them; one ending in / is a folder."
    )
    spans: tuple[Span, ...] = ()

    def __str__(self) -> str:
        """In words."""
        named = [("source", self.sources), ("licence", self.licences), ("path", self.paths)]
        parts = [f"{what} {', '.join(map(repr, values))}" for what, values in named if values]
        if self.spans:
            ids = [span.clip_id for span in self.spans[:3]]
            more = f" and {len(self.spans) - 3} more" if len(self.spans) > 3 else ""
            parts.append(f"clip {', '.join(ids)}{more}")
        return "; ".join(parts)


class Tombstone(BaseModel):
    """One takedown.

    Attributes:
        clip_ids: What the rules meet in the tables of `tables`, sorted.
        tables: Digests of the manifests of clips tables that were asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = Field(FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    rules: Rules
    reason: str = Field(min_length=1)
    by: str
    at: str = Field(description="UTC, ISO 8601.")
    clip_ids: tuple[str, ...]
    tables: tuple[str, ...]


class Revocation(BaseModel):
    """The end of a takedown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = Field(FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    tombstone: str
    reason: str = Field(min_length=1)
    by: str
    at: str


@dataclass(frozen=True)
class Filed:
    """A tombstone under the name it has."""

    id: str
    tombstone: Tombstone


def beside(objects: str) -> str:
    """Where the tombstones of all runs on these source objects lie.

    Args:
        objects: URI prefix of the objects.
    """
    root, slash, _ = objects.rstrip("/").rpartition("/")
    if slash and (not root or root.endswith(":/")):  # a whole bucket
        return store.join(objects, FOLDER)
    return store.join(root, FOLDER) if slash else FOLDER


def now() -> str:
    """The time as tombstones have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(uri: str, tombstone: Tombstone) -> Filed:
    """File a tombstone; from now on it is in force.

    Args:
        uri: Prefix of the tombstones.
        tombstone: What to file; its id is its time and a digest of its content.
    """
    data = tombstone.model_dump_json(indent=1).encode()
    stamp = tombstone.at.replace("-", "").replace(":", "")
    filed = Filed(f"{stamp}-{hashlib.sha256(data).hexdigest()[:12]}", tombstone)
    store.write_bytes(store.join(uri, f"{filed.id}.json"), data)
    return filed


def revoke(uri: str, tombstone_id: str, *, reason: str, by: str) -> Revocation:
    """File the end of a takedown; the tombstone stays where it is.

    Raises:
        KinoflowError: there is no such tombstone, or it is revoked already.
    """
    known = _names(uri)
    if tombstone_id not in known:
        told = ", ".join(sorted(known)) or "none at all"
        raise KinoflowError(f"There is no tombstone {tombstone_id} below {uri}; there are {told}.")
    if known[tombstone_id]:
        raise KinoflowError(f"The tombstone {tombstone_id} is revoked already.")
    revocation = Revocation(tombstone=tombstone_id, reason=reason, by=by, at=now())
    store.write_bytes(store.join(uri, f"{tombstone_id}.revoked.json"), revocation.model_dump_json(indent=1).encode())
    return revocation


def in_force(uri: str | None) -> tuple[Filed, ...]:
    """Tombstones that nobody revoked, by their time.

    Args:
        uri: Prefix of the tombstones; None where an output names none.

    Raises:
        KinoflowError: one cannot be read: better no work than work on what was taken down.
    """
    return read(uri, (name for name, is_revoked in sorted(_names(uri).items()) if not is_revoked)) if uri else ()


def is_any(uri: str) -> bool:
    """Whether any tombstone was ever filed below a prefix."""
    return bool(_names(uri))


def read(uri: str, ids: Iterable[str]) -> tuple[Filed, ...]:
    """These tombstones, revoked or not.

    Raises:
        KinoflowError: one is missing or damaged.
    """
    return tuple(Filed(name, _load(store.join(uri, f"{name}.json"))) for name in ids)


def revocations(uri: str) -> dict[str, Revocation]:
    """Revocations by the id of their tombstone."""
    names = [name for name, is_revoked in sorted(_names(uri).items()) if is_revoked]
    texts = {name: store.read_bytes(store.join(uri, f"{name}.revoked.json")) for name in names}
    return {name: Revocation.model_validate_json(text) for name, text in texts.items()}


def _names(uri: str) -> dict[str, bool]:
    """Ids and whether each is revoked."""
    found = [match for item in store.list_objects(uri) if (match := _NAME.fullmatch(item.key))]
    revoked = {match["id"] for match in found if match["revoked"]}
    return {match["id"]: match["id"] in revoked for match in found if not match["revoked"]}


def _load(uri: str) -> Tombstone:
    try:
        return Tombstone.model_validate_json(store.read_bytes(uri))
    except store.ObjectMissing as error:
        raise KinoflowError(
            f"The tombstone {uri} is missing; put it back, what it took down must not be used."
        ) from error
    except ValidationError as error:
        raise KinoflowError(f"The tombstone {uri} is damaged; put it back as it was written.") from error


def meets(clips: pl.DataFrame, rules: Sequence[Rules]) -> pl.Series:
    """(n,) whether any of the rules describes each clip; rejected files count where a whole file is described.

    Args:
        clips: Table with (at least) `source`, `licence`, `path`, `content_sha256` and, if there are spans,
            `start_frame` and `end_frame`.
        rules: Of one or several tombstones.
    """
    sources, licences, paths = (
        sorted({value for rule in rules for value in getattr(rule, name)}) for name in ("sources", "licences", "paths")
    )
    folders = [path for path in paths if path.endswith("/")]
    is_met = pl.col("source").is_in(sources) | pl.col("licence").is_in(licences) | pl.col("path").is_in(paths)
    for folder in folders:
        is_met |= pl.col("path").str.starts_with(folder)
    met = clips.select(is_met.fill_null(False).alias("met"))["met"]
    spans = [span for rule in rules for span in rule.spans]
    return met | _overlaps(clips, spans) if spans else met


def _overlaps(clips: pl.DataFrame, spans: Sequence[Span]) -> pl.Series:
    """(n,) whether each clip shows any frame of these spans."""
    wanted = pl.DataFrame(
        [(span.content_sha256, span.start_frame, span.end_frame) for span in spans],
        schema={"content_sha256": pl.String, "first": pl.Int64, "end": pl.Int64}, orient="row",
    )  # fmt: skip
    rows = clips.lazy().select("content_sha256", "start_frame", "end_frame").with_row_index("row")
    pairs = rows.join(wanted.lazy(), on="content_sha256")
    shared = (pl.col("start_frame") < pl.col("end")) & (pl.col("end_frame") > pl.col("first"))
    hits = pairs.filter(shared).select(pl.col("row").unique()).collect()["row"]
    shows = np.zeros(len(clips), dtype=np.bool_)
    shows[hits.to_numpy()] = True
    return pl.Series(shows)


def digest_of_ids(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of a set of clip ids; empty for none."""
    text = json.dumps(sorted(set(ids)))
    return hashlib.sha256(text.encode()).hexdigest() if text != "[]" else ""
