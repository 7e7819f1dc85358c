import pytest
import torch
from torch import nn

from model.ema import EMA


def test_moves_by_one_minus_decay_and_leaves_frozen_weights_alone():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    network[1].weight.requires_grad_(False)
    ema = EMA(network, 0.75)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert set(ema.shadow) == {"0.weight", "0.bias", "1.bias"}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    for _ in range(2):
        ema.update()
    for name, shadow in ema.shadow.items():
        torch.testing.assert_close(shadow, before[name] + 1 - 0.75**2)


def test_follows_low_precision_weights_in_float32():
    network = nn.Linear(4, 4).to(torch.bfloat16)
    ema = EMA(network, 0.999)
    start = ema.shadow["weight"].clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    ema.update()
    assert ema.shadow["weight"].dtype == torch.float32
    moved = network.weight.detach().float() - start
    torch.testing.assert_close(ema.shadow["weight"] - start, 0.001 * moved, rtol=1e-3, atol=1e-6)


def test_refuses_a_decay_outside_its_range():
    with pytest.raises(ValueError, match="decay"):
        EMA(nn.Linear(1, 1), 1.5)
