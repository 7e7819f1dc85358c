import math

import pytest

from model.config import STDiT2Config
from model.geometry import forward_flops
from model.metrics import LogPoint, loss_ends, model_flops_utilisation, training_flops


def point(step: int, steps: int, loss: float) -> LogPoint:
    return LogPoint(
        step=step, steps=steps, loss=loss, grad_norm=1.0, learning_rate=1e-3, samples=8, tokens=64, flops=2e12,
        seconds=4.0,
    )  # fmt: skip


def test_rates_divide_by_the_time_taken():
    rates = point(10, 10, 0.5).rates()
    assert rates["samples_per_s"] == 2 and rates["tokens_per_s"] == 16 and rates["tflops_per_s"] == 0.5
    assert rates["loss"] == 0.5


def test_training_costs_three_forward_passes():
    config = STDiT2Config(hidden_size=48, depth=1, num_heads=2)
    assert training_flops(config, 4, 64, 64, 10) == 3 * forward_flops(config, 4, 64, 64, 10)


def test_utilisation_of_two_devices():
    assert model_flops_utilisation(3e12, 2.0, 1e12, devices=2) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="positive"):
        model_flops_utilisation(1.0, 0.0, 1.0)


def test_loss_ends_are_means_over_a_twentieth_of_the_steps():
    history = [point(step, 10, 100.0 - step) for step in range(10, 401, 10)]
    first, last = loss_ends(history)
    assert first == pytest.approx((90 + 80) / 2)
    assert last == pytest.approx((-290 - 300) / 2)


def test_loss_ends_weigh_points_by_their_steps_and_survive_short_runs():
    assert loss_ends([]) == (None, None)
    assert loss_ends([point(3, 3, 0.25)]) == (0.25, 0.25)
    first, _ = loss_ends([point(1, 1, 4.0), point(4, 3, 0.0), point(100, 96, 1.0)])
    assert first == pytest.approx(1.0)
    assert math.isfinite(first)
