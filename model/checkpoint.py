"""The checkpoint format, both ends: a folder of safetensors and JSON files, no pickle.

    model.safetensors      weights under Open-Sora 1.1's own key names
    config.json            the network, as a released config.json
    ema.safetensors        the same with the moving average in place of every trained weight
    optimizer.safetensors  AdamW's moments and step count: <parameter>.exp_avg, .exp_avg_sq, .step
    state.json             how far training is and how it goes on

Equal tensors give equal bytes: nothing of one particular run (time, place) is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import STDiT2Config
from model.diffusion_config import DiffusionConfig
from model.optimizer_config import OptimizerConfig
from model.stdit2 import STDiT2

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMA_WEIGHTS, OPTIMIZER, STATE = "ema.safetensors", "optimizer.safetensors", "state.json"
FORMAT_VERSION = 1
NULL_TEXT = "y_embedder.y_embedding"
# Tables that older files carry and this network computes.
COMPUTED_KEYS = ("pos_embed", "pos_embed_temporal")


class Progress(BaseModel):
    """What beside the tensors decides how training goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    stage: str
    step: int = Field(ge=0, description="Optimizer steps done; the plan goes on at this row of batches.")
    steps: int = Field(gt=0, description="Optimizer steps of the whole stage.")
    batches_per_step: int = Field(1, ge=1, description="Ranks: batches of the plan that one step consumes.")
    skipped_steps: int = Field(0, ge=0, description="Steps not applied because loss or gradient were not finite.")
    seed: int
    random_stream: str = Field(description="How every random draw follows from seed, stage and batch.")
    optimizer: OptimizerConfig
    diffusion: DiffusionConfig
    ema_decay: float
    parent: str | None = Field(None, description="Digest of the checkpoint the stage started from.")


@dataclass
class TrainingState:
    """Everything a checkpoint holds; all tensors whole and on the CPU.

    Attributes:
        config: sizes and options of the network.
        weights: its state dict.
        ema: the same keys, with the moving average in place of every trained weight.
        optimizer: AdamW's state, `<parameter>.exp_avg` and so on.
        progress: the rest.
    """

    config: STDiT2Config
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress


def save_checkpoint(directory: Path, state: TrainingState) -> None:
    """Write all files of a checkpoint into an existing folder."""
    save_tensors(state.weights, directory / WEIGHTS)
    save_tensors(state.ema, directory / EMA_WEIGHTS)
    save_tensors(state.optimizer, directory / OPTIMIZER)
    _write_json(directory / CONFIG, state.config.to_hub_dict())
    _write_json(directory / STATE, state.progress.model_dump(mode="json"))


def load_checkpoint(directory: Path) -> TrainingState:
    """Read a checkpoint written by `save_checkpoint`.

    Raises:
        ValueError: naming the file that is missing or cannot be read.
    """
    return TrainingState(
        config=load_config(directory),
        weights=load_tensors(directory / WEIGHTS),
        ema=load_tensors(directory / EMA_WEIGHTS),
        optimizer=load_tensors(directory / OPTIMIZER),
        progress=read_state(directory),
    )


def load_network(directory: Path, use_ema: bool = True) -> STDiT2:
    """The network of a checkpoint, in evaluation mode.

    Args:
        directory: folder with config.json and the weights to load.
        use_ema: load the moving average instead of the trained weights.

    Raises:
        ValueError: a file is missing or damaged, or keys or shapes do not fit config.json.
    """
    path = directory / (EMA_WEIGHTS if use_ema else WEIGHTS)
    return build_network(load_config(directory), load_tensors(path), path)


def load_released(folder: Path, model_max_length: int | None = None) -> STDiT2:
    """The network of a released folder (config.json and model.safetensors), in evaluation mode.

    Args:
        folder: as downloaded from the model hub.
        model_max_length: longest caption wanted; the null text is cut or its last row repeated to this length
            (Open-Sora 1.1, loading rules). As released when absent.

    Raises:
        ValueError: naming missing and unexpected keys, or the file that cannot be read.
    """
    config = load_config(folder)
    if model_max_length is not None:
        config = config.model_copy(update={"model_max_length": model_max_length})
    weights = load_tensors(folder / WEIGHTS)
    for name in COMPUTED_KEYS:
        weights.pop(name, None)
    if NULL_TEXT in weights:
        weights[NULL_TEXT] = fit_length(weights[NULL_TEXT], config.model_max_length)
    return build_network(config, weights, folder / WEIGHTS)


def build_network(config: STDiT2Config, weights: Mapping[str, Tensor], where: Path) -> STDiT2:
    """A network holding exactly these weights; `ValueError` names what is missing, unexpected or of another shape."""
    check_weights(config, weights, where)
    network = STDiT2(config)
    network.load_state_dict(weights)
    return network.eval()


def check_weights(config: STDiT2Config, weights: Mapping[str, Tensor], where: Path) -> None:
    """Every tensor of the network is there in its shape, and no other; `ValueError` names those that are not so."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in STDiT2(config).state_dict().items()}
    faults = []
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    misfits = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misfits)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            faults.append(f"{what}: {', '.join(names[:5])}{more}")
    if faults:
        raise ValueError(f"{where} does not fit its {CONFIG}; {'; '.join(faults)}.")


def fit_length(null_text: Tensor, length: int) -> Tensor:
    """Cut the null text (M, caption_channels) to `length` rows, or repeat its last row."""
    if null_text.shape[0] >= length:
        return null_text[:length]
    return torch.cat((null_text, null_text[-1:].expand(length - null_text.shape[0], -1)))


def load_config(directory: Path) -> STDiT2Config:
    """The network options in a folder's config.json; `ValueError` names the file and what is wrong."""
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return STDiT2Config.from_hub_dict(values)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise _misfit(path, error) from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not describe this network: {error}.") from error


def read_state(directory: Path) -> Progress:
    """What a checkpoint's state.json says; `ValueError` names the file and what is wrong."""
    path = directory / STATE
    try:
        return Progress.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise _misfit(path, error) from error


def _misfit(path: Path, error: ValidationError) -> ValueError:
    first = error.errors()[0]
    return ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}.")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; equal tensors give equal bytes."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; `ValueError` names it when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
