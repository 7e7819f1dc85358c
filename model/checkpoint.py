"""The checkpoint format, both ends: a folder of safetensors and JSON files, no pickle.

    model.safetensors      weights under Open-Sora 1.1's own key names
    config.json            the network, as a released config.json
    ema.safetensors        the same with the moving average in place of every trained weight
    optimizer.safetensors  AdamW's moments and step count: <parameter>.exp_avg, .exp_avg_sq, .step
    state.json             how far training is and how it goes on

Ranks that each hold a share of the optimizer write `optimizer/part-00001-of-00004.safetensors` and so on instead of
the one optimizer file, in the layout of torch.distributed.checkpoint's `HuggingFaceStorageWriter`, whose reader reads
them too. Any number of ranks can go on from them.

Equal tensors give equal bytes: nothing of one particular run (time, place) is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.config import STDiT2Config
from model.diffusion_config import DiffusionConfig
from model.handover import Handover
from model.optimizer_config import OptimizerConfig
from model.sentinel import LeftOut, SentinelState
from model.stdit2 import STDiT2
from model.tensor_file import TensorFile

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMA_WEIGHTS, OPTIMIZER, STATE = "ema.safetensors", "optimizer.safetensors", "state.json"
OPTIMIZER_PARTS = "optimizer"
PART_FILE = re.compile(r"part-(\d{5})-of-(\d{5})\.safetensors")
SHARDING_INFO, SHARDING_VERSION = "DCP_SHARDING_INFO", "DCP_VERSION"  # torch's names in the header of a part
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
    batches_per_step: int = Field(1, ge=1, description="Batches of the plan that one step consumes.")
    skipped_steps: int = Field(
        0, ge=0, description="Steps not applied because loss or gradient were not to be trusted."
    )
    sentinel: SentinelState = Field(SentinelState(), description="What decides whether the next step is applied.")
    left_out: tuple[LeftOut, ...] = Field((), description="Steps passed over after going back to a checkpoint.")
    seed: int
    random_stream: str = Field(description="How every random draw follows from seed, stage and batch.")
    optimizer: OptimizerConfig
    diffusion: DiffusionConfig
    ema_decay: float
    handover: Handover = Field(Handover(), description="What the stage took over from the one before.")


@dataclass(frozen=True)
class Part:
    """The share of the optimizer that one rank holds.

    Attributes:
        index: of the rank, from 0.
        count: how many ranks share.
        offsets: where each tensor of the share begins in its whole.
    """

    index: int
    count: int
    offsets: Mapping[str, list[int]]

    @property
    def file(self) -> str:
        """Name of the part in its checkpoint."""
        return f"{OPTIMIZER_PARTS}/part-{self.index + 1:05d}-of-{self.count:05d}.safetensors"


@dataclass
class TrainingState:
    """Everything a checkpoint holds; all tensors on the CPU, and whole unless `part` says otherwise.

    Attributes:
        config: sizes and options of the network.
        weights: its state dict; empty on all ranks but the first where `part` is set.
        ema: the same keys, with the moving average in place of every trained weight.
        optimizer: AdamW's state, `<parameter>.exp_avg` and so on.
        progress: the rest.
        part: this rank's share of `optimizer`, when each rank saves its own.
        release: lets the memory of the tensors be used again; call it when the state is saved.
    """

    config: STDiT2Config
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: Mapping[str, Tensor]
    progress: Progress
    part: Part | None = None
    release: Callable[[], None] = field(default=lambda: None, compare=False)


def checkpoint_files(state: TrainingState) -> dict[str, TensorFile | bytes]:
    """Every file this rank contributes to a checkpoint, by name, as bytes that are not copied before they are read."""
    if state.part is None:
        files: dict[str, TensorFile | bytes] = {OPTIMIZER: TensorFile(state.optimizer)}
    else:
        files = {state.part.file: _part_file(state.optimizer, state.part)}
        if state.part.index > 0:
            return files
    return files | {
        WEIGHTS: TensorFile(state.weights),
        EMA_WEIGHTS: TensorFile(state.ema),
        CONFIG: _json(state.config.to_hub_dict()),
        STATE: _json(state.progress.model_dump(mode="json")),
    }


def part_files(state: TrainingState) -> list[str]:
    """Names of the optimizer parts that all ranks together write; empty where the optimizer is one file."""
    return [] if state.part is None else [Part(i, state.part.count, {}).file for i in range(state.part.count)]


def _part_file(tensors: Mapping[str, Tensor], part: Part) -> TensorFile:
    """What is the same everywhere (the step count) goes into the first part only, and shares of no rows nowhere."""
    kept = {name: t for name, t in tensors.items() if (t.dim() > 0 and t.numel() > 0) or part.index == 0}
    info = {name: {"saved_offsets": part.offsets[name]} for name in sorted(kept)}
    return TensorFile(kept, {"format": "pt", SHARDING_VERSION: "1.0", SHARDING_INFO: json.dumps(info)})


def save_checkpoint(directory: Path, state: TrainingState) -> None:
    """Write the files this rank contributes to a checkpoint into an existing folder."""
    for name, content in checkpoint_files(state).items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.write_to(path)


def load_checkpoint(directory: Path) -> TrainingState:
    """Read a checkpoint written by `save_checkpoint`.

    Raises:
        ValueError: naming the file that is missing or cannot be read.
    """
    return TrainingState(
        config=load_config(directory),
        weights=load_tensors(directory / WEIGHTS),
        ema=load_tensors(directory / EMA_WEIGHTS),
        optimizer=_load_optimizer(directory),
        progress=read_state(directory),
    )


def _load_optimizer(directory: Path) -> Mapping[str, Tensor]:
    parts = directory / OPTIMIZER_PARTS
    return PartedTensors(parts) if parts.is_dir() else load_tensors(directory / OPTIMIZER)


class PartedTensors(Mapping[str, Tensor]):
    """Tensors whose rows lie in the files of several ranks; each is put together when it is asked for.

    Args:
        folder: holds part-00001-of-00004.safetensors and so on.

    Raises:
        ValueError: a part is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: dict[str, list[tuple[Any, list[int]]]] = {}
        names = sorted(path.name for path in folder.iterdir() if PART_FILE.fullmatch(path.name))
        count = int(PART_FILE.fullmatch(names[0])[2]) if names else 1  # type: ignore[index]
        wanted = [Path(Part(index, count, {}).file).name for index in range(count)]
        if names != wanted:
            missing = sorted(set(wanted) - set(names)) or ["nothing but parts of one saving"]
            raise ValueError(f"{folder} is not whole: it lacks {', '.join(missing[:5])}.")
        for name in names:
            self._open(folder / name)

    def _open(self, path: Path) -> None:
        try:
            handle: Any = safe_open(path, framework="pt")
            info = json.loads((handle.metadata() or {})[SHARDING_INFO])
            for name in handle.keys():  # noqa: SIM118  # it is no dict
                self._pieces.setdefault(name, []).append((handle, list(info[name]["saved_offsets"])))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a part of a checkpoint: {error}.") from error

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor."""
        pieces = [(handle.get_tensor(name), offsets) for handle, offsets in self._pieces[name]]
        first: Tensor = pieces[0][0]
        if len(pieces) == 1 and not any(pieces[0][1]):
            return first
        sizes = [[start + length for start, length in zip(at, piece.shape)] for piece, at in pieces]
        whole = torch.empty([max(ends) for ends in zip(*sizes)], dtype=first.dtype)
        for piece, starts in pieces:
            whole[tuple(slice(start, start + length) for start, length in zip(starts, piece.shape))] = piece
        return whole

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors."""
        return iter(self._pieces)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._pieces)


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
    TensorFile(tensors).write_to(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; `ValueError` names it when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error


def _json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()
