"""Exponential moving average of the weights, kept in float32 beside the network."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """shadow <- decay shadow + (1 - decay) weight, for every trainable parameter (Open-Sora 1.1, decay 0.9999).

    Frozen parameters and buffers are not averaged: they do not move.

    Args:
        network: whose parameters are followed; the shadow starts as a copy of them.
        decay: in [0, 1).

    Attributes:
        shadow: parameter name -> float32 tensor of the parameter's shape.

    Raises:
        ValueError: for a decay outside [0, 1].
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in trainable.items()}
        self._followed = list(trainable.values())
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the present weights; call it after each optimizer step."""
        weights = [p.detach().float() for p in self._followed]
        self._average(list(self.shadow.values()), weights, 0)
