"""What is compared: a chain of stages that ends in a checkpoint, with everything that is published about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import JsonValue, TypeAdapter, ValidationError

from components import layout, manifest, store
from components.lineage.seen import StageSeen, chain
from components.manifest import Manifest, ManifestError
from components.scores import Score, read_scores
from model.metrics import LogPoint

EVALUATE = "evaluate"
SAMPLED_AS = ("num_frames", "height", "width", "sampling")
ANNOTATED_INPUTS = ("clips", "videos")
_HISTORY: TypeAdapter[list[LogPoint]] = TypeAdapter(list[LogPoint])


@dataclass(frozen=True)
class StageResult:
    """A stage's checkpoint and how its training went."""

    name: str
    step: int
    checkpoint: str
    digest: str
    history: list[LogPoint] = field(repr=False)


@dataclass(frozen=True)
class Contestant:
    """One run, or what led to one checkpoint.

    Attributes:
        name: for people.
        stages: the oldest first.
        configs: what shaped its parts, by the part's name in words.
        lineage: where it comes from, by name in words.
        scores: of its last checkpoint; none where it was not evaluated.
        evaluation: config of that evaluation.
    """

    name: str
    stages: tuple[StageResult, ...]
    configs: dict[str, dict[str, JsonValue]] = field(repr=False)
    lineage: dict[str, str] = field(repr=False)
    scores: dict[str, Score] = field(repr=False)
    evaluation: dict[str, JsonValue] = field(repr=False, default_factory=dict)

    @property
    def sampled_as(self) -> dict[str, JsonValue]:
        """Size and sampling of its evaluation; empty where it has none."""
        return {name: self.evaluation[name] for name in SAMPLED_AS if name in self.evaluation}

    @property
    def folder(self) -> str:
        """The name as one for files."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "run"


def read_contestant(name: str, checkpoint: str, *, evaluation: str | None = None) -> Contestant:
    """Everything that is published about a checkpoint and the stages before it.

    Args:
        name: for people.
        checkpoint: URI of the last one.
        evaluation: URI of its evaluation; the one beside its stage when absent.

    Raises:
        ManifestError: nothing is published there, or it is no checkpoint.
    """
    seen = list(chain(checkpoint))
    seen.reverse()
    stages = tuple(
        StageResult(each.stage, each.step, each.checkpoint, each.published.digest, _history(each.checkpoint, each.step))
        for each in seen
    )
    last = seen[-1]
    configs = {f"training of {each.stage}": each.published.config for each in seen}
    configs |= {part: found.config for part, found in _inputs_of(last)}
    evaluated = _evaluation(evaluation or _beside_stage(checkpoint), last.published.digest)
    if evaluated is not None:
        configs["evaluation"] = evaluated.config
    lineage = {
        "checkpoint": last.checkpoint,
        "digest": last.published.digest,
        "started from": seen[0].published.annotations.get("parent", "") or "fresh weights",
        "dataset": last.published.dataset_digest,
        "code": last.published.code_version,
    }
    scores = read_scores(_numbers(evaluated)) if evaluated is not None else {}
    return Contestant(name, stages, configs, lineage, scores, evaluated.config if evaluated else {})


def _inputs_of(stage: StageSeen) -> Iterator[tuple[str, Manifest]]:
    """What the clips went through, from the data of a stage back to the sources."""
    if stage.dataset is None:
        return
    found = stage.dataset
    yield "encoding and plans", found
    for key, part in zip(ANNOTATED_INPUTS, ("curation", "ingestion"), strict=True):
        try:
            before = manifest.load(found.annotations.get(key, ""))
        except (ManifestError, store.StoreError):
            return
        if before.digest != found.inputs.get(key):
            return
        yield part, before
        found = before


def _beside_stage(checkpoint: str) -> str:
    """Where a run keeps the evaluation of its last checkpoint."""
    stage = checkpoint.rstrip("/").rpartition("/")[0]
    return layout.beside(stage, EVALUATE)


def _evaluation(uri: str, digest: str) -> Manifest | None:
    """The manifest of an evaluation of that very checkpoint."""
    try:
        found = manifest.load(uri)
    except ManifestError:
        return None
    return found if found.inputs.get("checkpoint") == digest else None


def _numbers(evaluated: Manifest) -> dict[str, float]:
    """What an evaluation measured, under the names that MLflow has: its manifest holds the report."""
    facts = evaluated.facts
    numbers: dict[str, float] = {}
    for name in ("held_out_loss", "held_out_loss_low", "held_out_loss_high"):
        loss = facts.get(name)
        if isinstance(loss, int | float):
            numbers[name] = float(loss)
    for task, row in _mapping(facts.get("scores")).items():
        for metric, score in _mapping(row).items():
            ends = _mapping(score)
            told = {"": ends.get("mean"), "_low": ends.get("low"), "_high": ends.get("high")}
            numbers |= {f"{task}: {metric}{end}": float(v) for end, v in told.items() if isinstance(v, int | float)}
    return numbers


def _mapping(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _history(checkpoint: str, step: int) -> list[LogPoint]:
    """Log points up to the checkpoint's step; none where the stage tells nothing."""
    stage = checkpoint.rstrip("/").rpartition("/")[0]
    for name, key in ((layout.REPORT, "history"), (layout.HISTORY, "points")):
        try:
            points = _HISTORY.validate_python(json.loads(store.read_bytes(store.join(stage, name)))[key])
        except (store.ObjectMissing, ValidationError, ValueError, KeyError):
            continue
        return [point for point in points if point.step <= step]
    return []
