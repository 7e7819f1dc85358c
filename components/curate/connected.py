"""What belongs together because it is connected."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def connected(edges: Int64, count: int) -> Int64:
    """(count,) the smallest position that each one is connected to, itself included.

    Labels sink along edges, and every label follows its own label, until nothing moves: each round at least halves
    the height of the trees (Shiloach and Vishkin, 1982).

    Args:
        edges: (n, 2) pairs of positions.
        count: of positions.
    """
    label = np.arange(count, dtype=np.int64)
    while True:
        before = label.copy()
        low = label[edges].min(axis=1)
        for side in (0, 1):
            np.minimum.at(label, before[edges[:, side]], low)
            np.minimum.at(label, edges[:, side], low)
        label = label[label]
        if (label == before).all():
            return label
