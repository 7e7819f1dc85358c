"""What the processes share: masked means, noise sources, and choosing a process by its config."""

import pytest
import torch

from model.diffusion_config import FlowConfig, IDDPMConfig
from model.flow import RectifiedFlow
from model.iddpm import IDDPM
from model.process import NoiseSource, build_process, masked_mean
from tests.model.golden import filler


def test_masked_mean_counts_generated_frames_only() -> None:
    x = filler((3, 4, 3, 2, 5), 1)
    mask = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    expected = torch.stack([x[0][:, [0, 2]].mean(), x[1].mean(), torch.tensor(0.0)])
    torch.testing.assert_close(masked_mean(x, mask), expected)
    torch.testing.assert_close(masked_mean(x, None), x.flatten(1).mean(1))


def test_noise_follows_the_generator_like_randn_like() -> None:
    x = filler((2, 3), 1)
    drawn = NoiseSource(torch.Generator().manual_seed(11)).draw_like(x)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.randn_like(x))
    assert NoiseSource().draw_like(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("steps", [None, 20])
def test_processes_are_chosen_by_config(steps: int | None) -> None:
    iddpm = build_process(IDDPMConfig(rescale_learned_sigmas=True), steps)
    assert isinstance(iddpm, IDDPM)
    assert iddpm.rescale_learned_sigmas
    assert iddpm.num_timesteps == (steps or 1000)
    flow = build_process(FlowConfig(timestep_density="logit-normal", flow_shift="resolution"), steps)
    assert isinstance(flow, RectifiedFlow)
    assert (flow.timestep_density, flow.flow_shift) == ("logit-normal", "resolution")
    assert flow.num_sampling_steps == (steps or 30)
