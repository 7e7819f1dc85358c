"""Where clips occur in what is published below a root: shards, datasets, checkpoints, evaluations, runs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from components import manifest
from components.errors import KinoflowError
from components.layout import CHECKPOINT
from components.lineage.seen import DATASET, StageSeen, chain
from components.manifest import Manifest
from components.plan_file import PlanFile, held_out_plan, training_plan
from components.published import Published
from components.shared_tensors import open_index
from components.takedown import TakenDown
from components.takedown.plans import Mask, only

PACKED, PACKED_INDEX = "packed", "index.parquet"
EVALUATION = "evaluation"


class Occurrence(BaseModel):
    """One output that was made with some of the clips.

    Attributes:
        kind: "clips", "shard", "dataset", "checkpoint", "evaluation" or "run".
        clips: Different clips of these in it; of a checkpoint those of its own stage.
        inherited: Of a checkpoint, those that only the stages before it have seen.
        used_by: Of a checkpoint, what else is known to use it.
    """

    model_config = ConfigDict(frozen=True)
    kind: str
    uri: str
    digest: str = ""
    clips: int = 0
    inherited: int = 0
    detail: str = ""
    used_by: tuple[str, ...] = ()


class Search:
    """Looks for clips in everything below a root that is made of clips.

    Args:
        published: What there is.
        ids: Of the clips.

    Attributes:
        unknown: Sentences about outputs of which it cannot be told.
    """

    def __init__(self, published: Published, ids: Collection[str]) -> None:
        self.published, self.wanted = published, TakenDown(frozenset(ids))
        self.unknown: list[str] = []
        self._load = cache(manifest.load)
        self._plans: dict[tuple[str, str], tuple[PlanFile, Mask]] = {}

    def run(self) -> Iterator[Occurrence]:
        """Shards and datasets, checkpoints, what was made from them."""
        for uri, found in self.published.of_kind(PACKED):
            yield from self._packed(uri, found)
        for uri, found in self.published.of_kind(DATASET):
            yield from self._dataset(uri, found)
        digests = dict[str, int]()
        for uri, found in self.published.of_kind(CHECKPOINT):
            occurrence = self._checkpoint(uri, found)
            if occurrence is not None:
                digests[found.digest] = occurrence.clips + occurrence.inherited
                yield occurrence
        for uri, found in self.published.of_kind(EVALUATION):
            clips = digests.get(found.inputs.get("checkpoint", ""))
            if clips:
                yield Occurrence(
                    kind=EVALUATION, uri=uri, digest=found.digest, clips=clips, detail="of such a checkpoint"
                )

    def _packed(self, uri: str, found: Manifest) -> Iterator[Occurrence]:
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            manifest.fetch(uri, Path(scratch), [PACKED_INDEX])
            index = pl.read_parquet(Path(scratch) / PACKED_INDEX, columns=["clip_id", "shard"]).drop_nulls("shard")
        names = sorted(name for name in found.files if name.endswith(".tar"))
        met = index.filter(pl.col("clip_id").is_in(list(self.wanted.ids)))
        for shard, count in met.group_by("shard").len().sort("shard").iter_rows():
            yield Occurrence(kind="shard", uri=f"{uri}/{names[shard]}", clips=count, detail="packed clips")

    def _dataset(self, uri: str, found: Manifest) -> Iterator[Occurrence]:
        names = {name: stage for stage in _stages(found) for name in (training_plan(stage), held_out_plan(stage))}
        parts = {name: self._only(uri, found, name) for name in names if name in found.files}
        ids = {clip_id for part in parts.values() for clip_id in part.clips.ids.take(np.unique(part.clip)).each()}
        if not ids:
            return
        samples = ", ".join(
            f"{name.partition('.')[0]} {part.num_samples} samples" for name, part in parts.items() if part.num_samples
        )
        yield from self._tensors(uri, [part for part in parts.values() if part.num_samples])
        yield Occurrence(kind=DATASET, uri=uri, digest=found.digest, clips=len(ids), detail=samples)

    def _only(self, uri: str, found: Manifest, name: str) -> PlanFile:
        plan, is_wanted = self._plan(uri, found, name)
        return only(plan, is_wanted)

    def _plan(self, uri: str, found: Manifest, name: str) -> tuple[PlanFile, Mask]:
        key = (found.digest, name)
        if key not in self._plans:
            with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
                manifest.fetch(uri, Path(scratch), [name])
                plan = PlanFile.open(Path(scratch) / name)
            self._plans[key] = plan, self.wanted.mask(plan)
        return self._plans[key]

    def _tensors(self, uri: str, parts: list[PlanFile]) -> Iterator[Occurrence]:
        """Shards of shared tensors that hold latents of these plans, or features of their captions."""
        windows = pl.concat([part.windows().select("clip_id", "latent_key", "text_key") for part in parts]).unique()
        try:
            with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
                index = open_index(uri, Path(scratch))
                counts = dict[str, tuple[int, str]]()
                for column, what in (("latent_key", "latents"), ("text_key", "captions")):
                    rows = index.find(windows[column].to_list())
                    places = pl.DataFrame({"clip": windows["clip_id"], "shard": index.rows(rows)["shard"]})
                    for shard, clips in places.group_by("shard").agg(pl.col("clip").n_unique()).iter_rows():
                        counts[f"{index.root}/{index.shards[shard]}"] = clips, what
        except KinoflowError as error:
            self.unknown.append(str(error))
            return
        for shard, (clips, what) in sorted(counts.items()):
            yield Occurrence(kind="shard", uri=shard, clips=clips, detail=f"{what} of {uri}")

    def _checkpoint(self, uri: str, found: Manifest) -> Occurrence | None:
        own, inherited = set[str](), set[str]()
        for number, stage in enumerate(chain(uri, self._load)):
            if stage.fault:
                self.unknown.append(f"Whether {uri} has seen any of the clips cannot be told: {stage.fault}.")
                continue
            (inherited if number else own).update(self._seen(stage))
        if not own and not inherited:
            return None
        return Occurrence(
            kind=CHECKPOINT, uri=uri, digest=found.digest, clips=len(own), inherited=len(inherited - own),
            detail=f"stage {found.facts.get('stage')} step {found.facts.get('step')}",
            used_by=tuple(manifest.used_by(uri)),
        )  # fmt: skip

    def _seen(self, stage: StageSeen) -> Iterator[str]:
        assert stage.dataset is not None
        plan, is_wanted = self._plan(stage.data, stage.dataset, training_plan(stage.stage))
        if is_wanted.any():
            seen = stage.clips(plan)
            yield from plan.clips.ids.take(seen[is_wanted[seen]]).each()


def _stages(dataset: Manifest) -> list[str]:
    stages = dataset.facts.get("stages")
    return list(stages) if isinstance(stages, dict) else []


def runs_of(occurrences: list[Occurrence]) -> list[Occurrence]:
    """The folders that hold whole runs, from what occurs in them."""
    clips = dict[str, int]()
    for each in occurrences:
        if each.kind != "shard":
            folder = each.uri.rsplit("/", 2 if each.kind == CHECKPOINT else 1)[0]
            clips[folder] = max(clips.get(folder, 0), each.clips + each.inherited)
    return [Occurrence(kind="run", uri=uri, clips=count) for uri, count in sorted(clips.items())]
