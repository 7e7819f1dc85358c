"""The one format of every output: a prefix whose `manifest.json`, written last, makes it visible at once.

A prefix without a manifest does not exist. One whose files do not match it is refused with the name of the file. While
files are being written a note, `publishing.json`, names them: what a killed process leaves is known as ours by it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from components import store
from components.errors import KinoflowError

logger = logging.getLogger(__name__)

NAME, NOTE = "manifest.json", "publishing.json"
CONFIG = "config"
USED_BY = "used-by"
FORMAT_VERSION = 1


class ManifestError(KinoflowError):
    """An output is missing, damaged, or of another kind."""


class FileEntry(BaseModel):
    """Size and SHA-256 of one file below the prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int
    sha256: str


class Note(BaseModel):
    """What is being written below a prefix and has no manifest yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    files: tuple[str, ...]


class Manifest(BaseModel):
    """What a published prefix holds and what it was made from.

    `annotations` (addresses, run ids, the config in full) describe one particular run; they do not enter the digest, so
    the same work done under another front end has the same digest.
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

    @property
    def config(self) -> dict[str, JsonValue]:
        """What shaped it; empty where that was not recorded."""
        found = json.loads(self.annotations.get(CONFIG, "{}"))
        return found if isinstance(found, dict) else {}

    @property
    def dataset_digest(self) -> str:
        """The name of a dataset wherever it appears: digest of the clips table that this is or was made from."""
        return self.inputs.get("clips", self.digest)


def digest_of(value: BaseModel | Mapping[str, JsonValue]) -> str:
    """SHA-256 (hex) of a config or a JSON value in canonical form."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: BaseModel | Mapping[str, JsonValue]) -> str:
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
        config: what shaped it; only its digest enters the manifest's.
        inputs: digest of each input by name.
    """
    with _staging() as directory:
        publication = Publication(directory)
        yield publication
        paths = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*")) if p.is_file()}
        publication.manifest = _replace(
            out,
            _draft(kind, config, inputs, publication.facts, publication.annotations),
            list(paths),
            lambda name, uri: store.upload(paths[name], uri),
        )


def publish_files(
    out: str,
    kind: str,
    files: Mapping[str, store.Content],
    *,
    config: BaseModel | Mapping[str, JsonValue],
    inputs: Mapping[str, str],
    facts: Mapping[str, JsonValue],
    annotations: Mapping[str, str],
    others: Callable[[], Mapping[str, FileEntry]] = dict,
) -> Manifest:
    """Publish contents as one prefix without a copy on this machine: each byte is read, hashed and sent once.

    Args:
        out, kind, config, inputs: as for `publish`.
        files: contents by name.
        facts, annotations: of the manifest.
        others: called when all files are there; gives the entries of files that other processes have written below the
            same prefix, once they are there.
    """
    draft = _draft(kind, config, inputs, facts, annotations)
    return _replace(out, draft, list(files), lambda name, uri: store.write(uri, files[name]), others)


def _draft(
    kind: str,
    config: BaseModel | Mapping[str, JsonValue],
    inputs: Mapping[str, str],
    facts: Mapping[str, JsonValue],
    annotations: Mapping[str, str],
) -> Manifest:
    return Manifest(
        kind=kind,
        files={},
        inputs=dict(sorted(inputs.items())),
        config_digest=digest_of(config),
        code_version=code_version(),
        facts=dict(facts),
        annotations={**annotations, CONFIG: _canonical(config)},
    )


def _replace(
    out: str,
    draft: Manifest,
    names: Iterable[str],
    write: Callable[[str, str], store.Transferred],
    others: Callable[[], Mapping[str, FileEntry]] = dict,
) -> Manifest:
    """Put files in the place of what was published at `out`: note first, manifest last."""
    names = sorted(names)
    before = _listed(out)
    announce(out, draft.kind, names)
    store.delete(store.join(out, NAME))
    entries = {}
    for name in names:
        sent = write(name, store.join(out, name))
        entries[name] = FileEntry(size_bytes=sent.size_bytes, sha256=sent.sha256)
    entries |= others()
    for name in before - entries.keys():
        store.delete(store.join(out, name))
    manifest = draft.model_copy(update={"files": dict(sorted(entries.items()))})
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    store.write_bytes(store.join(out, NAME), text.encode())
    store.delete(store.join(out, NOTE))
    return manifest


def announce(out: str, kind: str, names: Iterable[str]) -> None:
    """Note which files are about to be written below a prefix."""
    note = Note(kind=kind, files=tuple(names))
    store.write_bytes(store.join(out, NOTE), note.model_dump_json().encode())


def read_note(uri: str) -> Note | None:
    """What is being written below a prefix, or was when its writer was killed; None when nothing is."""
    try:
        note = Note.model_validate_json(store.read_bytes(store.join(uri, NOTE)))
    except (store.ObjectMissing, ValidationError):
        return None
    for name in note.files:
        store.safe_key(name)
    return note


def pin(uri: str, used_by: str) -> None:
    """Record that something was made from an output, so that no clean-up removes it.

    The record lies outside the output's own prefix and its stage's: what is published does not change any more, and
    DVC, which compares whole folders, sees none either.
    A store that refuses the record (a prefix that may only be read) is no reason to stop.
    """
    name = f"{hashlib.sha256(used_by.encode()).hexdigest()[:16]}.json"
    try:
        store.write_bytes(store.join(uses_of(uri), name), json.dumps({"used_by": used_by}).encode())
    except store.StoreError as error:
        logger.warning("%s cannot be marked as used: %s", uri, error)


def is_pinned(uri: str) -> bool:
    """Whether something was made from this output."""
    return bool(store.list_objects(uses_of(uri)))


def used_by(uri: str) -> list[str]:
    """What was made from this output, as `pin` was told."""
    recorded = [store.join(uses_of(uri), item.key) for item in store.list_objects(uses_of(uri))]
    return sorted({str(json.loads(store.read_bytes(record))["used_by"]) for record in recorded})


def uses_of(uri: str) -> str:
    """Where the uses of `root/stage/output` are recorded: root/used-by/stage/output."""
    root, *names = uri.rstrip("/").rsplit("/", 2)
    if len(names) < 2 or root.endswith(":/") or not root:
        return store.join(uri, USED_BY)
    return store.join(root, USED_BY, *names)


def _listed(out: str) -> set[str]:
    """What an earlier output at the same place consists of: nothing else there is ours to delete."""
    try:
        return set(load(out).files)
    except ManifestError:
        return set()


@contextmanager
def _staging() -> Iterator[Path]:
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


def require_dataset(uri: str, published: Manifest, wanted: str) -> None:
    """Refuse an output of another dataset than the one asked for; none asked for is any.

    Raises:
        ManifestError: It was made from other clips.
    """
    if wanted and published.dataset_digest != wanted:
        raise ManifestError(
            f"{uri} was made from the dataset {published.dataset_digest}, not from {wanted}; "
            "start the step that makes it again, or leave the digest out."
        )


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
    faults = []
    for name, entry in load(uri).files.items():
        fault = _fault(uri, name, entry, store.checksum)
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
        fault = _fault(uri, name, manifest.files[name], partial(store.download, path=directory / name))
        if fault:
            raise ManifestError(fault)
    return manifest


def _fault(uri: str, name: str, entry: FileEntry, read: Callable[[str], store.Transferred]) -> str | None:
    try:
        found = read(store.join(uri, name))
    except store.ObjectMissing:
        return f"{store.join(uri, name)} is missing although the manifest lists it; make this output again."
    if (found.size_bytes, found.sha256) != (entry.size_bytes, entry.sha256):
        return f"{store.join(uri, name)} does not match its manifest (size or SHA-256); make this output again."
    return None
