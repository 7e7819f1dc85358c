"""The checkpoints of one stage: published whole, found again after a crash, pruned as training goes on."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from components import manifest, store
from components.config import TrainConfig
from components.manifest import Manifest, ManifestError
from model.checkpoint import TrainingState, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

KIND = "checkpoint"
STEP_FOLDER = re.compile(r"step-(\d{8})")
# Options that decide what is watched and kept, not what is computed.
BOOKKEEPING = {"log_every", "checkpoint_every", "keep_checkpoints"}


@dataclass(frozen=True)
class StageCheckpoints:
    """The checkpoints below one prefix that were made from one configuration and one set of inputs.

    Attributes:
        out: URI of the stage; a checkpoint lies at out/step-00000500.
        config: what decides the result.
        inputs: digests of the data and (if any) of the parent checkpoint.
    """

    out: str
    config: Mapping[str, JsonValue]
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, config: TrainConfig, out: str, inputs: Mapping[str, str]) -> StageCheckpoints:
        """The checkpoints this stage makes; how often it logs and saves does not matter."""
        return cls(out, config.model_dump(mode="json", exclude=BOOKKEEPING), inputs)

    @property
    def identity(self) -> str:
        """Digest of configuration, inputs and code."""
        facts: dict[str, JsonValue] = {"inputs": dict(self.inputs), "code": manifest.code_version()}
        return manifest.digest_of({**facts, "config": dict(self.config)})

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return store.join(self.out, f"step-{step:08d}")

    def publish(
        self, state: TrainingState, *, facts: Mapping[str, JsonValue], annotations: Mapping[str, str]
    ) -> Manifest:
        """Publish one checkpoint; it becomes visible at once or not at all."""
        uri = self.uri(state.progress.step)
        with manifest.publish(uri, KIND, config=self.config, inputs=self.inputs) as publication:
            save_checkpoint(publication.directory, state)
            publication.facts.update(facts)
            publication.annotations.update(annotations)
        assert publication.manifest is not None
        return publication.manifest

    def complete(self, step: int) -> Manifest | None:
        """The manifest of that step's checkpoint if it is this stage's and all its files are there."""
        return manifest.reusable(self.uri(step), KIND, config=self.config, inputs=self.inputs)

    def newest_good(self, scratch: Path) -> tuple[int, TrainingState] | None:
        """The newest checkpoint of this stage whose every byte is as published.

        A damaged one is passed over with a warning that names the file, and so is one without a manifest, which was
        being written when training stopped.

        Args:
            scratch: local folder to copy it into.
        """
        for step in sorted(self._steps(), reverse=True):
            if not self._is_ours(step):
                logger.warning("%s is of another configuration, data or code, or incomplete: not used.", self.uri(step))
                continue
            folder = scratch / f"step-{step:08d}"
            try:
                manifest.fetch(self.uri(step), folder, kind=KIND)
                return step, load_checkpoint(folder)
            except ManifestError as error:
                logger.warning("%s Training goes on from the checkpoint before it.", error)
        return None

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` of this stage's checkpoints, each manifest first."""
        ours = [step for step in sorted(self._steps()) if self._is_ours(step)]
        for step in ours[:-keep]:
            uri = self.uri(step)
            store.delete(store.join(uri, manifest.NAME))
            for item in store.list_objects(uri):
                store.delete(store.join(uri, item.key))

    def _steps(self) -> set[int]:
        folders = {item.key.split("/")[0] for item in store.list_objects(self.out)}
        return {int(match[1]) for match in map(STEP_FOLDER.fullmatch, folders) if match}

    def _is_ours(self, step: int) -> bool:
        try:
            found = manifest.load(self.uri(step))
        except ManifestError:
            return False
        wanted = (manifest.digest_of(self.config), dict(self.inputs), manifest.code_version())
        return (found.config_digest, found.inputs, found.code_version) == wanted
