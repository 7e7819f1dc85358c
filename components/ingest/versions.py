"""A published table that is about to be replaced stays readable, and what has changed is said."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from components import manifest, store, tables
from components.errors import KinoflowError
from components.manifest import Manifest

logger = logging.getLogger(__name__)

FOLDER = "versions"


@dataclass(frozen=True)
class Earlier:
    """The version that a new one replaces: its digest, and where it can be read from now on."""

    digest: str
    uri: str


def keep_earlier(out: str, kind: str) -> Earlier | None:
    """Copy what is published at `out` to a place of its own; None when nothing whole of this kind is there.

    The place lies outside of the output, as what is published does not grow: `root/ingest` is kept below
    `root/versions/ingest/`.
    """
    try:
        found = manifest.load(out)
    except manifest.ManifestError:
        return None
    if found.kind != kind:
        return None
    uri = version_of(out, found.digest)
    if _is_kept(uri, found):
        return Earlier(found.digest, uri)
    try:
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            manifest.fetch(out, Path(scratch))
            for name in found.files:
                store.upload(Path(scratch) / name, store.join(uri, name))
    except manifest.ManifestError as error:
        logger.warning("the earlier version is damaged and not kept: %s", error)
        return None
    store.write_bytes(store.join(uri, manifest.NAME), store.read_bytes(store.join(out, manifest.NAME)))
    return Earlier(found.digest, uri)


def version_of(out: str, digest: str) -> str:
    """Where the version of that digest is kept once another has taken its place at `out`."""
    root, _, name = out.rstrip("/").rpartition("/")
    if not root or root.endswith(":/"):
        return store.join(out, FOLDER, digest[:16])
    return store.join(root, FOLDER, name, digest[:16])


def _is_kept(uri: str, wanted: Manifest) -> bool:
    try:
        return manifest.load(uri).digest == wanted.digest
    except manifest.ManifestError:
        return False


def changes(earlier: Earlier, name: str, table: pl.DataFrame) -> str:
    """One phrase: how many files are new, changed and gone since the earlier version.

    A file of another schema of the table, an older program's, counts as unknown.
    """
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        try:
            manifest.fetch(earlier.uri, Path(scratch), [name])
            before = tables.read(Path(scratch) / name, tables.VIDEOS)
        except KinoflowError:
            return "an older program's table: what changed is unknown"
    both = table.join(before, on="source_id", suffix="_before")
    other_bytes = pl.col("content_sha256").ne_missing(pl.col("content_sha256_before"))
    columns = [column for column in tables.VIDEOS if column not in ("source_id", "content_sha256")]
    other_words = pl.any_horizontal(pl.col(column).ne_missing(pl.col(f"{column}_before")) for column in columns)
    new, gone = len(table) - len(both), len(before) - len(both)
    changed = len(both.filter(other_bytes))
    described = len(both.filter(~other_bytes & other_words))
    return f"{new} new, {changed} changed, {gone} gone, {described} described otherwise"
