"""What an output was made from, as a tree: each input is found by the digest that the manifest names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, JsonValue

from components import manifest, tables
from components.errors import KinoflowError
from components.layout import CHECKPOINT
from components.lineage.seen import StageSeen, chain
from components.manifest import Manifest, ManifestError
from components.published import Published
from components.takedown.dataset import CLIPS, CLIPS_TABLE, TakenDown

TOLD_FACTS = {
    CHECKPOINT: ("stage", "step", "parameters", "left_out_steps", "taken_down"),
    "dataset": ("train_clips", "eval_clips", "latents", "captions"),
    CLIPS: ("sources", "shots", "kept", "dropped", "dropped_reasons", "train", "eval", "kept_hours"),
    "videos": ("total", "ingested", "rejected"),
    "evaluation": ("held_out_loss", "samples"),
}
ORIGIN_COLUMNS = ("source", "licence", "attribution")
INTERNAL_KINDS = ("tensors", "locations", "shots", "grid", "comparison")
"""Kinds that only serve others: nobody asks where they come from."""


class Origin(BaseModel):
    """How many clips come from one source under one licence."""

    model_config = ConfigDict(frozen=True)
    source: str | None
    licence: str | None
    attribution: str | None = None
    files: int
    clips: int


class Node(BaseModel):
    """An output and what it was made from.

    Attributes:
        name: What it is to the output above, for example "parent".
        facts: Some of the manifest's, and of a checkpoint how many clips it has seen.
        origins: Of a checkpoint, where the clips come from that it or a stage before has seen.
        other_inputs: Digests of inputs that are no outputs.
        inputs: Outputs it was made from.
        fault: Why it cannot be told what it is, as a sentence.
    """

    model_config = ConfigDict(frozen=True)
    name: str = ""
    kind: str
    uri: str = ""
    digest: str = ""
    code_version: str = ""
    config_digest: str = ""
    facts: dict[str, JsonValue] = {}
    origins: tuple[Origin, ...] = ()
    other_inputs: dict[str, str] = {}
    inputs: tuple[Node, ...] = ()
    fault: str = ""


class Tree:
    """Builds trees from what lies at the places that manifests name, or anywhere below a root.

    Args:
        published: Where to look for an input that is not where it was; nowhere when absent.
    """

    def __init__(self, published: Published | None = None) -> None:
        self._published = published
        self._clips: dict[str, pl.DataFrame] = {}

    def of(self, uri: str, name: str = "", digest: str | None = None) -> Node:
        """The tree of an output.

        Args:
            uri: Where it lies.
            name: What it is to the output above.
            digest: It must be the one of this digest, if given.

        Raises:
            ManifestError: Nothing is published there, or something else.
        """
        found = manifest.load(uri)
        if digest is not None and found.digest != digest:
            raise ManifestError(f"{uri} was replaced.")
        inputs = [(key, value, self._find(found, key, value)) for key, value in found.inputs.items()]
        facts = {key: found.facts[key] for key in TOLD_FACTS.get(found.kind, ()) if found.facts.get(key)}
        origins: tuple[Origin, ...] = ()
        if found.kind == CHECKPOINT:
            more, origins = self._seen(uri)
            facts |= more
        return Node(
            name=name, kind=found.kind, uri=uri, digest=found.digest, code_version=found.code_version,
            config_digest=found.config_digest, facts=facts, origins=origins,
            other_inputs={key: value for key, value, node in inputs if node is None},
            inputs=tuple(node for *_, node in inputs if node is not None),
        )  # fmt: skip

    def _find(self, found: Manifest, key: str, digest: str) -> Node | None:
        """The tree of an input; None for one that is no output of this program."""
        elsewhere = self._published.uri_of_digest.get(digest) if self._published else None
        for place in (found.annotations.get(key), elsewhere):
            if place:
                try:
                    return self.of(place, key, digest)
                except ManifestError:
                    continue
        if found.annotations.get(key) or key in ("data", "parent", "clips", "videos", "checkpoint"):
            return Node(
                name=key, kind="unknown", uri=found.annotations.get(key, ""), digest=digest, fault="gone or replaced"
            )
        return None

    def _seen(self, checkpoint: str) -> tuple[dict[str, JsonValue], tuple[Origin, ...]]:
        """What a checkpoint and those before it have seen: counts by stage, and where it came from."""
        facts: dict[str, JsonValue] = {}
        by_stage: dict[str, JsonValue] = {}
        rows, gone = [], TakenDown()
        for number, stage in enumerate(chain(checkpoint)):
            if not number:
                run_id = stage.published.annotations.get("mlflow_run_id")
                facts |= {"mlflow_run_id": run_id} if run_id else {}
            try:
                by_stage[stage.stage] = stage.fault or len(stage.clip_ids)
                rows += [] if stage.fault else [self._rows(stage)]
                gone |= stage.taken_down_since()
            except KinoflowError as error:
                by_stage[stage.stage] = str(error)
        facts["clips_seen"] = by_stage
        if gone:
            facts |= {"clips_seen_that_are_taken_down": len(gone.ids), "tombstones": ", ".join(gone.tombstones)}
        if not rows:
            return facts, ()
        seen = pl.concat(rows).unique("clip_id")
        facts["clips_seen_together"] = len(seen)
        names = [name for name in ORIGIN_COLUMNS if name in seen.columns]
        counts = seen.group_by(names).agg(pl.col("path").n_unique().alias("files"), pl.len().alias("clips"))
        return facts, tuple(Origin(**row) for row in counts.sort("clips", *names, descending=True).to_dicts())

    def _rows(self, stage: StageSeen) -> pl.DataFrame:
        """What the clips table says of the clips that a stage has seen."""
        assert stage.dataset is not None
        digest = stage.dataset.inputs.get(CLIPS, "")
        if digest not in self._clips:
            self._clips[digest] = self._clips_table(stage.dataset, digest)
        return stage.clip_ids.to_frame().join(self._clips[digest], on="clip_id", how="left")

    def _clips_table(self, dataset: Manifest, digest: str) -> pl.DataFrame:
        elsewhere = self._published.uri_of_digest.get(digest) if self._published else None
        for place in (dataset.annotations.get(CLIPS), elsewhere):
            try:
                if place and manifest.load(place).digest == digest:
                    return clips_table(place).select("clip_id", "path", *_there(ORIGIN_COLUMNS))
            except ManifestError:
                continue
        return pl.DataFrame(schema=dict.fromkeys(("clip_id", "path", *_there(ORIGIN_COLUMNS)), pl.String))


def _there(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in tables.CLIPS]


def clips_table(uri: str) -> pl.DataFrame:
    """The table of a curate output."""
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        manifest.fetch(uri, Path(scratch), [CLIPS_TABLE], kind=CLIPS)
        return tables.read(Path(scratch) / CLIPS_TABLE, tables.CLIPS)


def ends_of(published: Published) -> list[str]:
    """URIs of the outputs below a root that nothing else there was made from; of each stage its last checkpoint."""
    used = {digest for found in published.manifests.values() for digest in found.inputs.values()}
    superseded = {folder for folders in published.stages().values() for folder in folders[:-1]}
    return [
        published.uri(folder)
        for folder, found in sorted(published.manifests.items())
        if found.kind not in INTERNAL_KINDS and found.digest not in used and folder not in superseded
    ]


def made_from(published: Published, digest: str) -> list[Node]:
    """Outputs below a root that were made from one of this digest, directly or not, without their own trees."""
    known, nodes = {digest}, dict[str, Node]()
    while True:
        new = [
            Node(kind=found.kind, uri=published.uri(folder), digest=found.digest)
            for folder, found in sorted(published.manifests.items())
            if found.digest not in known and known & set(found.inputs.values())
        ]
        if not new:
            return sorted(nodes.values(), key=lambda node: node.uri)
        known |= {node.digest for node in new}
        nodes |= {node.uri: node for node in new}
