"""Tensors by key in shard files: latents and text features, written once and read by byte ranges.

A folder holds `<kind>/00000.safetensors`, ... and one `locations.safetensors` that says of every key which bytes of
which shard are its tensor, with their type, shape and SHA-256. Its columns are sorted by a hash of the key and
memory-mapped, so looking a key up touches a few pages whatever the number of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_columns
from safetensors.torch import save_file
from torch import Tensor

from components import store
from components.errors import KinoflowError

FORMAT_VERSION = "2"
LOCATIONS_FILE = "locations.safetensors"
METADATA = "kinoflow"
MAX_DIMS = 5
DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names that safetensors gives to types; a row holds the position in this list, so new ones go to its end."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE_CODES = {name: code for code, name in enumerate(DTYPES)}

ROW = np.dtype(
    [
        ("key_high", "<i8"),  # BLAKE2b-128 of the key; rows are sorted by both halves
        ("key_low", "<i8"),
        ("shard", "<i4"),  # position in the list of shards
        ("offset", "<i8"),  # in the shard file, in bytes
        ("size_bytes", "<i8"),
        ("dtype", "u1"),
        ("num_dims", "u1"),
        ("shape", "<i4", (MAX_DIMS,)),  # filled up with zeros
        ("sha256", "u1", (32,)),  # of the tensor's bytes
    ]
)
Rows = NDArray[np.void]
"""Array of `ROW`."""


@dataclass(frozen=True)
class Location:
    """Where one tensor lies and what it is.

    Attributes:
        key: Under which it was asked for.
        uri: Of its shard.
        offset: First byte in the shard.
        size_bytes: Number of bytes.
        dtype: As safetensors names it.
        shape: Of the tensor.
        sha256: Of its bytes.
    """

    key: str
    uri: str
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]
    sha256: bytes

    def tensor(self, data: bytes | memoryview) -> Tensor:
        """The tensor of these bytes, copied.

        Raises:
            KinoflowError: They are not the bytes that were written.
        """
        if len(data) != self.size_bytes or hashlib.sha256(data).digest() != self.sha256:
            raise KinoflowError(
                f"The shard {self.uri} is damaged: {self.key} in it does not match its SHA-256; "
                "delete the folder of that shard and make the bucket output again."
            )
        dtype = DTYPES[self.dtype]
        if not self.size_bytes:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(self.shape)


class ShardWriter:
    """Writes tensors into shards of about `shard_size_bytes`; `close` (or leaving the block) writes the locations.

    Args:
        directory: Folder of the shards, made if missing.
        shard_size_bytes: A shard is closed once it is this large.

    Attributes:
        size_bytes: Of all tensors so far.
    """

    def __init__(self, directory: Path, shard_size_bytes: int = 64 << 20) -> None:
        self.size_bytes = 0
        self._directory = directory
        self._shard_size_bytes = shard_size_bytes
        self._open: dict[str, dict[str, Tensor]] = {}
        self._open_bytes: Counter[str] = Counter()
        self._counts: dict[str, int] = {}
        self._hashes: dict[str, bytes] = {}
        self._rows: list[Rows] = []
        self._shards: list[str] = []

    def add(self, kind: str, key: str, tensor: Tensor) -> None:
        """Store one tensor.

        Args:
            kind: Folder of its shards, for example "latents".
            key: Unique over all kinds.
            tensor: Of at most five dimensions; stored as it is.

        Raises:
            ValueError: The key is already taken, or the tensor's type or shape has no place in the format.
        """
        if key in self._hashes:
            raise ValueError(f"the key {key!r} is already in the shards")
        if tensor.dtype not in _DTYPE_NAMES or tensor.dim() > MAX_DIMS:
            raise ValueError(f"{key!r} is {tensor.dtype} of {tensor.dim()} dimensions; shards hold at most {MAX_DIMS}")
        store.safe_key(kind)
        pending = self._open.setdefault(kind, {})
        pending[key] = tensor.detach().cpu().contiguous()
        self._hashes[key] = hashlib.sha256(_bytes_of(pending[key])).digest()
        self.size_bytes += tensor.nbytes
        self._open_bytes[kind] += tensor.nbytes
        if self._open_bytes[kind] >= self._shard_size_bytes:
            self._write_shard(kind)

    def close(self) -> None:
        """Write what is pending and the locations."""
        for kind in [kind for kind, pending in self._open.items() if pending]:
            self._write_shard(kind)
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, ROW)
        write_locations(self._directory / LOCATIONS_FILE, rows, self._shards)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, unless the block failed: then there are no locations and so nothing to read."""
        if error is None:
            self.close()

    def _write_shard(self, kind: str) -> None:
        count = self._counts.get(kind, 0)
        name = f"{kind}/{count:05d}.safetensors"
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = self._open.pop(kind)
        del self._open_bytes[kind]
        save_file(tensors, path, metadata={METADATA: json.dumps({"format_version": FORMAT_VERSION})})
        entries, _, start = _read_header(path)
        rows = np.zeros(len(tensors), ROW)
        rows["key_high"], rows["key_low"] = hash_keys(list(tensors))
        rows["shard"] = len(self._shards)
        for row, key in zip(rows, tensors, strict=True):
            entry = entries[key]
            first, end = entry["data_offsets"]
            shape = entry["shape"]
            row["offset"], row["size_bytes"] = start + first, end - first
            row["dtype"], row["num_dims"] = _DTYPE_CODES[entry["dtype"]], len(shape)
            row["shape"][: len(shape)] = shape
            row["sha256"] = np.frombuffer(self._hashes[key], np.uint8)
        self._rows.append(rows)
        self._shards.append(name)
        self._counts[kind] = count + 1


class ShardIndex:
    """The locations of a folder of shards, or of tensors from many folders; memory-mapped, safe between threads.

    Args:
        path: A file that `write_locations` made.
        root: URI prefix that the names of the shards are relative to.

    Raises:
        KinoflowError: It is missing, damaged, or of another format.
    """

    def __init__(self, path: Path, root: str) -> None:
        self.root = root
        try:
            entries, metadata, start = _read_header(path)
            document = json.loads(metadata[METADATA])
            version = document["format_version"]
            self._columns: dict[str, NDArray[Any]] = {
                str(name): _mapped(path, entries[str(name)], start, ROW[str(name)]) for name in ROW.names or ()
            }
            self.shards: tuple[str, ...] = tuple(document["shards"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KinoflowError(
                f"{path} is not a readable index of shards ({error}); make the bucket output again."
            ) from error
        if version != FORMAT_VERSION:
            raise KinoflowError(f"{path} has format {version}, this version reads {FORMAT_VERSION}; bucket again.")

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._columns["key_high"])

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Row of each key, -1 where there is none."""
        high, low = hash_keys(keys)
        stored_high, stored_low = self._columns["key_high"], self._columns["key_low"]
        found = np.searchsorted(stored_high, high).astype(np.int64)
        if not len(self):
            return np.full_like(found, -1)
        at = np.minimum(found, len(self) - 1)
        same_high = stored_high[at] == high
        exact = same_high & (stored_low[at] == low)
        for index in np.flatnonzero(same_high & ~exact):  # next to impossible: half of two hashes is the same
            run = np.flatnonzero(stored_high[at[index] :] == high[index]) + at[index]
            for row in run[stored_low[run] == low[index]]:
                at[index], exact[index] = row, True
        return np.where(exact, at, -1)

    def rows(self, numbers: NDArray[np.int64]) -> Rows:
        """A copy of these rows."""
        rows = np.empty(len(numbers), ROW)
        for name, column in self._columns.items():
            rows[name] = column[numbers]
        return rows

    def locations(self, keys: Sequence[str]) -> list[Location]:
        """Where the tensors of these keys lie.

        Raises:
            KinoflowError: There is no such key.
        """
        numbers = self.find(keys)
        if (numbers < 0).any():
            missing = keys[int(np.argmin(numbers))]
            raise KinoflowError(
                f"{self.root} holds no tensor {missing!r}: plan and shards are not of the same bucket output."
            )
        rows = self.rows(numbers)
        columns = (rows[name].tolist() for name in ("shard", "offset", "size_bytes", "dtype", "num_dims", "shape"))
        digests = (digest.tobytes() for digest in rows["sha256"])
        return [self._location(key, *values) for key, *values in zip(keys, *columns, digests, strict=True)]

    def ends(self) -> dict[str, int]:
        """Size in bytes that each shard must have at least."""
        sizes = np.zeros(len(self.shards), np.int64)
        np.maximum.at(sizes, self._columns["shard"], self._columns["offset"] + self._columns["size_bytes"])
        return dict(zip(self.shards, sizes.tolist(), strict=True))

    @cached_property
    def _uris(self) -> list[str]:
        return [store.join(self.root, store.safe_key(shard)) for shard in self.shards]

    def _location(
        self, key: str, shard: int, offset: int, size: int, dtype: int, num_dims: int, shape: list[int], sha256: bytes
    ) -> Location:
        sides = tuple(shape[:num_dims])
        return Location(key, self._uris[shard], offset, size, dtype_name(dtype), sides, sha256)


def write_locations(path: Path, rows: Rows, shards: Sequence[str]) -> None:
    """Write an index: the rows sorted by their keys; the same rows give the same bytes.

    Raises:
        ValueError: Two rows have the same key.
    """
    rows = rows[np.lexsort((rows["key_low"], rows["key_high"]))]
    same = (np.diff(rows["key_high"]) == 0) & (np.diff(rows["key_low"]) == 0)
    if same.any():
        raise ValueError("two rows of an index have the same key")
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"format_version": FORMAT_VERSION, "shards": list(shards)}
    columns = {str(name): np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
    save_columns(columns, path, metadata={METADATA: json.dumps(document)})


def hash_keys(keys: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two halves of each key's BLAKE2b-128, (n,) each."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
    halves = np.frombuffer(digests, "<i8").reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()


def dtype_name(code: int) -> str:
    """Name of the type that a row's `dtype` stands for."""
    return list(DTYPES)[code]


def _bytes_of(tensor: Tensor) -> bytes:
    data: bytes = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Entries, metadata and first data byte of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise ValueError("it is cut short or no safetensors file")
        header = json.loads(file.read(size))
    metadata = header.pop("__metadata__", {})
    return header, metadata, 8 + size


def _mapped(path: Path, entry: Mapping[str, Any], start: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """One column, memory-mapped."""
    shape = tuple(entry["shape"])
    first, end = entry["data_offsets"]
    if end - first != int(np.prod(shape)) * kind.base.itemsize or shape[1:] != kind.shape:
        raise ValueError("its columns are not those of this format")
    if not shape[0]:
        return np.empty(shape, kind.base)
    return np.memmap(path, kind.base, mode="r", offset=start + first, shape=shape)
