"""Finding what nobody needs below a root of outputs: superseded checkpoints, and what killed processes have left.

Only what is known as ours is ever named: by a manifest, by the note of a publication under way, or by the names that
checkpoints and temporary files have. A checkpoint stays when it is among the newest of its stage, when its step is one
to keep, when anything was made from it, and when it is the last of its stage whose every byte is as published.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from components import manifest, store
from components.errors import KinoflowError
from components.layout import ANALYSED, HISTORY, REPORT, STEP_FOLDER
from components.published import Published
from components.store import PendingUpload

CHECKPOINT_FILE = re.compile(
    r"(model|ema|optimizer)\.safetensors|(config|state)\.json|optimizer/part-\d{5}-of-\d{5}\.safetensors|receipts/.+\.json"
)
SEGMENT = re.compile(r"[0-9a-f]{64}\.parquet")
TEMPORARY = re.compile(r"\.[^/]+\.[a-z0-9_]{8}")


class Retention(BaseModel):
    """Which checkpoints stay whatever happens, and how long a silent writer is taken for a living one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_last: int = Field(2, ge=1, description="Newest checkpoints of each stage and configuration.")
    keep_every: int | None = Field(None, ge=1, description="Checkpoints of steps that this divides.")
    grace_h: float = Field(24.0, ge=0, description="Unfinished things younger than this may still be written.")


@dataclass(frozen=True)
class Rubbish:
    """One thing to remove.

    Attributes:
        what: kind of thing, for example "superseded checkpoint".
        uri: where it lies.
        keys: its objects relative to `uri` (the empty key is the object itself), in the order to delete them.
        size_bytes: all of them together.
    """

    what: str
    uri: str
    keys: tuple[str, ...] = ("",)
    size_bytes: int = 0
    upload: PendingUpload | None = None


@dataclass
class Survey:
    """What was found below a root.

    Attributes:
        rubbish: to remove.
        kept: checkpoints that stay, with the reason.
        faults: sentences about checkpoints that are damaged.
    """

    rubbish: list[Rubbish] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def survey(root: str, retention: Retention) -> Survey:
    """Find what can go below `root`; nothing is removed.

    Raises:
        KinoflowError: nothing there was published by this program.
    """
    return _Surveyor(Published(root), retention).run()


def remove(rubbish: Iterable[Rubbish]) -> None:
    """Remove what a survey has found, each manifest before its files."""
    for item in rubbish:
        if item.upload is not None:
            store.abort(item.upload)
            continue
        for key in item.keys:
            store.delete(store.join(item.uri, key) if key else item.uri)
        store.remove_empty_folders(item.uri)


class _Surveyor:
    """One look at everything below a root."""

    def __init__(self, published: Published, retention: Retention) -> None:
        self.published, self.retention = published, retention
        self.root, self.objects, self.below = published.root, published.objects, published.below
        self.manifests = published.manifests
        self.oldest_alive_s = time.time() - retention.grace_h * 3600
        self.notes = published.folders_with(manifest.NOTE)
        self.result = Survey()

    def run(self) -> Survey:
        """Everything that can go."""
        if not self.manifests and not any(manifest.read_note(self.published.uri(folder)) for folder in self.notes):
            raise KinoflowError(
                f"{self.root} is no root of this program's outputs (nothing below it is published); nothing is removed."
            )
        self._checkpoints()
        self._half_written()
        self._files_of_nothing()
        self._unasked_measures()
        self._temporary_files()
        for upload in store.pending_uploads(self.root):
            if upload.started.timestamp() < self.oldest_alive_s:
                self.result.rubbish.append(Rubbish("begun upload", upload.uri, upload=upload))
        return self.result

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def _checkpoints(self) -> None:
        used = self._used()
        for stage, folders in sorted(self.published.stages().items()):
            superseded = []
            for group in self._by_origin(folders):
                for age, folder in enumerate(reversed(group)):
                    reason = self._reason(folder, age, used)
                    if reason is None:
                        superseded.append(folder)
                    else:
                        self.result.kept[self.published.uri(folder)] = reason
            if superseded:
                good = self._last_good(folders)
                if good in superseded:
                    self.result.kept[self.published.uri(good)] = f"the last whole one of {stage or self.root}"
                    superseded.remove(good)
                elif good is None:  # nothing is whole: leave what is there to a person
                    self.result.kept |= dict.fromkeys(map(self.published.uri, superseded), "nothing newer is whole")
                    superseded = []
            self.result.rubbish += [self._all_of("superseded checkpoint", folder) for folder in superseded]

    def _by_origin(self, folders: list[str]) -> list[list[str]]:
        """Checkpoints of one configuration, data and code go on from each other; those of another are no newer ones."""
        groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
        for folder in folders:
            found = self.manifests[folder]
            groups[found.config_digest, tuple(found.inputs.items()), found.code_version].append(folder)
        return list(groups.values())

    def _reason(self, folder: str, age: int, used: set[str]) -> str | None:
        """Why a checkpoint stays; None when nothing speaks for it."""
        step = int(PurePosixPath(folder).name.removeprefix("step-"))
        if age < self.retention.keep_last:
            return f"among the newest {self.retention.keep_last}"
        if self.retention.keep_every and step % self.retention.keep_every == 0:
            return f"every {self.retention.keep_every} steps"
        if manifest.is_pinned(self.published.uri(folder)):
            return "something was made from it"
        if self.manifests[folder].digest in used or self.published.uri(folder) in used:
            return "named by another output or a report"
        return None

    def _used(self) -> set[str]:
        """Digests and URIs that manifests and reports name."""
        used: set[str] = set()
        for found in self.manifests.values():
            used.update(found.inputs.values())
            used.update(value.rstrip("/") for value in found.annotations.values())
        for item in self.objects:
            if PurePosixPath(item.key).name == REPORT:
                used.update(_strings(store.read_bytes(store.join(self.root, item.key))))
        return used

    def _last_good(self, folders: list[str]) -> str | None:
        """The newest checkpoint of a stage that is whole to the last byte, which is read to know it."""
        for folder in reversed(folders):
            faults = manifest.verify(self.published.uri(folder))
            if not faults:
                return folder
            self.result.faults += faults
        return None

    # --- leftovers -----------------------------------------------------------------------------------------------

    def _half_written(self) -> None:
        for folder in sorted(self.notes):
            note = manifest.read_note(self.published.uri(folder))
            if note is None or not self._is_old(folder):
                continue
            if folder in self.manifests:
                self._add("finished note", folder, [manifest.NOTE])
            else:
                self._add("half-written output", folder, [*note.files, manifest.NOTE])
        for folder in sorted(self._unpublished_steps()):
            if self._is_old(folder):
                names = [item.key.removeprefix(f"{folder}/") for item in self.below[folder]]
                self._add("half-written output", folder, [name for name in names if CHECKPOINT_FILE.fullmatch(name)])

    def _unpublished_steps(self) -> Iterator[str]:
        """Folders of checkpoints without manifest or note, beside checkpoints or the history of a stage."""
        stages = set(self.published.stages())
        for folder in list(self.below):
            path = PurePosixPath(folder)
            if not STEP_FOLDER.fullmatch(path.name) or folder in self.manifests or folder in self.notes:
                continue
            siblings = {item.key for item in self.below["" if str(path.parent) == "." else str(path.parent)]}
            if str(path.parent) in stages or str(path.parent / HISTORY) in siblings:
                yield folder

    def _files_of_nothing(self) -> None:
        """Numbered files beside those of a manifest that it does not list, and that carry the same kind of name."""
        for folder, found in self.manifests.items():
            if folder in self.notes:
                continue
            forms = {_form(name) for name in found.files if re.search(r"\d{5}", name)}
            for item in self.below[folder]:
                name = item.key.removeprefix(f"{folder}/") if folder else item.key
                if name not in found.files and _form(name) in forms and item.modified_s < self.oldest_alive_s:
                    self._add("file of nothing", folder, [name])

    def _unasked_measures(self) -> None:
        """What was measured on files in a way that no curation below the root was made with."""
        used = self._used()
        for folder, items in self.below.items():
            if PurePosixPath(folder).parent.name == ANALYSED and self.published.uri(folder) not in used:
                names = [item.key.removeprefix(f"{folder}/") for item in items]
                if all(SEGMENT.fullmatch(name) for name in names) and self._is_old(folder):
                    self._add("measures of no curation", folder, names)

    def _temporary_files(self) -> None:
        """What a process killed in the middle of a local write has left beside its target."""
        if store.is_s3(self.root):
            return
        ours = {*self.manifests, *self.notes, *self.published.stages(), *self._unpublished_steps()}
        for item in self.objects:
            path = PurePosixPath(item.key)
            inside = any(("" if str(parent) == "." else str(parent)) in ours for parent in path.parents)
            if inside and TEMPORARY.fullmatch(path.name) and item.modified_s < self.oldest_alive_s:
                uri = store.join(self.root, item.key)
                self.result.rubbish.append(Rubbish("temporary file", uri, size_bytes=item.size_bytes))

    # --- shared --------------------------------------------------------------------------------------------------

    def _is_old(self, folder: str) -> bool:
        return max(item.modified_s for item in self.below[folder]) < self.oldest_alive_s

    def _all_of(self, what: str, folder: str) -> Rubbish:
        """A published prefix: its manifest, then the files it lists."""
        return self._rubbish(what, folder, [manifest.NAME, *self.manifests[folder].files])

    def _add(self, what: str, folder: str, names: Iterable[str]) -> None:
        found = self._rubbish(what, folder, names)
        if found.keys:
            self.result.rubbish.append(found)

    def _rubbish(self, what: str, folder: str, names: Iterable[str]) -> Rubbish:
        wanted = dict.fromkeys(names)
        base = f"{folder}/" if folder else ""
        sizes = {item.key.removeprefix(base): item.size_bytes for item in self.below[folder]}
        keys = tuple(name for name in wanted if name in sizes)
        return Rubbish(what, self.published.uri(folder), keys, sum(sizes[key] for key in keys))


def _form(name: str) -> str:
    """A name with its digits blotted out: all shards of one kind have the same."""
    return re.sub(r"\d", "#", name)


def _strings(data: bytes) -> set[str]:
    """Every string of a JSON object's first level; none when it is no JSON object."""
    try:
        values = json.loads(data)
    except ValueError:
        return set()
    return (
        {value.rstrip("/") for value in values.values() if isinstance(value, str)}
        if isinstance(values, dict)
        else set()
    )
