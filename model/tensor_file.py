"""A safetensors file that need not be on a disk: its bytes at any offset, straight from the tensors' memory.

The layout is the one the safetensors library writes, byte for byte: eight bytes of header length, a JSON header padded
with spaces to a multiple of eight, then the tensors, largest data type first and by name within one type.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

# from the first in a file to the last, as the library sorts them
DTYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32",
    torch.uint32: "U32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16",
    torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES)}
CHUNK_BYTES = 8 << 20


class TensorFile:
    """Tensors as the bytes of a safetensors file; they must not change while it is read.

    Args:
        tensors: on the CPU, by name.
        metadata: written into the header.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        names = sorted(tensors, key=lambda name: (RANKS[tensors[name].dtype], name.encode()))
        header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
        offset = 0
        for name in names:
            tensor = tensors[name]
            end = offset + tensor.nbytes
            header[name] = {
                "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]
            }  # fmt: skip
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._pieces = [memoryview(len(text).to_bytes(8, "little") + text)]
        self._pieces += [_bytes_of(tensors[name]) for name in names if tensors[name].nbytes]
        self._starts = [0]
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + len(piece))

    @property
    def size_bytes(self) -> int:
        """Length of the whole file."""
        return self._starts[-1]

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, copied out of the tensors."""
        found: list[memoryview] = []
        index = bisect.bisect_right(self._starts, offset) - 1
        while size > 0:
            start = offset - self._starts[index]
            taken = self._pieces[index][start : start + size]
            found.append(taken)
            offset, size, index = offset + len(taken), size - len(taken), index + 1
        return b"".join(found)

    def write_to(self, path: Path) -> None:
        """Write the file to a disk."""
        with path.open("wb") as file:
            for offset in range(0, self.size_bytes, CHUNK_BYTES):
                file.write(self.read(offset, min(CHUNK_BYTES, self.size_bytes - offset)))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
