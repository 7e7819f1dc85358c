"""The format of a packed dataset, both ends: clips in tar shards, with an index to read any of them at random.

A published prefix holds `shards/00000.tar`, … and `index.parquet`. Of a clip a shard holds `<clip_id>.json`, the video
or picture, and `<clip_id>.txt` one after another, as `webdataset` groups them; the index says where each lies. Names,
times and owners in the tar headers are fixed: the same clips give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl

from components import manifest, store, tables
from components.errors import KinoflowError
from components.media import Frames
from components.takedown import taken_down
from components.video import decode_frames

KIND = "packed"
FORMAT_VERSION = 1
INDEX_FILE = "index.parquet"
SHARD_FILE = re.compile(r"shards/\d{5,}\.tar")
MEMBERS = ("json", "media", "text")
"""Columns of the index begin with these; the order is that of the tar."""
IMAGE_SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "ppm": "ppm", "tiff": "tiff"}
VIDEO_SUFFIX = "mp4"
_SUFFIXES = {*IMAGE_SUFFIXES.values(), VIDEO_SUFFIX}
_CLIP_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,79}")

INDEX: dict[str, pl.DataType | type[pl.DataType]] = {
    "clip_id": pl.String,  # sorted
    "outcome": pl.String,  # "packed" | "failed" | "skipped"
    "reason": pl.String,  # slug, null when packed
    "detail": pl.String,
    "method": pl.String,  # "copy" | "encode" | "as_is"; null unless packed, as all below
    "num_frames": pl.Int32,
    "height": pl.Int32,
    "width": pl.Int32,
    "fps": pl.Float64,  # null for pictures
    "shard": pl.Int32,
    "suffix": pl.String,  # of the video or picture
    **{
        f"{member}_{name}": kind
        for member in MEMBERS
        for name, kind in (("offset", pl.Int64), ("size_bytes", pl.Int64), ("sha256", pl.Binary))
    },
}


def shard_name(number: int) -> str:
    """Name of a shard below the prefix."""
    return f"shards/{number:05d}.tar"


def member_name(clip_id: str, suffix: str) -> str:
    """Name of a member of a shard.

    Raises:
        KinoflowError: The id or suffix could lead out of the folder that a shard is unpacked in.
    """
    if not _CLIP_ID.fullmatch(clip_id) or suffix not in {*_SUFFIXES, "json", "txt"}:
        raise KinoflowError(f"The clip {clip_id!r} with suffix {suffix!r} cannot be the name of a file in a shard.")
    return f"{clip_id}.{suffix}"


class ShardFile:
    """One tar shard being written; `add` the members, then `close`.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    @property
    def size_bytes(self) -> int:
        """Written so far."""
        return int(self._tar.offset)

    def add_clip(
        self, clip_id: str, suffix: str, *, document: dict[str, Any], media: Path, text: str
    ) -> dict[str, Any]:
        """Append the three members of a clip; returns their columns of the index.

        Args:
            clip_id: Of the clip.
            suffix: Of the video or picture.
            document: Becomes the JSON member.
            media: File of the video or picture.
            text: Caption.
        """
        written = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
        columns: dict[str, Any] = {"suffix": suffix}
        for member, name, content in (
            ("json", member_name(clip_id, "json"), written),
            ("media", member_name(clip_id, suffix), media),
            ("text", member_name(clip_id, "txt"), text.encode()),
        ):
            columns |= {f"{member}_{key}": value for key, value in self._add(name, content).items()}
        return columns

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()
        self._file.close()

    def _add(self, name: str, content: bytes | Path) -> dict[str, Any]:
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            info = tarfile.TarInfo(name)
            info.size = file.seek(0, io.SEEK_END)
            info.mode = 0o644
            file.seek(0)
            offset = self._tar.offset + tarfile.BLOCKSIZE
            self._tar.addfile(info, file)
        return {"offset": offset, "size_bytes": info.size, "sha256": digest.digest()}


@dataclass(frozen=True)
class PackedClip:
    """One clip as it was packed.

    Attributes:
        clip_id: Of the clip.
        document: The JSON member: caption, source, licence, span, scores, ….
        media: Bytes of the video or picture.
        suffix: "mp4", "jpg", ….
        caption: The text member; empty when there is none.
    """

    clip_id: str
    document: dict[str, Any]
    media: bytes
    suffix: str
    caption: str

    def frames(self) -> Iterator[Frames]:
        """Its frames, uint8 RGB (height, width, 3), decoded one by one."""
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            path = Path(scratch) / f"clip.{self.suffix}"
            path.write_bytes(self.media)
            yield from decode_frames(path)


class PackedClips:
    """Random access to a packed dataset: one range request for each clip, every byte checked.

    Clips that were taken down since they were packed are left out, as are their bytes in the shards: whoever reads
    these in another way (`webdataset`) passes over the keys in `left_out`.

    Args:
        uri: Prefix that `components.pack` published.
        skip: Further clip ids to leave out.
        tombstones: Whether to ask the tombstones beside the source objects; without them whoever reads answers for it.

    Attributes:
        clip_ids: Of the clips that can be read, sorted.
        left_out: Ids of the clips in the shards that cannot.
        digest: Of the manifest.

    Raises:
        ManifestError: Nothing is published there, or the index is damaged.
        KinoflowError: A tombstone cannot be read, or it cannot be told what one means for these clips.
    """

    def __init__(self, uri: str, *, skip: Collection[str] = (), tombstones: bool = True) -> None:
        self.uri = uri
        with tempfile.TemporaryDirectory(prefix="kinoflow-") as scratch:
            published = manifest.fetch(uri, Path(scratch), [INDEX_FILE], kind=KIND)
            index = tables.read(Path(scratch) / INDEX_FILE, INDEX)
        self.digest = published.digest
        gone = taken_down(uri, published).ids if tombstones else frozenset[str]()
        self._index, self.left_out = _without(index.filter(pl.col("outcome") == "packed"), {*skip, *gone})
        self.clip_ids = self._index["clip_id"]

    def __len__(self) -> int:
        """Number of clips that can be read."""
        return len(self._index)

    def number_of(self, clip_id: str) -> int:
        """Place of a clip among `clip_ids`.

        Raises:
            KinoflowError: There is no such clip, or it is left out.
        """
        number = self.clip_ids.search_sorted(clip_id)
        if number == len(self) or self.clip_ids[number] != clip_id:
            raise KinoflowError(f"{self.uri} holds no clip {clip_id!r}, or it was not packed or is to be skipped.")
        return number

    def read(self, clip: int | str) -> PackedClip:
        """One clip, by its place among `clip_ids` or by its id.

        Raises:
            IndexError: There is no such place.
            KinoflowError: There is no such clip, or its bytes are not those that were packed.
        """
        number = self.number_of(clip) if isinstance(clip, str) else clip
        row = self._index.row(number, named=True)
        uri = store.join(self.uri, shard_name(row["shard"]))
        start = row[f"{MEMBERS[0]}_offset"]
        end = row[f"{MEMBERS[-1]}_offset"] + row[f"{MEMBERS[-1]}_size_bytes"]
        data = memoryview(store.read_range(uri, start, end - start))
        document, media, text = (self._member(row, member, data, start, uri) for member in MEMBERS)
        return PackedClip(row["clip_id"], json.loads(document), media, row["suffix"], text.decode())

    def __iter__(self) -> Iterator[PackedClip]:
        """Every clip, in order."""
        return (self.read(number) for number in range(len(self)))

    def skipping(self, skip: Collection[str]) -> Self:
        """The same without these clips; nothing is read again."""
        other = object.__new__(type(self))
        other.uri, other.digest = self.uri, self.digest
        other._index, left_out = _without(self._index, skip)
        other.left_out = self.left_out | left_out
        other.clip_ids = other._index["clip_id"]
        return other

    def _member(self, row: dict[str, Any], member: str, data: memoryview, start: int, uri: str) -> bytes:
        first = row[f"{member}_offset"] - start
        content = bytes(data[first : first + row[f"{member}_size_bytes"]])
        if hashlib.sha256(content).digest() != row[f"{member}_sha256"]:
            raise KinoflowError(
                f"The shard {uri} is damaged: the clip {row['clip_id']} in it does not match its SHA-256; "
                "pack the clips again."
            )
        return content


def _without(index: pl.DataFrame, skip: Collection[str]) -> tuple[pl.DataFrame, frozenset[str]]:
    """Rows of the other clips, and which of them were there."""
    is_out = index["clip_id"].is_in(list(skip))
    return index.filter(~is_out), frozenset(index.filter(is_out)["clip_id"])
