"""Deterministic filler numbers shared by the golden tests."""

import math
from collections.abc import Sequence

import numpy as np
import torch


def filler(shape: Sequence[int], tensor_number: int) -> torch.Tensor:
    """U(n, j): numbers in [-1, 1) that any implementation can reproduce.

    ``U[i] = 2 ((i^2 * 7919 + i * 104729 + j * 1299709) mod 1000003) / 1000003 - 1`` in float64, then float32.

    Args:
        shape: shape of the result, filled row by row.
        tensor_number: j, a different one for every tensor.
    """
    i = np.arange(math.prod(shape), dtype=np.int64)
    values = 2 * ((i * i * 7919 + i * 104729 + tensor_number * 1299709) % 1000003) / 1000003 - 1
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))
