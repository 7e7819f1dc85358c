"""DPM-Solver++: diffusers' own steps, the exact answer where there is one, and frames that are kept or edited."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from model.diffusion_config import FlowConfig, IDDPMConfig
from model.dpm_solver import DPMSolver
from model.iddpm import IDDPM
from model.process import build_sampler
from model.sampling import sample_latents
from tests.model.golden import filler

MEAN, DEVIATION = 0.7, 0.4  # of the clean latents of the made-up data
SHAPE = (2, 3, 4, 2, 2)


def gaussian_denoiser(process: IDDPM, seen: list | None = None):
    """The exact network of data N(MEAN, DEVIATION²), and a variance nobody reads."""
    base = IDDPM()

    def denoise(x, timesteps, x_mask):
        if seen is not None:
            seen.append((int(timesteps[0]), None if x_mask is None else x_mask.clone()))
        abar = base.schedule.alphas_cumprod[timesteps.long()].reshape(-1, 1, 1, 1, 1).double()
        noise = (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * DEVIATION**2 + 1 - abar)
        return torch.cat([noise, noise], dim=1)

    return denoise


def exact(x: torch.Tensor) -> torch.Tensor:
    """Where the probability flow of that data takes x from the last base step to clean latents."""
    abar = IDDPM().schedule.alphas_cumprod[-1].double()
    return MEAN + (x - abar.sqrt() * MEAN) * DEVIATION / (abar * DEVIATION**2 + 1 - abar).sqrt()


def error(steps: int) -> float:
    solver = DPMSolver(IDDPM(steps))
    x = filler(SHAPE, 3).double()
    return float((solver.sample(gaussian_denoiser(solver.process), x) - exact(x)).abs().max())


def test_it_comes_to_the_exact_answer_at_second_order() -> None:
    coarse, fine, finest = error(25), error(50), error(100)
    assert coarse < 0.1 and coarse > 2.5 * fine > 2.5**2 * finest


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their numpy
def test_its_steps_are_those_of_diffusers() -> None:
    solver = DPMSolver(IDDPM(20))
    denoise = gaussian_denoiser(solver.process)
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True,
    )  # fmt: skip
    theirs.set_timesteps(timesteps=solver.process.schedule.timestep_map.flip(0).tolist())
    x = filler(SHAPE, 5).double()
    ours = solver.sample(denoise, x)
    for timestep in theirs.timesteps:
        noise = denoise(x, timestep.repeat(len(x)), None)[:, : x.shape[1]]
        x = theirs.step(noise, timestep, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_given_frames_are_kept_and_edited_ones_join_at_their_level() -> None:
    solver, seen = DPMSolver(IDDPM(10)), []
    x = filler(SHAPE, 7)
    mask = torch.tensor([[1.0, 0.0, 0.5, 1.0]] * 2)
    sampled = solver.sample(
        gaussian_denoiser(solver.process, seen), x, mask=mask, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(sampled[:, :, 1], x[:, :, 1])
    assert not torch.equal(sampled[:, :, 2], x[:, :, 2])
    assert [masks[0].tolist() for _, masks in seen] == [[True, False, index <= 5, True] for index in range(9, -1, -1)]
    # a frame that is generated from the start does not know of masks
    free = solver.sample(gaussian_denoiser(solver.process), x)
    torch.testing.assert_close(sampled[:, :, 0], free[:, :, 0])
    same = solver.sample(gaussian_denoiser(solver.process), x, mask=mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(same, sampled)


def test_without_a_mask_no_noise_is_drawn() -> None:
    solver, steps = DPMSolver(IDDPM(5)), []
    x = filler(SHAPE, 9)
    once = sample_latents(solver, gaussian_denoiser(solver.process), x, noise=(), on_step=steps.append)
    alone = sample_latents(solver, gaussian_denoiser(solver.process), x[:1], noise=())
    assert torch.equal(once[:1], alone) and steps == [1, 2, 3, 4, 5]


def test_a_flow_has_its_own_sampler() -> None:
    assert isinstance(build_sampler(IDDPMConfig(), 25, "dpm-solver++"), DPMSolver)
    with pytest.raises(ValueError, match=r"trained as a flow; choose the method own"):
        build_sampler(FlowConfig(), 25, "dpm-solver++")
