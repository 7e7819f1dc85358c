"""Numeric cases computed with the reference implementation (Open-Sora 1.1, CPU, float32)."""

import json
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
    return meta, load_file(tensor_file) if tensor_file.exists() else {}
