"""Weights from elsewhere in this network's own form: folders of ST-DiT-2 as released, and PixArt-alpha image networks.

A released folder holds `config.json` and `model.safetensors` (707 tensors at XL/2's depth). PixArt-alpha's networks
have neither temporal attention nor the embedders of length and frame rate; a network made from one gets those as
fresh ones do, with the projection that ends temporal attention at zero, so that it still draws the same pictures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import (
    COMPUTED_KEYS,
    CONFIG,
    NULL_TEXT,
    WEIGHTS,
    check_weights,
    fit_length,
    load_config,
    load_tensors,
)
from model.config import STDiT2Config
from model.stdit2 import STDiT2

Layout = Literal["stdit2", "pixart", "pixart-diffusers"]

PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl"}
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
PIXART_HEAD_DIM = 72
PATCH = "x_embedder.proj.weight"
FRESH_IN_VIDEO = re.compile(
    r"blocks\.\d+\.(attn_temp\.|scale_shift_table_temporal$|attn\.[qk]_norm\.)|t_block_temp\.|fl_embedder\.|"
    r"fps_embedder\.|rope\.freqs$"
)
"""What an image network cannot have."""
FRESH_WITHOUT_SIZES = re.compile(r"(csize|ar)_embedder\.")
"""What PixArt-alpha's 256 and 512 networks do not have either."""
FROM_DIFFUSERS = (
    (r"pos_embed\.proj\.", "x_embedder.proj."),
    (r"caption_projection\.y_embedding", NULL_TEXT),
    (r"caption_projection\.linear_([12])\.", r"y_embedder.y_proj.fc\1."),
    (r"adaln_single\.linear\.", "t_block.1."),
    (r"adaln_single\.emb\.timestep_embedder\.", "t_embedder.mlp."),
    (r"adaln_single\.emb\.resolution_embedder\.", "csize_embedder.mlp."),
    (r"adaln_single\.emb\.aspect_ratio_embedder\.", "ar_embedder.mlp."),
    (r"mlp\.linear_1\.", "mlp.0."),
    (r"mlp\.linear_2\.", "mlp.2."),
    (r"transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_out\.0\.", ".attn.proj."),
    (r"\.attn2\.to_out\.0\.", ".cross_attn.proj."),
    (r"\.attn2\.to_q\.", ".cross_attn.q_linear."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
    (r"\.ff\.net\.2\.", ".mlp.fc2."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^scale_shift_table$", "final_layer.scale_shift_table"),
)
"""Names in `diffusers` and here; queries, keys and values are joined besides."""
JOINED_FROM_DIFFUSERS = (
    ("attn1", ("to_q", "to_k", "to_v"), "attn.qkv"),
    ("attn2", ("to_k", "to_v"), "cross_attn.kv_linear"),
)
# What must agree between weights and network although no shape shows it, and what shapes show less clearly.
ESSENTIAL = (
    "hidden_size", "depth", "num_heads", "mlp_ratio", "patch_size", "in_channels", "pred_sigma", "caption_channels",
    "qk_norm", "input_sq_size",
)  # fmt: skip


@dataclass(frozen=True)
class ReleasedWeights:
    """Checked weights of a whole network.

    Attributes:
        layout: what was found.
        source: the files as they are, if they are in the released form already; else None.
    """

    layout: Layout
    config: STDiT2Config
    weights: dict[str, Tensor]
    source: Path | None


def read_released(source: Path, *, model_max_length: int | None = None, seed: int = 0) -> ReleasedWeights:
    """Read a folder or a .safetensors file, whatever of the known layouts it has.

    Args:
        source: folder of ST-DiT-2 or of `diffusers`' PixArt transformer, or one file in PixArt-alpha's own layout.
        model_max_length: text tokens of an image network made into a video network; 200 when absent.
        seed: of what an image network lacks.

    Raises:
        ValueError: it is a pickle, unreadable, or its tensors are not those of the network: what is missing,
            unexpected or of another shape.
    """
    path = _weights_file(source)
    stored = load_tensors(path)
    weights = {name: tensor for name, tensor in stored.items() if name not in (*COMPUTED_KEYS, "pos_embed.pos_embed")}
    if "blocks.0.attn_temp.qkv.weight" in weights:
        config = load_config(path.parent)
        check_weights(config, weights, path)
        whole = path.name == WEIGHTS and len(weights) == len(stored)
        return ReleasedWeights("stdit2", config, weights, path.parent if whole else None)
    layout: Layout = "pixart"
    num_heads = None
    if "transformer_blocks.0.attn1.to_q.weight" in weights:
        layout, weights = "pixart-diffusers", from_diffusers(weights)
        num_heads = _diffusers_heads(path.parent)
    if "blocks.0.attn.qkv.weight" not in weights or PATCH not in weights:
        raise ValueError(f"{path} holds neither ST-DiT-2 nor a PixArt-alpha transformer; its tensors have other names.")
    config = _video_config(weights, model_max_length or 200, num_heads)
    return ReleasedWeights(layout, config, to_video(config, weights, path, seed), None)


def write_released(folder: Path, config: STDiT2Config, weights: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors; equal tensors give equal bytes, those of the library that made them."""
    text = json.dumps(config.to_hub_dict(), indent=1, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def starting_weights(folder: Path, network: STDiT2Config) -> dict[str, Tensor]:
    """The weights of a released folder for a network to be trained, its null text fitted to the captions.

    Raises:
        ValueError: the folder's config.json describes another network, or its tensors do not fit.
    """
    own = load_config(folder)
    for name in ESSENTIAL:
        theirs, ours = getattr(own, name), getattr(network, name)
        if theirs != ours:
            raise ValueError(f"{folder / CONFIG} has {name} {theirs}, this stage's network {ours}; make them equal.")
    weights = load_tensors(folder / WEIGHTS)
    if NULL_TEXT in weights:
        weights[NULL_TEXT] = fit_length(weights[NULL_TEXT], network.model_max_length).contiguous()
    check_weights(network, weights, folder / WEIGHTS)
    return {name: tensor.float() for name, tensor in weights.items()}


def from_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A PixArt transformer of `diffusers` under PixArt-alpha's own names."""
    renamed = dict(weights)
    depth = sum(name.endswith(".attn1.to_q.weight") for name in weights)
    for block in range(depth):
        for attention, parts, target in JOINED_FROM_DIFFUSERS:
            for kind in ("weight", "bias"):
                names = [f"transformer_blocks.{block}.{attention}.{part}.{kind}" for part in parts]
                if all(name in renamed for name in names):
                    renamed[f"blocks.{block}.{target}.{kind}"] = torch.cat([renamed.pop(name) for name in names])
    return {_renamed(name): tensor for name, tensor in renamed.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in FROM_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def to_video(config: STDiT2Config, image: Mapping[str, Tensor], where: Path, seed: int) -> dict[str, Tensor]:
    """The weights of an image network (PixArt-alpha's names) in a video network whose new parts are fresh.

    The 2-D patch projection gains a time axis of length 1, the null text is cut or its last row repeated
    (Open-Sora 1.1, loading rules).

    Raises:
        ValueError: what is missing, unexpected or of another shape.
    """
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(seed))
    fresh = network.state_dict()
    given = {name: tensor.float() for name, tensor in image.items()}
    if given[PATCH].ndim == 4:
        given[PATCH] = given[PATCH][:, :, None]
    if NULL_TEXT in given:
        given[NULL_TEXT] = fit_length(given[NULL_TEXT], config.model_max_length)
    else:
        given[NULL_TEXT] = fresh[NULL_TEXT]  # newer files of `diffusers` leave it out
    without_sizes = not any(FRESH_WITHOUT_SIZES.match(name) for name in given)
    for name, tensor in fresh.items():
        if FRESH_IN_VIDEO.match(name) or (without_sizes and FRESH_WITHOUT_SIZES.match(name)):
            given.setdefault(name, tensor)
    check_weights(config, given, where)
    return {name: given[name].contiguous() for name in fresh}


def _weights_file(source: Path) -> Path:
    if source.is_dir():
        for name in (WEIGHTS, DIFFUSERS_WEIGHTS):
            if (source / name).is_file():
                return source / name
        pickles = sorted(path for path in source.iterdir() if path.suffix in PICKLES)
        if not pickles:
            raise ValueError(f"{source} holds neither {WEIGHTS} nor {DIFFUSERS_WEIGHTS}.")
        source = pickles[0]
    if source.suffix in PICKLES:
        raise ValueError(
            f"{source} is a pickle, which can run any program when it is opened, so it is never loaded here; convert "
            "it where nothing can be harmed (a container without network): torch.load(FILE, weights_only=True), then "
            "safetensors.torch.save_file on its state_dict, and import that .safetensors file."
        )
    if source.suffix != ".safetensors":
        raise ValueError(f"{source} is no folder of weights and no .safetensors file.")
    return source


def _diffusers_heads(folder: Path) -> int | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        heads = json.loads(path.read_text(encoding="utf-8"))["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say num_attention_heads.") from error
    return int(heads)


def _video_config(weights: Mapping[str, Tensor], model_max_length: int, num_heads: int | None) -> STDiT2Config:
    """The video network that an image network's shapes ask for, with Open-Sora 1.1's options."""
    try:
        hidden_size, in_channels, *patch = weights[PATCH].shape
        out_channels = weights["final_layer.linear.weight"].shape[0] // (patch[-1] * patch[-2])
        return STDiT2Config(
            in_channels=in_channels,
            patch_size=(1, patch[-2], patch[-1]),
            hidden_size=hidden_size,
            depth=sum(name.endswith(".attn.qkv.weight") for name in weights),
            num_heads=num_heads or max(hidden_size // PIXART_HEAD_DIM, 1),
            mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / hidden_size,
            pred_sigma=out_channels == 2 * in_channels,
            caption_channels=weights["y_embedder.y_proj.fc1.weight"].shape[1],
            model_max_length=model_max_length,
            qk_norm=True,
            input_sq_size=512,
        )
    except KeyError as error:
        raise ValueError(f"the image network lacks {error.args[0]}; it is not PixArt-alpha's transformer.") from error
