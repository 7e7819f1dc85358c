"""Whole tensors and the shares of them that ranks hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank, whatever share of it this rank holds; all ranks must call it together."""
    value = tensor.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def load_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter or state tensor, of which this rank may hold a share."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.copy_(value)


def whole_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather every tensor of a mapping, as copies on the CPU that later steps do not change."""
    return {name: gathered(tensor).to("cpu", copy=True) for name, tensor in tensors.items()}
