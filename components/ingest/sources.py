"""What there is to ingest: a folder, an `s3://` prefix, archives, or a list of files, here or on the web."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import translate
from itertools import product
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from components import store
from components.errors import KinoflowError
from components.ingest.archives import is_archive
from components.ingest.downloads import DownloadError, Limits, fetch, is_url, joined, name_of, public_url
from components.ingest.lists import LINKS_SUFFIX, is_table, read_list
from components.ingest.sidecars import SIDECAR_SUFFIXES, Said, stripped

MAX_LIST_BYTES = 8 << 30
MAGIC = re.compile(r"[*?\[{]")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
MAX_EXPANDED = 1_000_000


class SourceFile(NamedTuple):
    """One input: a file, or an archive of several.

    Attributes:
        path: as it was written, without credentials.
        uri: where it lies.
        occurrence: how many inputs of this path come before it.
        refusal: reason and sentence when it is known already that it cannot be taken.
        said: what the list says about it.
        sidecars: suffixes of the sidecars beside it; None when only a look can tell.
        version: of its bytes, where the listing tells.
    """

    path: str
    uri: str
    occurrence: int = 0
    refusal: tuple[str, str] | None = None
    said: Said = Said()
    sidecars: tuple[str, ...] | None = None
    version: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return name_of(self.uri) if is_url(self.uri) else PurePosixPath(self.uri).name


def list_source(source: str) -> list[SourceFile]:
    """Every input of a source, in a fixed order; hidden files and sidecars are not inputs.

    Args:
        source: a folder, an `s3://` prefix, a table (`.csv`, `.parquet`, `.jsonl`), a `.txt` of addresses, a `.tar`,
            or an http(s) address of one of those or of a video. `*`, `?`, `[…]` and `{…}` name several, and
            `{000..012}` counts.

    Raises:
        KinoflowError: there is nothing, or nothing of this kind.
    """
    if _exists(source) or not MAGIC.search(source):
        files = list(_list_place(source))
    else:
        root = _fixed_root(source)
        files = [file for place in _expanded(source) for file in _list_match(place, root)]
    if not files:
        raise KinoflowError(f"The source {source!r} holds no files; put videos or images (and captions) there.")
    return _count_repeats(files)


def _count_repeats(files: Iterable[SourceFile]) -> list[SourceFile]:
    """A path that was named before is refused, and still has a row of its own."""
    seen: dict[str, int] = {}
    counted = []
    for file in files:
        occurrence = seen.get(file.path, 0)
        seen[file.path] = occurrence + 1
        if occurrence:
            refusal = file.refusal or ("duplicate_path", f"The source names {file.path!r} in an earlier row.")
            file = file._replace(occurrence=occurrence, refusal=refusal)
        counted.append(file)
    return counted


def _list_place(source: str) -> Iterable[SourceFile]:
    """What one source that is no pattern holds."""
    name = name_of(source) if is_url(source) else source
    is_file = is_url(source) or (Path(source).is_file() if not store.is_s3(source) else True)
    if is_file and (is_table(name) or name.lower().endswith(LINKS_SUFFIX)):
        return _list_rows(source)
    if is_url(source):
        return [SourceFile(public_url(source), source, sidecars=())]
    if is_file and is_archive(name):
        return [SourceFile(PurePosixPath(source).name, source, sidecars=())]
    if store.is_s3(source):
        return _list_prefix(source)
    if Path(source).is_dir():
        return _list_folder(source)
    if Path(source).exists():
        raise KinoflowError(f"The source {source!r} is one file; give a folder, an s3:// prefix, a table or a .tar.")
    raise KinoflowError(f"The source {source!r} does not exist; check the path.")


# --- folders and prefixes ----------------------------------------------------------------------------------------


def _list_folder(root: str) -> Iterator[SourceFile]:
    paths = sorted(_walk(Path(root)))
    there = set(paths)
    for path in paths:
        if _is_input(path):
            yield SourceFile(path, store.join(root, path), sidecars=_beside(path, there))


def _list_prefix(prefix: str) -> Iterator[SourceFile]:
    objects = store.list_objects(prefix)
    there = {item.key for item in objects}
    for item in objects:
        if _is_input(item.key):
            uri = f"{prefix.rstrip('/')}/{item.key}"
            version = _version(item)
            yield SourceFile(item.key, uri, sidecars=_beside(item.key, there), version=version)


def _version(item: store.StoredObject) -> str:
    return f"{item.size_bytes} {item.modified_s} {item.etag}"


def version_in_store(uri: str) -> str:
    """The version of one object of a bucket, as the listing of its prefix would tell it."""
    return _version(store.describe(uri))


def _walk(root: Path) -> Iterator[str]:
    """Everything but folders, dangling links and links to folders too: whatever lies there gets a row."""
    for folder, folders, names in os.walk(root, onerror=_refuse_folder):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(folder) / name).relative_to(root).as_posix()


def _refuse_folder(error: OSError) -> None:
    raise KinoflowError(f"Could not read the folder {error.filename!r}: {error.strerror}; check its permissions.")


def _is_input(path: str) -> bool:
    parts = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in parts.parts)
    return not hidden and parts.suffix.lower() not in SIDECAR_SUFFIXES


def _beside(path: str, there: set[str]) -> tuple[str, ...]:
    stem = path.removesuffix(PurePosixPath(path).suffix)
    return tuple(suffix for suffix in SIDECAR_SUFFIXES if stem + suffix in there)


# --- lists -------------------------------------------------------------------------------------------------------


def _list_rows(source: str) -> Iterator[SourceFile]:
    """Files that a table or a list of addresses names."""
    rows = read_list(_read_list_file(source), public_url(source) if is_url(source) else source)
    base = (source.rpartition("/")[0] or ("" if source.startswith("/") else ".")) + "/"
    on_web = is_url(source)
    elsewhere = store.is_s3(source) or on_web
    for path, text, origin, licence, attribution, extra, fault in rows.iter_rows():
        path = path or ""
        caption = stripped(text)
        refusal = ("bad_row", fault) if fault else _refuse_path(path, from_elsewhere=elsewhere)
        table = "table" if caption else None
        said = Said(caption, None, table, stripped(origin), stripped(licence), stripped(attribution), extra)
        if refusal is not None:
            yield SourceFile(public_url(path) if is_url(path) else path, "", 0, refusal, said)
        elif is_url(path):
            yield SourceFile(public_url(path), path, 0, None, said, ())
        elif path.startswith(("s3://", "/")):
            yield SourceFile(path, path, 0, None, said)
        elif on_web:
            yield SourceFile(path, joined(source, path), 0, None, said, ())
        else:
            yield SourceFile(path, base + path, 0, None, said)


def _read_list_file(source: str) -> bytes:
    if not is_url(source):
        return store.read_bytes(source)
    with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
        path = Path(scratch) / "list"
        try:
            fetch(source, path, Limits(MAX_LIST_BYTES))
        except DownloadError as error:
            raise KinoflowError(f"The list {public_url(source)!r} cannot be had: {error.args[1]}") from error
        return path.read_bytes()


def _refuse_path(path: str, *, from_elsewhere: bool) -> tuple[str, str] | None:
    if not path.strip() or "\0" in path:
        return "no_path", "The row names no file."
    if is_url(path):
        return None
    if store.is_s3(path):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return None if bucket and key.strip("/") else ("no_path", f"The row names no object: {path!r}.")
    if "://" in path and _SCHEME.match(path):
        return "bad_address", f"{path.partition('://')[0]!r} is no address this program reads; use http(s) or s3."
    if path.startswith("/"):
        sentence = f"A table that lies elsewhere may not name the local file {path!r}; use s3:// or a relative path."
        return ("unsafe_path", sentence) if from_elsewhere else None
    if ".." in path and ".." in PurePosixPath(path).parts:
        return "unsafe_path", f"The path {path!r} leaves the table's folder; write it as an absolute path."
    return None


# --- several at once ---------------------------------------------------------------------------------------------


def _exists(source: str) -> bool:
    return not store.is_s3(source) and not is_url(source) and Path(source).exists()


def _expanded(source: str) -> list[str]:
    """The places that a pattern names."""
    found: list[str] = []
    for place in _expand_braces(source):
        if is_url(place) or not re.search(r"[*?\[]", place):
            found.append(place)
        elif store.is_s3(place):
            root = _fixed_root(place)
            matches = re.compile(translate(place.removeprefix(f"{root}/")).replace(".*", "[^/]*")).match
            found += [f"{root}/{item.key}" for item in store.list_objects(root) if matches(item.key)]
        else:
            root = _fixed_root(place)
            found += sorted(map(str, Path(root).glob(place.removeprefix(f"{root}/"))))
    if not found:
        raise KinoflowError(f"Nothing matches the source {source!r}; check the pattern.")
    return found


def _expand_braces(text: str) -> list[str]:
    """`a{1,2}` and `a{08..11}` written out, as a shell does it."""
    parts: list[list[str]] = []
    position = 0
    for braces in _BRACES.finditer(text):
        first, last, words = braces.groups()
        options = words.split(",") if words is not None else _counted(first, last)
        parts += [[text[position : braces.start()]], options]
        position = braces.end()
    parts.append([text[position:]])
    total = 1
    for options in parts:
        total *= len(options)
    if total > MAX_EXPANDED:
        raise KinoflowError(f"The source {text!r} names more than {MAX_EXPANDED} places; write a table instead.")
    return ["".join(choice) for choice in product(*parts)]


def _counted(first: str, last: str) -> list[str]:
    if abs(int(last) - int(first)) > MAX_EXPANDED:
        raise KinoflowError(f"The range {first}..{last} is longer than {MAX_EXPANDED}; write a table instead.")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(last) >= int(first) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _fixed_root(source: str) -> str:
    """The part of a pattern before its first wildcard, without the last, incomplete name."""
    wild = MAGIC.search(source)
    return (source[: wild.start()] if wild else source).rpartition("/")[0] or "."


def _list_match(place: str, root: str) -> Iterable[SourceFile]:
    """What one match of a pattern holds, named relative to the pattern's fixed part."""
    name = name_of(place) if is_url(place) else place
    if is_table(name) or is_url(place):
        return _list_place(place)
    relative = os.path.relpath(place, root) if not store.is_s3(place) else place.removeprefix(f"{root}/")
    if not store.is_s3(place) and Path(place).is_dir():
        return [file._replace(path=f"{relative}/{file.path}") for file in _list_folder(place)]
    if not _is_input(relative):
        return []
    return [SourceFile(relative, place, sidecars=() if is_archive(name) else None)]
