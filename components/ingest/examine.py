"""One input at a time: read, hashed, probed and stored; whatever is wrong with it becomes its row's reason."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from components import manifest, store
from components.config import IngestConfig
from components.ingest.archives import Member, is_archive, list_members, unpacked
from components.ingest.downloads import DownloadError, Limits, fetch, is_url
from components.ingest.known import UNVERSIONED, Known
from components.ingest.sidecars import Said, cut, read_beside
from components.ingest.sources import SourceFile, version_in_store
from components.media import UnreadableMedia, VideoInfo
from components.video import probe

logger = logging.getLogger(__name__)

PASSING_REASONS = frozenset({"missing_file", "unreadable", "download_failed", "bad_address", "web_page"})
"""Of files that may be there, and whole, the next time."""

Row = dict[str, object]


class _RejectionError(Exception):
    """Reason slug and sentence of a file that cannot be taken."""


class _Unchanged(Exception):  # noqa: N818  # good news
    """The server says that the file is the known one."""


class Uploads:
    """Puts objects into the store, each content once however many threads meet it."""

    def __init__(self, objects: str) -> None:
        self._objects = objects
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def put(self, path: Path, key: str) -> None:
        """Store a file under its key unless it is there."""
        with self._lock:
            if key in self._claimed:
                return
            self._claimed.add(key)
        uri = store.join(self._objects, key)
        if not store.exists(uri):
            store.upload(path, uri)

    def are_there(self, rows: list[Row]) -> bool:
        """Whether the objects of all rows still exist."""
        keys = {str(row["object_key"]) for row in rows if row["object_key"] is not None}
        return all(store.exists(store.join(self._objects, key)) for key in keys)


class Examiner:
    """Makes rows of the `videos` table from inputs; threads may share it.

    Args:
        config: limits, and what is recorded when nobody says otherwise.
        uploads: where objects go.
        known: what earlier ingestions found out.
        members: works on the members of archives.
    """

    def __init__(self, config: IngestConfig, uploads: Uploads, known: Known, members: ThreadPoolExecutor) -> None:
        self.config, self.uploads, self.known, self.members = config, uploads, known, members
        self.limits = Limits(config.max_file_bytes, config.download_attempts, config.download_timeout_s)

    def rows(self, file: SourceFile) -> list[Row]:
        """The row of a file, or those of all members of an archive."""
        found = [{}] if file.refusal is not None else self._facts(file)
        return [self._complete(file, row) for row in found]

    def _facts(self, file: SourceFile) -> list[Row]:
        """What the bytes say, from an earlier look if they are the same."""
        try:
            version = _version(file)
            before = self.known.version(file.uri)
            rows = self.known.rows(file.uri) if before is not None else []
            if before is not None and not self.uploads.are_there(rows):
                before = None
            if before is not None and (before == version or (is_url(file.uri) and before == UNVERSIONED)):
                return rows
            try:
                with self._local_copy(file, before) as (path, named):
                    examine = self._examine_archive if is_archive(file.name) else self._examine_file
                    found = examine(file, path)
            except _Unchanged:
                return rows
            version = named if is_url(file.uri) else version if version == _version(file) else None
        except _RejectionError as rejected:
            return [_rejection(*rejected.args)]
        if version is not None and not any(row.get("reason") in PASSING_REASONS for row in found):
            self.known.add(file.uri, version, found)
        return found

    @contextmanager
    def _local_copy(self, file: SourceFile, known: str | None) -> Iterator[tuple[Path, str | None]]:
        """The file on this machine, and what its server calls this version."""
        if not store.is_s3(file.uri) and not is_url(file.uri):
            yield Path(file.uri), None
            return
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            path = Path(scratch) / f"file{_suffix(file.name)}"
            if store.is_s3(file.uri):
                _download_object(file, path, self.config.max_file_bytes)
                yield path, None
                return
            try:
                version = fetch(file.uri, path, self.limits, known)
            except DownloadError as error:
                raise _RejectionError(*error.args) from error
            if version is None:
                raise _Unchanged
            yield path, version or UNVERSIONED

    def _examine_file(self, file: SourceFile, path: Path) -> list[Row]:
        return [self._examine(path, file.name)]

    def _examine(self, path: Path, name: str) -> Row:
        row: Row = {}
        try:
            row |= _content(path, self.config.max_file_bytes)
            info = _probe(path)
            key = object_key(str(row["content_sha256"]), name)
            self.uploads.put(path, key)
        except _RejectionError as rejected:
            return row | _rejection(*rejected.args)
        return row | _description(info) | {"object_key": key, "outcome": "ingested"}

    def _examine_archive(self, file: SourceFile, path: Path) -> list[Row]:
        """Rows of all members, and one for the archive itself where it is damaged or holds nothing."""
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            try:
                _content(path, self.config.max_file_bytes, hashed=False)
                plain = unpacked(path, Path(scratch), self.config.max_file_bytes)
                members, damage = list_members(plain, self.config.max_file_bytes)
            except OSError as error:
                raise _RejectionError("unreadable", f"The archive could not be read: {error.strerror}.") from error
            except ValueError as error:
                return [_rejection("too_large", f"The archive is not looked into: {error}.")]
            rows = list(self.members.map(lambda member: self._examine_member(file, plain, member), members))
        if damage is not None:
            rows.append(_rejection("damaged_archive", f"The archive breaks off {damage}."))
        elif not rows:
            rows.append(_rejection("empty_archive", "The archive holds no files."))
        return rows

    def _examine_member(self, file: SourceFile, archive: Path, member: Member) -> Row:
        row: Row = {
            "path": printable(f"{file.path}/{member.name}"),
            "source_id": source_id(file.path, file.occurrence, member.name, member.occurrence),
        } | _said_columns(member.said)
        if member.refusal is not None:
            return row | _rejection(*member.refusal)
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            path = Path(scratch) / f"file{_suffix(member.name)}"
            member.copy(archive, path)
            return row | self._examine(path, member.name)

    def _complete(self, file: SourceFile, facts: Row) -> Row:
        """The facts with name, captions and origin: these are looked at every time."""
        row: Row = {"path": printable(file.path), "source_id": source_id(file.path, file.occurrence)}
        row |= {name: value for name, value in facts.items() if value is not None}
        if file.refusal is not None:
            row |= _rejection(*file.refusal)
        said = Said(*(_text(facts.get(column)) for column in SAID_COLUMNS.values())).over(self._said_outside(file))
        if row["outcome"] == "ingested":
            said = cut(said, self.config.max_caption_chars)
        else:
            said = said._replace(caption=None, shots=None, origin=None, note=None)
        defaults = Said(
            source=self.config.source_name, licence=self.config.licence, attribution=self.config.attribution
        )
        return row | _said_columns(said.over(defaults))

    @staticmethod
    def _said_outside(file: SourceFile) -> Said:
        """What the list says, and the sidecars about what it leaves open; of an archive, nothing about its members."""
        if is_archive(file.name):
            return file.said._replace(caption=None, shots=None, origin=None)
        if file.refusal is not None or file.sidecars == ():
            return file.said
        if file.said.caption is None:
            return file.said.over(read_beside(file.uri, file.sidecars))
        if None in (file.said.source, file.said.licence, file.said.attribution):
            return file.said.over(read_beside(file.uri, (".json",)))
        return file.said


SAID_COLUMNS = {
    "caption": "caption", "shots": "caption_shots", "origin": "caption_origin", "source": "source",
    "licence": "licence", "attribution": "attribution", "extra": "extra", "note": "caption_note",
}  # fmt: skip
"""The table's column for each thing that is said about a file."""


def _said_columns(said: Said) -> Row:
    return {SAID_COLUMNS[name]: value for name, value in said._asdict().items()}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _version(file: SourceFile) -> str | None:
    """The version of a file's bytes; None when only its server can tell."""
    try:
        if is_url(file.uri):
            return None
        if store.is_s3(file.uri):
            return file.version or version_in_store(file.uri)
        if not Path(file.uri).is_file():
            kind = "a link to a folder" if Path(file.uri).is_dir() else "not a regular file"
            if Path(file.uri).exists():
                raise _RejectionError("not_media", f"{printable(file.path)!r} is {kind}.")
        stat = Path(file.uri).stat()
    except store.ObjectMissing as error:
        raise _RejectionError("missing_file", f"There is no object {file.path!r}.") from error
    except store.Refused as error:
        raise _RejectionError("unreadable", str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _RejectionError("missing_file", f"There is no file {printable(file.path)!r}.") from error
    except OSError as error:
        raise _RejectionError("unreadable", f"The file could not be looked at: {error.strerror}.") from error
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_dev} {stat.st_ino}"


def _download_object(file: SourceFile, path: Path, max_bytes: int) -> None:
    size_bytes = int((file.version or version_in_store(file.uri)).split(" ")[0])
    if size_bytes > max_bytes:
        raise _too_large(max_bytes)
    try:
        store.download(file.uri, path)
    except store.ObjectMissing as error:
        raise _RejectionError("missing_file", f"There is no object {file.path!r}.") from error
    except store.Refused as error:
        raise _RejectionError("unreadable", str(error)) from error


def _too_large(max_bytes: int) -> _RejectionError:
    return _RejectionError("too_large", f"The file is larger than {max_bytes} bytes (max_file_bytes).")


def _content(path: Path, max_bytes: int, *, hashed: bool = True) -> Row:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise _too_large(max_bytes)
        return {"size_bytes": size_bytes, "content_sha256": manifest.sha256_file(path) if hashed else None}
    except OSError as error:
        raise _RejectionError("unreadable", f"The file could not be read: {error.strerror}.") from error


def _probe(path: Path) -> VideoInfo:
    try:
        return probe(path)
    except UnreadableMedia as error:
        raise _RejectionError(error.reason, f"{error.detail[:1].upper()}{error.detail[1:]}.") from error
    except Exception as error:  # a decoder may fail in any way on hostile bytes: still one row, not the end
        logger.warning("probing %s failed: %r", path, error)
        raise _RejectionError("unreadable", f"The decoder failed ({type(error).__name__}).") from error


def _description(info: VideoInfo) -> Row:
    return {
        "media": info.media,
        "container": info.container,
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "width": info.width,
        "height": info.height,
        "rotation_deg": info.rotation_deg,
        "fps": info.fps,
        "num_frames_header": info.num_frames_header,
        "duration_s": info.duration_s,
    }


def _rejection(reason: str, detail: str) -> Row:
    return {"outcome": "rejected", "reason": reason, "detail": printable(detail)}


def object_key(content_sha256: str, path: str) -> str:
    """Key of an object below the objects prefix: `ab/abcd….mp4`; of the name only a plain suffix is kept."""
    return f"{content_sha256[:2]}/{content_sha256}{_suffix(path)}"


def _suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def source_id(path: str, occurrence: int = 0, member: str | None = None, member_occurrence: int = 0) -> str:
    """SHA-256 (16 hex digits) of where a row is in its source; a plain file's is that of its path."""
    name = path.encode("utf-8", "surrogateescape")
    if occurrence or member is not None or b"\0" in name:
        inside = None if member is None else [member.encode("utf-8", "surrogateescape").hex(), member_occurrence]
        name = b"\0" + json.dumps([name.hex(), occurrence, inside]).encode()
    return hashlib.sha256(name).hexdigest()[:16]


def printable(text: str) -> str:
    """Names that are not UTF-8 reach Python as lone surrogates, which no table can hold."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
