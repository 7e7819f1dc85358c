"""Copies of a training state in host memory: the only part of saving for which training stands still.

Memory is taken once and used again, because the first touch of a page costs more than the copy into it. Beside a GPU
it is pinned, so that the copies run at the speed of the bus.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from model.parallel import gathered

_Buffers = dict[tuple[str, str], Tensor]


class HostMemory:
    """Buffers that outlive the copies made in them."""

    def __init__(self) -> None:
        self._free: list[_Buffers] = []
        self._lock = threading.Lock()

    def lease(self) -> HostCopy:
        """Room for one state: what an earlier one has released, new memory otherwise."""
        with self._lock:
            return HostCopy(self, self._free.pop() if self._free else {})

    def take_back(self, buffers: _Buffers) -> None:
        """Keep buffers for the next copy."""
        with self._lock:
            self._free.append(buffers)


class HostCopy:
    """One state in host memory, valid until `release`."""

    def __init__(self, memory: HostMemory, buffers: _Buffers) -> None:
        self._memory, self._buffers, self._released = memory, buffers, False

    @torch.no_grad()
    def whole(self, group: str, tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
        """Copies of whole tensors, gathered one at a time where ranks hold shares; all ranks must call it together.

        Args:
            group: tells equal names of different mappings apart.
            tensors: by name.
            keep: copy them; a rank that only takes part in gathering gets nothing.
        """
        copies = {}
        for name, tensor in tensors.items():
            value = gathered(tensor)
            if keep:
                copies[name] = self._copy(group, name, value)
        _finish(tensors)
        return copies

    @torch.no_grad()
    def own(self, group: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """Copies of this rank's shares and where each begins in its whole tensor; nothing is sent between ranks.

        Tensors that are whole on every rank have the offset 0.
        """
        copies, offsets = {}, {}
        for name, tensor in tensors.items():
            value = tensor.detach()
            offsets[name] = [0] * tensor.dim()
            if hasattr(value, "to_local"):
                offsets[name] = [int(i) for i in value.__create_chunk_list__()[0].offsets]  # type: ignore[attr-defined]
                value = value.to_local()
            copies[name] = self._copy(group, name, value)
        _finish(tensors)
        return copies, offsets

    def release(self) -> None:
        """Give the memory back; the copies must not be used any more."""
        if not self._released:
            self._released = True
            self._memory.take_back(self._buffers)

    def _copy(self, group: str, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get((group, name))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[group, name] = buffer
        return buffer.copy_(value, non_blocking=True)


def _finish(tensors: Mapping[str, Tensor]) -> None:
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
