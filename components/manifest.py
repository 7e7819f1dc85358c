"""The one format of every output: a prefix whose `manifest.json`, written last, makes it visible at once.

A prefix without a manifest does not exist. One whose files do not match it is refused with the name of the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from components import store
from components.errors import KinoflowError

NAME = "manifest.json"
FORMAT_VERSION = 1


class ManifestError(KinoflowError):
    """An output is missing, damaged, or of another kind."""


class FileEntry(BaseModel):
    """Size and SHA-256 of one file below the prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a published prefix holds and what it was made from.

    `annotations` (addresses, run ids) describe one particular run; they do not enter the digest, so the same work
    done under another front end has the same digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = FORMAT_VERSION
    kind: str
    files: dict[str, FileEntry]
    inputs: dict[str, str]
    config_digest: str
    code_version: str
    facts: dict[str, JsonValue] = {}
    annotations: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the annotations."""
        return digest_of(self.model_dump(mode="json", exclude={"annotations"}))


def digest_of(value: BaseModel | Mapping[str, JsonValue]) -> str:
    """SHA-256 (hex) of a config or a JSON value in canonical form."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_version() -> str:
    """Digest (16 hex digits) of the sources that decide results: the packages `model` and `components`."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("model/**/*.py"), *root.glob("components/**/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass
class Publication:
    """Files being prepared: put them below `directory`, set `facts` and `annotations`."""

    directory: Path
    facts: dict[str, JsonValue] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None


@contextmanager
def publish(
    out: str, kind: str, *, config: BaseModel | Mapping[str, JsonValue], inputs: Mapping[str, str]
) -> Iterator[Publication]:
    """Publish everything the body writes below `directory` as one prefix at `out`; nothing is visible on failure.

    Args:
        out: URI of the prefix.
        kind: what it is, for example "clips" or "checkpoint".
        config: what shaped it; only its digest is stored.
        inputs: digest of each input by name.
    """
    with _staging(out) as directory:
        publication = Publication(directory)
        yield publication
        files = {
            path.relative_to(directory).as_posix(): FileEntry(size_bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(
            kind=kind,
            files=files,
            inputs=dict(sorted(inputs.items())),
            config_digest=digest_of(config),
            code_version=code_version(),
            facts=publication.facts,
            annotations=publication.annotations,
        )
        stale = _listed(out) - set(files)
        store.delete(store.join(out, NAME))
        for name in files:
            store.upload(directory / name, store.join(out, name))
        for name in stale:
            store.delete(store.join(out, name))
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        store.write_bytes(store.join(out, NAME), text.encode())
        publication.manifest = manifest


def _listed(out: str) -> set[str]:
    """What an earlier output at the same place consists of: nothing else there is ours to delete."""
    try:
        return set(load(out).files)
    except ManifestError:
        return set()


@contextmanager
def _staging(out: str) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="kinoflow-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def load(uri: str) -> Manifest:
    """The manifest of a published prefix; `ManifestError` when there is none or it is not one."""
    try:
        data = store.read_bytes(store.join(uri, NAME))
    except store.ObjectMissing as error:
        raise ManifestError(f"Nothing is published at {uri} (no {NAME}); run the step that makes it first.") from error
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise ManifestError(f"{store.join(uri, NAME)} is damaged: it is not a manifest of this format.") from error
    for name in manifest.files:
        store.safe_key(name)
    return manifest


def reusable(
    out: str, kind: str, *, config: BaseModel | Mapping[str, JsonValue], inputs: Mapping[str, str]
) -> Manifest | None:
    """The manifest at `out` if it was made by this code from this config and these inputs and is complete."""
    try:
        manifest = load(out)
    except ManifestError:
        return None
    wanted = (kind, FORMAT_VERSION, digest_of(config), dict(inputs), code_version())
    found = (
        manifest.kind, manifest.format_version, manifest.config_digest, manifest.inputs, manifest.code_version
    )  # fmt: skip
    sizes = {o.key: o.size_bytes for o in store.list_objects(out)}
    complete = all(sizes.get(name) == entry.size_bytes for name, entry in manifest.files.items())
    return manifest if wanted == found and complete else None


def verify(uri: str) -> list[str]:
    """One sentence for each file of the prefix that is missing or differs; empty when all is well."""
    manifest = load(uri)
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        faults = []
        for name, entry in manifest.files.items():
            fault = _fetch(uri, name, entry, Path(scratch) / "file")
            faults += [fault] if fault else []
        return faults


def fetch(uri: str, directory: Path, names: list[str] | None = None, *, kind: str | None = None) -> Manifest:
    """Copy a published prefix (or the named files of it) into a local folder, checking every byte.

    Raises:
        ManifestError: nothing is published there, it is of another kind, or a file does not match the manifest.
    """
    manifest = load(uri)
    if kind is not None and manifest.kind != kind:
        raise ManifestError(f"{uri} holds {manifest.kind!r}, not {kind!r}; give the URI of a {kind} prefix.")
    for name in manifest.files if names is None else names:
        if name not in manifest.files:
            raise ManifestError(f"{uri} holds no file {name!r}.")
        fault = _fetch(uri, name, manifest.files[name], directory / name)
        if fault:
            raise ManifestError(fault)
    return manifest


def _fetch(uri: str, name: str, entry: FileEntry, path: Path) -> str | None:
    try:
        store.download(store.join(uri, name), path)
    except store.ObjectMissing:
        return f"{store.join(uri, name)} is missing although the manifest lists it; make this output again."
    if path.stat().st_size != entry.size_bytes or sha256_file(path) != entry.sha256:
        return f"{store.join(uri, name)} does not match its manifest (size or SHA-256); make this output again."
    return None
