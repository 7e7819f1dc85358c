"""Everything that is published below a root, from one listing: what clean-up, checks and lineage look through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath

from components import manifest, store
from components.layout import CHECKPOINT, STEP_FOLDER
from components.manifest import Manifest, ManifestError
from components.store import StoredObject


class Published:
    """One look at everything below a root; folders are relative to it, "" is the root itself.

    Args:
        root: URI of a run, a stage, or everything.

    Attributes:
        objects: Everything there is.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") if root.strip("/") else root
        self.objects = store.list_objects(self.root)

    @cached_property
    def below(self) -> dict[str, list[StoredObject]]:
        """Folder -> everything below it."""
        below: dict[str, list[StoredObject]] = defaultdict(list)
        for item in self.objects:
            for folder in PurePosixPath(item.key).parents:
                below[_name(folder)].append(item)
        return below

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """Folder -> what is published there; a file of that name that is somebody else's is passed over."""
        return {folder: found for folder in self.folders_with(manifest.NAME) if (found := self._load(folder))}

    @cached_property
    def uri_of_digest(self) -> dict[str, str]:
        """Digest of a manifest -> where one of that digest is published."""
        return {found.digest: self.uri(folder) for folder, found in sorted(self.manifests.items())}

    def of_kind(self, *kinds: str) -> Iterator[tuple[str, Manifest]]:
        """URI and manifest of every output of these kinds, by folder."""
        for folder, found in sorted(self.manifests.items()):
            if found.kind in kinds:
                yield self.uri(folder), found

    def stages(self) -> dict[str, list[str]]:
        """Folders of the checkpoints of each training stage, oldest step first."""
        stages: dict[str, list[str]] = defaultdict(list)
        for folder, found in self.manifests.items():
            path = PurePosixPath(folder)
            if found.kind == CHECKPOINT and STEP_FOLDER.fullmatch(path.name):
                stages[str(path.parent)].append(folder)
        return {stage: sorted(folders) for stage, folders in stages.items()}

    def folders_with(self, name: str) -> set[str]:
        """Folders that hold a file of this name."""
        paths = (PurePosixPath(item.key) for item in self.objects if item.key.endswith(name))
        return {_name(path.parent) for path in paths if path.name == name}

    def uri(self, folder: str) -> str:
        """Where a folder lies."""
        return store.join(self.root, folder) if folder else self.root

    def _load(self, folder: str) -> Manifest | None:
        try:
            return manifest.load(self.uri(folder))
        except ManifestError:
            return None


def _name(folder: PurePosixPath) -> str:
    return "" if str(folder) == "." else str(folder)
