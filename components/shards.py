"""Tensors by key in shard files: latents and text features, written once and read at random by training.

A folder holds `<kind>/00000.safetensors`, ... and one `index.parquet` that says which shard holds which key. Shards
are memory-mapped, so reading one tensor touches only its own bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from components import store, tables
from components.errors import KinoflowError

FORMAT_VERSION = "1"
INDEX_FILE = "index.parquet"

INDEX: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "key": pl.String,
    "kind": pl.String,
    "shard": pl.String,  # file relative to the folder
    "shape": pl.List(pl.Int64),
}


class ShardWriter:
    """Writes tensors into shards of about `shard_size_bytes`; `close` (or leaving the block) writes the index.

    Args:
        directory: folder of the shards, made if missing.
        shard_size_bytes: a shard is closed once it is this large.
    """

    def __init__(self, directory: Path, shard_size_bytes: int = 64 << 20) -> None:
        self._directory = directory
        self._shard_size_bytes = shard_size_bytes
        self._open: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, int] = {}
        self._rows: dict[str, dict[str, object]] = {}

    def add(self, kind: str, key: str, tensor: Tensor) -> None:
        """Store one tensor.

        Args:
            kind: folder of its shards, for example "latents".
            key: unique over all kinds.
            tensor: of any shape; stored as it is.

        Raises:
            ValueError: the key is already taken.
        """
        if key in self._rows:
            raise ValueError(f"the key {key!r} is already in the shards")
        pending = self._open.setdefault(kind, {})
        pending[key] = tensor.detach().cpu().contiguous()
        shard = f"{store.safe_key(kind)}/{self._counts.get(kind, 0):05d}.safetensors"
        self._rows[key] = {"key": key, "kind": kind, "shard": shard, "shape": list(tensor.shape)}
        if sum(t.nbytes for t in pending.values()) >= self._shard_size_bytes:
            self._write_shard(kind)

    def close(self) -> None:
        """Write what is pending and the index."""
        for kind in [kind for kind, pending in self._open.items() if pending]:
            self._write_shard(kind)
        table = tables.frame(list(self._rows.values()), dict(INDEX)).sort("key")
        tables.write(table, self._directory / INDEX_FILE, dict(INDEX))

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, unless the block failed: then there is no index and so nothing to read."""
        if error is None:
            self.close()

    def _write_shard(self, kind: str) -> None:
        count = self._counts.get(kind, 0)
        path = self._directory / kind / f"{count:05d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._open.pop(kind), path, metadata={"format_version": FORMAT_VERSION})
        self._counts[kind] = count + 1


class ShardReader:
    """Reads tensors by key; safe to share between threads.

    Args:
        directory: folder that a `ShardWriter` filled.
        max_open_files: shards kept mapped; the one unused for longest is closed first.

    Raises:
        KinoflowError: there is no readable index.
    """

    def __init__(self, directory: Path, max_open_files: int = 32) -> None:
        self._directory = directory
        self._max_open_files = max_open_files
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        index = tables.read(directory / INDEX_FILE, dict(INDEX))
        self._shards: dict[str, str] = dict(zip(index["key"], index["shard"], strict=True))
        self._shapes: dict[str, tuple[int, ...]] = {
            key: tuple(shape) for key, shape in zip(index["key"], index["shape"].to_list(), strict=True)
        }

    @property
    def keys(self) -> frozenset[str]:
        """Every key, of all kinds."""
        return frozenset(self._shards)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the index alone."""
        self._shard_of(key)
        return self._shapes[key]

    def get(self, key: str) -> Tensor:
        """The tensor stored under `key`, copied out of the mapped shard.

        Raises:
            KinoflowError: no such key, or its shard is missing or damaged.
        """
        shard = self._shard_of(key)
        with self._lock:
            try:
                tensor: Tensor = self._mapped(shard).get_tensor(key).clone()
            except (SafetensorError, OSError) as error:
                raise KinoflowError(
                    f"The shard {self._directory / shard} cannot be read ({error}); make the bucket output again."
                ) from error
        return tensor

    def close(self) -> None:
        """Close every mapped shard; a later `get` opens what it needs."""
        with self._lock:
            self._open.clear()

    def _shard_of(self, key: str) -> str:
        if key not in self._shards:
            raise KinoflowError(
                f"{self._directory} holds no tensor {key!r}: plan and shards are not of the same bucket output."
            )
        return self._shards[key]

    def _mapped(self, shard: str) -> Any:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= self._max_open_files:
            self._open.popitem(last=False)
        handle: Any = safe_open(self._directory / store.safe_key(shard), framework="pt")
        version = (handle.metadata() or {}).get("format_version")
        if version != FORMAT_VERSION:
            raise KinoflowError(
                f"The shard {self._directory / shard} has format {version}, this version reads {FORMAT_VERSION}."
            )
        self._open[shard] = handle
        return handle
