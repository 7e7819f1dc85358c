"""The shards of one packing, one after another: each is recorded when it is whole, so that a kill costs one at most."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from components import manifest, packed, store, tables
from components.manifest import FileEntry
from components.pack.clips import Piece, Row
from components.pack.export import document_of
from components.pack_config import PackConfig

RECORDS = "parts"
"""Below the prefix while shards are made: the rows of the index that each finished shard stands for."""
_RECORD = re.compile(r"parts/([0-9a-f]{16})/(\d{5,})\.parquet")


class ShardSequence:
    """Shards below one prefix, filled in order.

    Args:
        out: URI prefix.
        config: How the clips are packed.
        inputs: Digests of what they are made from; with the config and the code they say which shards go together.
    """

    def __init__(self, out: str, config: PackConfig, inputs: Mapping[str, str]) -> None:
        self._out, self._shard_size_bytes = out, config.shard_size_bytes
        made_from = {"config": manifest.digest_of(config), "code": manifest.code_version(), **inputs}
        self._fingerprint = manifest.digest_of(made_from)[:16]
        self._entries: list[FileEntry] = []
        self._tables: list[pl.DataFrame] = []
        self._rows: list[dict[str, Any]] = []
        self._scratch = Path()
        self._shard: packed.ShardFile | None = None

    def __len__(self) -> int:
        """Finished shards."""
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Of all finished shards."""
        return sum(entry.size_bytes for entry in self._entries)

    def resume(self) -> str:
        """Take over the shards that an earlier, killed packing of the same clips has finished.

        Returns:
            Id of the last clip they stand for; empty when there is none.
        """
        sizes = {item.key: item.size_bytes for item in store.list_objects(self._out)}
        while (name := self._record(len(self))) in sizes:
            data = store.read_bytes(store.join(self._out, name))
            entry = FileEntry.model_validate_json(pl.read_parquet_metadata(BytesIO(data))["shard"])
            if sizes.get(packed.shard_name(len(self))) != entry.size_bytes:
                break
            self._entries.append(entry)
            self._tables.append(pl.read_parquet(BytesIO(data)))
        return str(self._tables[-1]["clip_id"].max()) if self._tables else ""

    @contextmanager
    def writing(self, scratch: Path) -> Iterator[None]:
        """Clips may be added while the body runs; what was published at the prefix is no more."""
        self._scratch = scratch
        self._announce()
        store.delete(store.join(self._out, manifest.NAME))
        yield
        self._finish_shard()

    def add(self, clip: Row, piece: Piece) -> None:
        """The next clip: into the open shard, which is finished when it is large enough.

        Args:
            clip: Its row of the clips table.
            piece: What became of it; the file is removed.
        """
        columns = {"clip_id": piece.clip_id, **piece.columns}
        if piece.path is not None:
            if self._shard is None:
                self._shard = packed.ShardFile(self._scratch / "shard.tar")
            columns |= {"shard": len(self)} | self._shard.add_clip(
                piece.clip_id,
                piece.columns["suffix"],
                document=document_of(clip, piece.columns),
                media=piece.path,
                text=clip["caption"] or "",
            )
            piece.path.unlink()
        self._rows.append(columns)
        if self._shard is not None and self._shard.size_bytes >= self._shard_size_bytes:
            self._finish_shard()

    def table(self) -> pl.DataFrame:
        """Rows of the index for all clips that were added or taken over."""
        return pl.concat([*self._tables, tables.frame(self._rows, packed.INDEX)])

    def entries(self) -> dict[str, FileEntry]:
        """The shards as a manifest lists them."""
        return {packed.shard_name(number): entry for number, entry in enumerate(self._entries)}

    def tidy(self) -> None:
        """Remove the records, and shards of an earlier dataset at the same place that this one has no use for."""
        for item in store.list_objects(self._out):
            is_shard = packed.SHARD_FILE.fullmatch(item.key) and item.key not in self.entries()
            if is_shard or _RECORD.fullmatch(item.key):
                store.delete(store.join(self._out, item.key))
        store.remove_empty_folders(store.join(self._out, RECORDS))

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.close()
        self._announce()
        sent = store.upload(self._shard.path, store.join(self._out, packed.shard_name(len(self))))
        self._shard.path.unlink()
        self._shard = None
        entry = FileEntry(size_bytes=sent.size_bytes, sha256=sent.sha256)
        rows = tables.frame(self._rows, packed.INDEX)
        record = BytesIO()
        rows.write_parquet(record, metadata={"shard": entry.model_dump_json()})
        store.write_bytes(store.join(self._out, self._record(len(self))), record.getvalue())
        self._entries.append(entry)
        self._tables.append(rows)
        self._rows = []

    def _announce(self) -> None:
        """Say which files are of this packing, should nobody finish it."""
        numbers = range(len(self) + 1)
        names = [name for number in numbers for name in (packed.shard_name(number), self._record(number))]
        manifest.announce(self._out, packed.KIND, names)

    def _record(self, number: int) -> str:
        return f"{RECORDS}/{self._fingerprint}/{number:05d}.parquet"
