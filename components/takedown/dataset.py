"""Which clips of one dataset are taken down, as loaders and planning ask it."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from components import manifest, store, tables
from components.errors import KinoflowError
from components.manifest import Manifest
from components.plan_file import PlanFile
from components.takedown.plans import Mask
from components.takedown.tombstones import (
    ANNOTATION,
    FOLDER,
    REASON,
    Filed,
    digest_of_ids,
    in_force,
    is_any,
    meets,
    read,
)

CLIPS, CLIPS_TABLE = "clips", "clips.parquet"


@dataclass(frozen=True)
class TakenDown:
    """Taken-down clips.

    Attributes:
        ids: Their ids; among others that are of no interest here.
        tombstones: Ids of the tombstones that took them down.
    """

    ids: frozenset[str] = frozenset()
    tombstones: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is taken down."""
        return bool(self.ids)

    def __or__(self, other: TakenDown) -> TakenDown:
        """What either takes down."""
        return TakenDown(self.ids | other.ids, tuple(sorted({*self.tombstones, *other.tombstones})))

    def mask(self, plan: PlanFile) -> Mask:
        """(n,) which of `plan.clips` are taken down."""
        if not self.ids:
            return np.zeros(len(plan.clips.ids), dtype=np.bool_)
        return np.fromiter((clip_id in self.ids for clip_id in plan.clips.ids.each()), np.bool_, len(plan.clips.ids))


def taken_down(data: str, dataset: Manifest, ids: Collection[str] | None = None) -> TakenDown:
    """What is taken down of a dataset; without any tombstone this takes one listing and reads no table.

    Args:
        data: URI of the bucket output, or of packed clips.
        dataset: Its manifest.
        ids: Ask these tombstones, revoked or not, instead of those that are in force.

    Raises:
        KinoflowError: A tombstone cannot be read, or one was written without knowledge of this dataset's clips and
            their table is gone.
    """
    uri = address(data, dataset)
    filed = read(uri, ids) if uri and ids is not None else in_force(uri)
    if not filed:
        return TakenDown()
    table = dataset.inputs.get(CLIPS, "")
    found = {clip_id for each in filed for clip_id in each.tombstone.clip_ids}
    unaware = [each for each in filed if table not in each.tombstone.tables]
    if unaware:
        found |= _asked_by_rule(data, dataset, unaware)
    return TakenDown(frozenset(found), tuple(each.id for each in filed))


def address(data: str, dataset: Manifest) -> str | None:
    """Where a dataset looks for tombstones: where it says, or, if it was made when none did, where they would lie.

    Objects are kept beside the outputs of one run, or of all runs beside the folder of them; tombstones beside those.

    Args:
        data: URI of the bucket output.
        dataset: Its manifest.
    """
    told = dataset.annotations.get(ANNOTATION)
    if told:
        return told
    run = data.rstrip("/").rpartition("/")[0]
    base = run.rpartition("/")[0].rpartition("/")[0]
    return next((place for root in (run, base) if root and is_any(place := store.join(root, FOLDER))), None)


def _asked_by_rule(data: str, dataset: Manifest, filed: list[Filed]) -> set[str]:
    """What tombstones that were written before, or elsewhere, mean for the clips of this dataset."""
    uri = dataset.annotations.get(CLIPS, "")
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        try:
            published = manifest.fetch(uri, Path(scratch), [CLIPS_TABLE], kind=CLIPS)
        except KinoflowError as error:
            raise _unknown(data, filed) from error
        if published.digest != dataset.inputs.get(CLIPS):
            raise _unknown(data, filed)
        table = tables.read(Path(scratch) / CLIPS_TABLE, tables.CLIPS)
    return set(table.filter(meets(table, [each.tombstone.rules for each in filed]))["clip_id"])


def _unknown(data: str, filed: list[Filed]) -> KinoflowError:
    return KinoflowError(
        f"Whether {data} holds clips that the tombstone {filed[0].id} takes down ({filed[0].tombstone.rules}) cannot "
        "be told: its clips table is gone or was replaced. Make it again from the clips there are."
    )


def mark(clips: pl.DataFrame, filed: Sequence[Filed]) -> pl.DataFrame:
    """Shots that a tombstone takes down, with their outcome and reason; the rest as it was.

    Args:
        clips: Table of the `clips` schema, before or after decisions.
        filed: Tombstones in force.
    """
    if not filed:
        return clips
    detail, met = pl.lit(None, dtype=pl.String), pl.lit(False)
    columns = {}
    for number, each in enumerate(filed):
        columns[f"_met_{number}"] = meets(clips, [each.tombstone.rules])
        column = pl.col(f"_met_{number}")
        sentence = f"The tombstone {each.id} takes it down: {each.tombstone.reason}"
        detail = pl.when(column & detail.is_null()).then(pl.lit(sentence)).otherwise(detail)
        met |= column
    is_shot = pl.col("shot_index") >= 0
    marked = clips.with_columns(pl.Series(name, values) for name, values in columns.items()).with_columns(
        pl.when(met & is_shot).then(new).otherwise(pl.col(name)).alias(name)
        for name, new in {"outcome": pl.lit("dropped"), "reason": pl.lit(REASON), "detail": detail}.items()
    )
    return marked.select(clips.columns)


def kept_of(clips: str, taken: TakenDown) -> list[str]:
    """Ids of clips that a curate output keeps although they are taken down.

    Args:
        clips: URI of the curate output.
        taken: What is taken down; the table is read only if that is anything.
    """
    if not taken:
        return []
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        manifest.fetch(clips, Path(scratch), [CLIPS_TABLE], kind=CLIPS)
        table = tables.scan(Path(scratch) / CLIPS_TABLE, tables.CLIPS)
        kept = table.filter(pl.col("outcome") == "kept").select("clip_id").collect()["clip_id"]
    return kept.filter(kept.is_in(list(taken.ids))).to_list()


def concerning(videos: pl.DataFrame, filed: Sequence[Filed]) -> tuple[Filed, ...]:
    """Those tombstones that name anything of a videos table."""
    contents = set(videos["content_sha256"])
    return tuple(
        each
        for each in filed
        if meets(videos, [each.tombstone.rules.model_copy(update={"spans": ()})]).any()
        or any(span.content_sha256 in contents for span in each.tombstone.rules.spans)
    )


def identity(ids: Collection[str]) -> dict[str, str]:
    """The input by which an output made without these clips (or under these tombstones) tells itself; none for none."""
    return {REASON: digest_of_ids(ids)} if ids else {}
