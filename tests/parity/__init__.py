"""Numeric cases computed with the reference implementation (Open-Sora 1.1, CPU, float32).

Weights of the whole-network cases are normal draws from the case's seed, so they are drawn again here instead
of being stored.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent


def load_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read one case.

    Args:
        name: file name without suffix, for example ``"rotary"``.

    Returns:
        The case's description (from ``<name>.json``) and its tensors by name (from
        ``<name>.safetensors``; empty where the case has numbers in its description only).
    """
    meta = json.loads((FOLDER / f"{name}.json").read_text())
    tensor_file = FOLDER / f"{name}.safetensors"
    tensors = load_file(tensor_file) if tensor_file.exists() else {}
    if "drawn_weights" in meta:
        tensors |= _draw_weights(meta["seed"], meta["drawn_weights"])
    return meta, tensors


def _draw_weights(seed: int, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights by name with the prefix ``sd.``, drawn in the order of `shapes`."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=generator)
        if name.endswith("_norm.weight"):
            weight = 1.0 + 0.3 * draw
        elif name.endswith("y_embedding"):
            weight = 0.7 * draw
        elif "scale_shift_table" in name:
            weight = 0.4 * draw
        elif name.endswith("bias"):
            weight = 0.1 * draw
        else:
            gain = 0.6 if name.startswith("t_block") else 1.0
            weight = gain / math.sqrt(math.prod(shape[1:])) * draw
        weights[f"sd.{name}"] = weight
    return weights
