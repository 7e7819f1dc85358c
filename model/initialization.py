"""Fresh weights of the ST-DiT-2 network, by the names of its parameters (Open-Sora 1.1 initialisation)."""

import math
import re
from typing import Literal

import torch
from torch import nn

NORMAL_STD = 0.02
ZEROED = re.compile(r"(cross_attn\.proj|attn_temp\.proj|final_layer\.linear)\.")
CONDITIONING = re.compile(r"(t_embedder|t_block|t_block_temp|y_embedder\.y_proj)\.")
PATCH = "x_embedder.proj."


def initialize_weights(network: nn.Module, init: Literal["opensora", "xavier"], generator: torch.Generator) -> None:
    """Draw all weights of `network` (an ``STDiT2``) in place, in the order of its state dict.

    Linear layers and the patch projection are Xavier uniform with zero bias, the patch bias as the framework
    draws it. The projections that end temporal attention, cross-attention and the network are zero, so a fresh
    network predicts zero and leaves an image network's behaviour as it was. Values are drawn on the
    generator's device and do not depend on the network's.
    """
    patch = network.get_parameter(f"{PATCH}weight")
    bound = 1 / math.sqrt(patch[0].numel())
    with torch.no_grad():
        for name, target in network.state_dict().items():
            if name == "rope.freqs":
                target.copy_(network.get_submodule("rope").frequencies())  # type: ignore[operator]
                continue
            values = torch.zeros(target.shape, device=generator.device)
            if name == f"{PATCH}bias":
                values.uniform_(-bound, bound, generator=generator)
            elif "scale_shift_table" in name or name.endswith("y_embedding"):
                values.normal_(0.0, target.shape[-1] ** -0.5, generator=generator)
            elif name.endswith("_norm.weight"):
                values.fill_(1.0)
            elif name.endswith("weight") and not ZEROED.search(name):
                if CONDITIONING.match(name) and init == "opensora":
                    values.normal_(0.0, NORMAL_STD, generator=generator)
                else:
                    nn.init.xavier_uniform_(values.flatten(1), generator=generator)
            target.copy_(values)
