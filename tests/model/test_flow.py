"""Rectified flow: paths, losses, timestep densities, and a sampler that leaves condition frames alone."""

import pytest
import torch
from torch import Tensor

from model.flow import FlowShift, RectifiedFlow, TimestepDensity, resolution_shift, shift_timesteps
from tests.model.golden import filler


def test_paths_are_straight() -> None:
    x_start, noise = filler((3, 4, 2, 2, 2), 1), filler((3, 4, 2, 2, 2), 2)
    x_t = RectifiedFlow().add_noise(x_start, torch.tensor([0.0, 250.0, 1000.0]), noise)
    torch.testing.assert_close(x_t[0], x_start[0])
    torch.testing.assert_close(x_t[1], 0.75 * x_start[1] + 0.25 * noise[1])
    torch.testing.assert_close(x_t[2], noise[2])


@pytest.mark.parametrize("copies", [1, 2])
def test_loss_is_the_velocity_error_over_generated_frames(copies: int) -> None:
    x_start, noise = filler((2, 4, 3, 2, 2), 1), filler((2, 4, 3, 2, 2), 2)
    x_mask = torch.tensor([[False, True, True], [True, False, True]])
    timesteps = torch.tensor([100.0, 700.0])
    output = filler((2, 4 * copies, 3, 2, 2), 3).requires_grad_()
    seen: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        assert torch.equal(t, timesteps)
        assert mask is not None
        assert torch.equal(mask, x_mask)
        seen.append(x)
        return output

    terms = RectifiedFlow().training_losses(denoise, x_start, timesteps, noise, x_mask)
    error = (output[:, :4] - (x_start - noise)) ** 2
    expected = torch.stack([error[0][:, [1, 2]].mean(), error[1][:, [0, 2]].mean()])
    torch.testing.assert_close(terms.loss, expected)
    assert terms.vb is None
    assert torch.equal(seen[0][0, :, 0], x_start[0, :, 0])
    torch.testing.assert_close(seen[0][1, :, 0], 0.3 * x_start[1, :, 0] + 0.7 * noise[1, :, 0])
    terms.loss.mean().backward()
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize(
    ("density", "mean", "deviation"), [("uniform", 500, 289), ("discrete", 499.5, 289), ("logit-normal", 500, 208)]
)
def test_timestep_densities(density: TimestepDensity, mean: float, deviation: float) -> None:
    process = RectifiedFlow(timestep_density=density)
    draws = [process.sample_timesteps(20000, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert 0 <= draws[0].min() < draws[0].max() <= 1000
    assert draws[0].mean().item() == pytest.approx(mean, abs=10)
    assert draws[0].std().item() == pytest.approx(deviation, abs=6)
    assert (density == "discrete") == torch.equal(draws[0], draws[0].round())


def test_shift_by_resolution_and_length() -> None:
    assert resolution_shift((1, 512, 512)) == 1
    assert resolution_shift((4, 256, 256)) == 1
    assert resolution_shift((16, 512, 1024), scale=0.5) == pytest.approx(2 * 2**0.5)
    shifted = shift_timesteps(torch.tensor([0.0, 500.0, 1000.0]), 3.0)
    torch.testing.assert_close(shifted, torch.tensor([0.0, 750.0, 1000.0]))


def test_shift_applies_to_training_and_sampling() -> None:
    generator = torch.Generator()
    plain = RectifiedFlow().sample_timesteps(8, generator.manual_seed(1))
    size = (16, 512, 512)
    for process in (RectifiedFlow(flow_shift=4.0), RectifiedFlow(flow_shift="resolution")):
        drawn = process.sample_timesteps(8, generator.manual_seed(1), size=size)
        torch.testing.assert_close(drawn, shift_timesteps(plain, 4.0))
        assert process.sampling_timesteps(size)[0] == 1000
        expected = shift_timesteps(torch.tensor(RectifiedFlow().sampling_timesteps()), 4.0)
        torch.testing.assert_close(torch.tensor(process.sampling_timesteps(size)), expected)
    with pytest.raises(ValueError, match="size"):
        RectifiedFlow(flow_shift="resolution").sample_timesteps(8)


def test_sampler_visits_equidistant_timesteps() -> None:
    assert RectifiedFlow(4).sampling_timesteps() == [1000, 750, 500, 250]
    assert RectifiedFlow(3, "discrete").sampling_timesteps() == [1000, 667, 333]


@pytest.mark.parametrize(
    "arguments", [{"num_sampling_steps": 0}, {"timestep_density": "normal"}, {"flow_shift": 0.0}, {"flow_shift": "x"}]
)
def test_unknown_options_are_refused(arguments: dict[str, int | str | FlowShift]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|not one of"):
        RectifiedFlow(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [None, 3.0])
def test_the_true_velocity_leads_to_the_data(shift: float | None) -> None:
    data, noise = filler((2, 4, 3, 2, 2), 1), filler((2, 4, 3, 2, 2), 2)
    done: list[int] = []
    sampled = RectifiedFlow(5, flow_shift=shift).sample(
        lambda x, t, m: torch.cat([data - noise, x], dim=1), noise, on_step=done.append
    )
    torch.testing.assert_close(sampled, data)
    assert done == [1, 2, 3, 4, 5]


def test_masked_frames_join_at_their_level() -> None:
    latents, noise = filler((1, 2, 4, 2, 2), 1), [filler((1, 2, 4, 2, 2), j) for j in range(2, 6)]
    mask = torch.tensor([[0.0, 1.0, 0.5, 0.2]])
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        assert x_mask is not None
        seen.append((x.clone(), x_mask))
        return torch.full_like(x, 8.0)

    sampled = RectifiedFlow(4).sample(denoise, latents, mask=mask, noise=noise)
    flags = torch.cat([x_mask for _, x_mask in seen])
    assert flags.tolist() == [[False, True, joins, False] for joins in (False, False, True, True)]
    torch.testing.assert_close(seen[2][0][:, :, 2], 0.5 * latents[:, :, 2] + 0.5 * noise[2][:, :, 2])
    torch.testing.assert_close(sampled[:, :, 2], seen[2][0][:, :, 2] + 4)
    torch.testing.assert_close(sampled[:, :, 1], latents[:, :, 1] + 8)
    for frozen in (0, 3):
        assert torch.equal(sampled[:, :, frozen], latents[:, :, frozen])
