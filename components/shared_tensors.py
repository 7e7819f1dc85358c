"""What an encoder made of clips and captions, shared by all stages and runs: encoded once, found again by key.

Below a root there is one folder for each encoder, named by what decides a tensor (the encoder's weights and the code
around them), and in it parts: published prefixes of shards (`components.shards`). A part never changes, its name is
never used twice, and it becomes visible at once; so runs may add to a root at the same time without a lock. If two
of them encode the same thing, the older part is read.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from components import manifest, store, tables
from components.errors import KinoflowError
from components.manifest import Manifest, ManifestError
from components.shards import (
    LOCATIONS_FILE,
    ROW,
    Rows,
    ShardIndex,
    ShardWriter,
    dtype_name,
    hash_keys,
    write_locations,
)

logger = logging.getLogger(__name__)

PART_KIND = "tensors"
LOCATIONS_KIND = "locations"
LOCATIONS_FOLDER = "locations"
INDEX_FILE = "index.parquet"
ANNOTATION = "locations"
"""Of a dataset's manifest: URI of the prefix that says where its tensors lie."""
PART_SIZE_BYTES = 1 << 30
"""A part is published once it is this large: so much work is lost at most when encoding is interrupted."""

INDEX: dict[str, pl.DataType | type[pl.DataType]] = {
    "key": pl.String,
    "kind": pl.String,
    "dtype": pl.String,
    "shape": pl.List(pl.Int32),
    "sha256": pl.String,  # of the tensor's bytes
}
"""What a dataset holds, whichever part it lies in: this decides the dataset's digest."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a dataset.

    Attributes:
        key: What plans call it.
        shared_key: What it is called in the parts; a function of content alone.
        kind: For example "latents".
    """

    key: str
    shared_key: str
    kind: str


class SharedTensors:
    """The tensors that one encoder made so far.

    Args:
        root: URI prefix of all encoders' tensors.
        encoder: Digest of everything that decides a tensor besides what its key names.
        scratch: Local folder for copies of the parts' indices.
    """

    def __init__(self, root: str, encoder: str, scratch: Path) -> None:
        self.root, self.encoder = root, encoder
        self._scratch = scratch
        self._parts: dict[str, ShardIndex] = {}
        sizes = {item.key: item.size_bytes for item in store.list_objects(store.join(root, encoder))}
        for name in sorted(key.split("/")[0] for key in sizes if key.endswith(f"/{manifest.NAME}")):
            self._open(name, sizes)

    def has(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) whether each key is in some part."""
        found = np.zeros(len(keys), np.bool_)
        for part in self._parts.values():
            found |= part.find(keys) >= 0
        return found

    def rows(self, keys: Sequence[str]) -> tuple[Rows, list[str]]:
        """Rows of these keys and the shards they count in, relative to the root.

        Raises:
            KinoflowError: A key is in no part.
        """
        rows, shards = np.zeros(len(keys), ROW), list[str]()
        lacking = np.ones(len(keys), np.bool_)
        for name, part in self._parts.items():
            numbers = part.find(keys)
            here = np.flatnonzero((numbers >= 0) & lacking)
            rows[here] = part.rows(numbers[here])
            rows["shard"][here] += len(shards)
            shards += [f"{self.encoder}/{name}/{shard}" for shard in part.shards]
            lacking[here] = False
        if lacking.any():
            raise self._lacks(keys[int(np.argmax(lacking))])
        return rows, shards

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors of these keys, one request each: for a few small ones.

        Raises:
            KinoflowError: A key is in no part, or its shard is missing or damaged.
        """
        tensors = []
        for key in keys:
            part = next((part for part in self._parts.values() if part.find([key])[0] >= 0), None)
            if part is None:
                raise self._lacks(key)
            location = part.locations([key])[0]
            tensors.append(location.tensor(store.read_range(location.uri, location.offset, location.size_bytes)))
        return tensors

    @contextmanager
    def writer(self, shard_size_bytes: int, part_size_bytes: int = PART_SIZE_BYTES) -> Iterator[PartWriter]:
        """Add tensors; what the body adds is found afterwards. Nothing is written when it adds nothing."""
        writer = PartWriter(store.join(self.root, self.encoder), self.encoder, shard_size_bytes, part_size_bytes)
        with writer.publishing():
            yield writer
        sizes = {item.key: item.size_bytes for item in store.list_objects(store.join(self.root, self.encoder))}
        for name in writer.published:
            self._open(name, sizes)

    def _lacks(self, key: str) -> KinoflowError:
        return KinoflowError(f"{store.join(self.root, self.encoder)} holds no tensor {key!r}; bucket again.")

    def _open(self, name: str, sizes: dict[str, int]) -> None:
        """Take a part into account if it is whole; one that is not is made anew elsewhere."""
        uri = store.join(self.root, self.encoder, name)
        folder = self._scratch / self.encoder / name
        try:
            published = manifest.fetch(uri, folder, [LOCATIONS_FILE], kind=PART_KIND)
            lost = [n for n, entry in published.files.items() if sizes.get(f"{name}/{n}") != entry.size_bytes]
            if lost:
                raise ManifestError(f"{store.join(uri, lost[0])} is missing or has another size than was published.")
            self._parts[name] = ShardIndex(folder / LOCATIONS_FILE, uri)
        except KinoflowError as error:
            logger.warning("%s What it held is encoded again.", error)


class PartWriter:
    """Puts tensors into parts of one encoder; see `SharedTensors.writer`.

    Attributes:
        published: Names of the parts that are complete.
    """

    def __init__(self, uri: str, encoder: str, shard_size_bytes: int, part_size_bytes: int) -> None:
        self.published: list[str] = []
        self._uri, self._encoder = uri, encoder
        self._shard_size_bytes, self._part_size_bytes = shard_size_bytes, part_size_bytes
        self._part = ExitStack()
        self._name = ""
        self._shards: ShardWriter | None = None

    def add(self, kind: str, key: str, tensor: Tensor) -> None:
        """Store one tensor; see `ShardWriter.add`."""
        if self._shards is None:
            self._shards = self._begin()
        self._shards.add(kind, key, tensor)
        if self._shards.size_bytes >= self._part_size_bytes:
            self._end()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish the last part when the body ends; when it fails, only the parts that were full stay."""
        with self._part:
            yield
            self._end()

    def _begin(self) -> ShardWriter:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._name = f"{now}-{secrets.token_hex(4)}"
        publish = manifest.publish(
            store.join(self._uri, self._name),
            PART_KIND,
            config={"shard_size_bytes": self._shard_size_bytes},
            inputs={"encoder": self._encoder},
        )
        publication = self._part.enter_context(publish)
        return self._part.enter_context(ShardWriter(publication.directory, self._shard_size_bytes))

    def _end(self) -> None:
        if self._shards is not None:
            self._part.close()
            self.published.append(self._name)
            self._shards = None


def write_index(path: Path, entries: Sequence[Entry], rows: Rows) -> None:
    """Write a dataset's own index of its tensors, without where they lie."""
    table = pl.DataFrame(
        {
            "key": [entry.key for entry in entries],
            "kind": [entry.kind for entry in entries],
            "dtype": [dtype_name(int(code)) for code in rows["dtype"]],
            "shape": [row["shape"][: int(row["num_dims"])].tolist() for row in rows],
            "sha256": [digest.tobytes().hex() for digest in rows["sha256"]],
        },
        schema=INDEX,
    )
    tables.write(table.sort("key"), path, INDEX)


def publish_locations(
    out: str, root: str, entries: Sequence[Entry], rows: Rows, shards: Sequence[str], index: Path
) -> str:
    """Publish where the tensors of a dataset lie, apart from it: it may change while the dataset stays the same.

    Args:
        out: URI of the dataset.
        root: URI prefix of the shared tensors.
        entries: What the dataset holds.
        rows: Their rows.
        shards: Names of the shards, relative to the root.
        index: The dataset's own index, which these locations belong to.

    Returns:
        URI of the published prefix, to be put into the dataset's annotations.
    """
    uri = store.join(root, LOCATIONS_FOLDER, manifest.digest_of({"dataset": out})[:16])
    rows = rows.copy()
    rows["key_high"], rows["key_low"] = hash_keys([entry.key for entry in entries])
    used, rows["shard"] = np.unique(rows["shard"], return_inverse=True)
    named = [shards[int(number)] for number in used]
    inputs = {"index": manifest.sha256_file(index)}
    with manifest.publish(uri, LOCATIONS_KIND, config={}, inputs=inputs) as publication:
        write_locations(publication.directory / LOCATIONS_FILE, rows, named)
        publication.annotations.update({"root": root, "dataset": out})
    return uri


def open_index(data: str, scratch: Path) -> ShardIndex:
    """Where the tensors of a dataset, or of any published prefix that holds its own shards, lie.

    Args:
        data: URI of the prefix.
        scratch: Local folder for a copy of the locations.

    Raises:
        KinoflowError: It does not say, or what it says is damaged or belongs to another dataset.
    """
    dataset = manifest.load(data)
    if LOCATIONS_FILE in dataset.files:
        manifest.fetch(data, scratch, [LOCATIONS_FILE])
        return ShardIndex(scratch / LOCATIONS_FILE, data)
    published = _locations_of(dataset, data, scratch)
    return ShardIndex(scratch / LOCATIONS_FILE, published.annotations["root"])


def is_readable(data: str, dataset: Manifest, root: str, scratch: Path) -> bool:
    """Whether every tensor of a dataset is still where its locations say, below that root."""
    try:
        published = _locations_of(dataset, data, scratch)
        if published.annotations["root"] != root:
            return False
        index = ShardIndex(scratch / LOCATIONS_FILE, root)
    except KinoflowError:
        return False
    needed = index.ends()
    encoders = {shard.split("/")[0] for shard in needed}
    sizes = {
        f"{encoder}/{item.key}": item.size_bytes
        for encoder in encoders
        for item in store.list_objects(store.join(root, encoder))
    }
    return all(sizes.get(shard, -1) >= end for shard, end in needed.items())


def _locations_of(dataset: Manifest, data: str, scratch: Path) -> Manifest:
    uri = dataset.annotations.get(ANNOTATION)
    if not uri:
        raise KinoflowError(f"{data} does not say where its tensors lie; make the bucket output again.")
    try:
        published = manifest.fetch(uri, scratch, [LOCATIONS_FILE], kind=LOCATIONS_KIND)
    except ManifestError as error:
        raise KinoflowError(f"Where the tensors of {data} lie is lost: {error}") from error
    if INDEX_FILE not in dataset.files or published.inputs.get("index") != dataset.files[INDEX_FILE].sha256:
        raise KinoflowError(f"{uri} belongs to another dataset than {data}; make the bucket output again.")
    return published
