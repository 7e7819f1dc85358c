"""The checkpoints of one stage: published whole, found again after a crash, pruned as training goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from components import manifest, store
from components.config import TrainConfig
from components.errors import KinoflowError
from components.layout import CHECKPOINT, SET_ASIDE, STEP_FOLDER, step_folder
from components.manifest import Manifest, ManifestError
from components.takedown import REASON
from components.train.parts import wait_for_parts, write_part
from model.checkpoint import TrainingState, checkpoint_files, load_checkpoint

logger = logging.getLogger(__name__)

KIND = CHECKPOINT
# Options that decide what is watched and kept, and by how many processes: not what is computed, but for rounding.
BOOKKEEPING = {
    "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "parallel", "sequence_parallel",
    "processes", "colossalai_plugin", "gate", "grace_s", "hang_timeout_s", "store_outage_s", "peak_flops_per_s",
    "read_ahead_bytes", "touched_checkpoint",
}  # fmt: skip


@dataclass(frozen=True)
class StageCheckpoints:
    """The checkpoints below one prefix that were made from one configuration and one set of inputs.

    Attributes:
        out: URI of the stage; a checkpoint lies at out/step-00000500.
        config: what decides the result.
        inputs: digests of the data and (if any) of the parent checkpoint and of what was left out of the data.
        accepts: whether to go on from a checkpoint that differs in what was left out.
    """

    out: str
    config: Mapping[str, JsonValue]
    inputs: Mapping[str, str]
    accepts: Callable[[Manifest], bool] = field(default=lambda _: False, compare=False)

    @classmethod
    def of(cls, config: TrainConfig, out: str, inputs: Mapping[str, str]) -> StageCheckpoints:
        """The checkpoints this stage makes; how often it logs and saves, and on how many ranks, does not matter."""
        return cls(out, config.model_dump(mode="json", exclude=BOOKKEEPING), inputs)

    @property
    def identity(self) -> str:
        """Digest of configuration, inputs and code; what was left out of the data may change as the stage runs."""
        facts: dict[str, JsonValue] = {"inputs": _lasting(self.inputs), "code": manifest.code_version()}
        return manifest.digest_of({**facts, "config": dict(self.config)})

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return store.join(self.out, step_folder(step))

    def publish(
        self, state: TrainingState, *, facts: Mapping[str, JsonValue], annotations: Mapping[str, str], attempt: int = 0
    ) -> Manifest | None:
        """Publish one checkpoint; it becomes visible at once or not at all.

        Args:
            state: whole, or this rank's share of it.
            facts, annotations: of the manifest.
            attempt: tells this launch of the ranks from others, where they save shares.

        Returns:
            The manifest; None on a rank that only writes its share, which the first rank publishes.
        """
        uri = self.uri(state.progress.step)
        if state.part is not None and state.part.index > 0:
            write_part(uri, state, attempt)
            return None
        published = manifest.publish_files(
            uri,
            KIND,
            {n: store.BytesContent(c) if isinstance(c, bytes) else c for n, c in checkpoint_files(state).items()},
            config=self.config,
            inputs=self.inputs,
            facts=facts,
            annotations=annotations,
            others=lambda: wait_for_parts(uri, state, attempt),
        )
        self._write_set_aside(
            self._set_aside() - {published.digest}
        )  # the fault was a passing one: the same state again
        return published

    def complete(self, step: int) -> Manifest | None:
        """The manifest of that step's checkpoint if it is this stage's and all its files are there."""
        return manifest.reusable(self.uri(step), KIND, config=self.config, inputs=self.inputs)

    def newest_good(self, scratch: Path, steps: Collection[int] | None = None) -> tuple[int, TrainingState] | None:
        """The newest checkpoint of this stage whose every byte is as published.

        A damaged one is passed over with a warning that names the file, and so is one without a manifest, which was
        being written when training stopped. One that training went back behind is not looked at.

        Args:
            scratch: local folder to copy it into.
            steps: look at these only; at all there are when absent.
        """
        set_aside = self._set_aside()
        for step in sorted(self._steps() if steps is None else steps, reverse=True):
            folder = scratch / step_folder(step)
            try:
                if manifest.load(self.uri(step)).digest in set_aside:
                    continue
                if not self._is_ours(step):
                    logger.warning(
                        "%s is of another configuration, data or code, or of before a takedown: not used.",
                        self.uri(step),
                    )
                    continue
                manifest.fetch(self.uri(step), folder, kind=KIND)
                return step, load_checkpoint(folder)
            except (ManifestError, ValueError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                logger.warning("%s Training goes on from the checkpoint before it.", error)
        return None

    def prune(self, keep: int, keep_every: int | None = None) -> None:
        """Delete this stage's checkpoints, each manifest first, but for those still of use.

        Args:
            keep: the newest whole ones that stay.
            keep_every: those of steps that this divides stay as well.

        What something was made from (`manifest.pin`) stays, and so does everything when nothing newer is whole. What
        was set aside goes once training has come past it again.
        """
        set_aside = self._set_aside()
        ours = [step for step in sorted(self._steps()) if self._seems_ours(step)]
        whole = [step for step in ours if (found := self._whole(step)) is not None and found.digest not in set_aside]
        if not whole:
            return
        kept = set(whole[-keep:]) | {step for step in whole if keep_every and step % keep_every == 0}
        for step in ours:
            if step < whole[-1] and step not in kept and not manifest.is_pinned(self.uri(step)):
                self._delete(step)

    def before(self, step: int, scratch: Path) -> tuple[int, TrainingState] | None:
        """The newest good checkpoint of at most that step, or else the oldest good one.

        Later ones are set aside: they stay as they are, but no attempt goes on from them.
        """
        ours = sorted(other for other in self._steps() if self._seems_ours(other))
        earlier = [other for other in ours if other <= step]
        found = self.newest_good(scratch, earlier)
        for later in ours[len(earlier) :]:
            found = found or self.newest_good(scratch, [later])
        digests = {manifest.load(self.uri(other)).digest for other in ours if found is None or other > found[0]}
        self._write_set_aside(self._set_aside() | digests)
        return found

    def _set_aside(self) -> frozenset[str]:
        """Digests of checkpoints that training went back behind; what comes to their places later has other ones."""
        uri = store.join(self.out, SET_ASIDE)
        try:
            return frozenset(json.loads(store.read_bytes(uri)))
        except store.ObjectMissing:
            return frozenset()
        except (ValueError, TypeError) as error:
            raise KinoflowError(
                f"{uri} is damaged ({error}); delete it and the checkpoints not to go on from."
            ) from error

    def _write_set_aside(self, digests: frozenset[str]) -> None:
        if digests != self._set_aside():
            store.write_bytes(store.join(self.out, SET_ASIDE), json.dumps(sorted(digests), indent=1).encode())

    def _delete(self, step: int) -> None:
        uri = self.uri(step)
        store.delete(store.join(uri, manifest.NAME))
        for item in store.list_objects(uri):
            store.delete(store.join(uri, item.key))
        store.remove_empty_folders(uri)

    def _steps(self) -> set[int]:
        folders = {item.key.split("/")[0] for item in store.list_objects(self.out)}
        return {int(match[1]) for match in map(STEP_FOLDER.fullmatch, folders) if match}

    def _is_ours(self, step: int) -> bool:
        found = manifest.load(self.uri(step))
        wanted = (manifest.digest_of(self.config), _lasting(self.inputs), manifest.code_version())
        if (found.config_digest, _lasting(found.inputs), found.code_version) != wanted:
            return False
        return found.inputs == dict(self.inputs) or self.accepts(found)

    def _whole(self, step: int) -> Manifest | None:
        """The manifest of a checkpoint of ours if all its files are there, whatever was left out up to it."""
        inputs = manifest.load(self.uri(step)).inputs
        return manifest.reusable(self.uri(step), KIND, config=self.config, inputs=inputs)

    def _seems_ours(self, step: int) -> bool:
        try:
            return self._is_ours(step)
        except ManifestError:
            return False


def _lasting(inputs: Mapping[str, str]) -> dict[str, JsonValue]:
    """Inputs but for what was left out of them."""
    return {name: digest for name, digest in inputs.items() if name != REASON}
