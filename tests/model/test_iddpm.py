"""The IDDPM process against numbers computed with the reference implementation."""

import math

import pytest
import torch
from torch import Tensor

from model.gaussian import discretized_gaussian_log_likelihood, gaussian_kl
from model.iddpm import IDDPM, IDDPMSpeed
from model.schedule import linear_betas, space_timesteps
from tests.model.golden import filler
from tests.parity import load_case

KEPT_100 = [
    *range(0, 51, 10), *range(61, 162, 10), *range(172, 273, 10), *range(283, 384, 10), *range(394, 495, 10),
    *range(505, 606, 10), *range(616, 717, 10), *range(727, 828, 10), *range(838, 939, 10), *range(949, 1000, 10),
]  # fmt: skip


class Recorder:
    """A denoiser that answers with one tensor and remembers what it was asked."""

    def __init__(self, output: Tensor) -> None:
        self.output = output

    def __call__(self, x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        self.x, self.timesteps, self.x_mask = x, timesteps, x_mask
        return self.output


def denoise_softly(x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
    return torch.cat([0.5 * x, torch.sin(x)], dim=1)


def assert_close_to_largest(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("respacing", ["", "10", "20", "100"])
def test_tables_match_the_reference(respacing: str) -> None:
    _, tensors = load_case("iddpm_schedule")
    schedule = IDDPM(respacing).schedule
    tag = respacing or "full"
    names = [name.removeprefix(f"{tag}.") for name in tensors if name.startswith(f"{tag}.")]
    assert len(names) == 14
    for name in names:
        torch.testing.assert_close(getattr(schedule, name), tensors[f"{tag}.{name}"], rtol=1e-5, atol=0)
    torch.testing.assert_close(linear_betas(), tensors["named_linear_1000_betas_float64"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("respacing", "kept"),
    [
        (None, list(range(1000))),
        (100, KEPT_100),
        ("10", list(range(0, 1000, 111))),
        ("ddim50", list(range(0, 1000, 20))),
        ([2, 0, 3], [0, 333, 667, 833, 999]),
        ("2,1", [0, 499, 500]),
        (1, [0]),
    ],
)
def test_respacing_rules(respacing: str | int | list[int] | None, kept: list[int]) -> None:
    assert space_timesteps(1000, respacing) == kept


@pytest.mark.parametrize("respacing", ["ddim333", "many", "600,100", 0, [], "5,-1"])
def test_respacing_that_cannot_be_met_is_refused(respacing: str | int | list[int]) -> None:
    with pytest.raises(ValueError, match=r"stride|understood|Cannot keep|keeps no step"):
        space_timesteps(1000, respacing)


def test_base_schedule_scales_with_its_length() -> None:
    betas = linear_betas(500)
    assert betas[0].item() == pytest.approx(2e-4)
    assert betas[-1].item() == pytest.approx(0.04)


def test_a_single_step_has_finite_tables() -> None:
    assert torch.isfinite(IDDPM(1).schedule.posterior_log_variance_clipped).all()


def test_forward_process_matches_the_reference() -> None:
    _, t = load_case("iddpm_q")
    process = IDDPM()
    x, noise, steps = t["in.x_start"], t["in.noise"], t["in.t"]
    x_t = process.q_sample(x, steps, noise)
    mean, variance, log_variance = process.q_mean_variance(x, steps)
    posterior = process.q_posterior(x, t["out.q_sample"], steps)
    pairs = {
        "q_sample": x_t,
        "q_mean": mean,
        "q_variance": variance.flatten(),
        "q_log_variance": log_variance.flatten(),
        "posterior_mean": posterior[0],
        "posterior_variance": posterior[1].flatten(),
        "posterior_log_variance_clipped": posterior[2].flatten(),
        "xstart_from_eps": process.predict_xstart(t["out.q_sample"], steps, noise),
        "eps_from_xstart": process.predict_noise(t["out.q_sample"], steps, x),
    }
    for name, actual in pairs.items():
        torch.testing.assert_close(actual, t[f"out.{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "process"),
    [
        ("iddpm_losses_nomask", IDDPM()),
        ("iddpm_losses_mask", IDDPM()),
        ("iddpm_losses_rescaled100", IDDPM(100, rescale_learned_sigmas=True)),
    ],
)
def test_losses_and_gradients_match_the_reference(case: str, process: IDDPM) -> None:
    _, t = load_case(case)
    denoise = Recorder(t["in.model_output"].requires_grad_())
    terms = process.training_losses(denoise, t["in.x_start"], t["in.t"], t["in.noise"], t.get("in.mask"))
    terms.loss.mean().backward()
    torch.testing.assert_close(denoise.x, t["out.x_t"], rtol=1e-5, atol=1e-6)
    assert torch.equal(denoise.timesteps, t["out.t_passed_to_model"])
    torch.testing.assert_close(terms.mse, t["out.terms.mse"], rtol=1e-5, atol=0)
    torch.testing.assert_close(terms.vb, t["out.terms.vb"], rtol=1e-4, atol=0)
    torch.testing.assert_close(terms.loss, t["out.terms.loss"], rtol=1e-4, atol=0)
    assert_close_to_largest(denoise.output.grad, t["out.grad_model_output_of_mean_loss"], 1e-5)


@pytest.mark.parametrize(
    ("mask", "mse", "vb"),
    [
        (None, [1.395785, 1.576508, 0.044905, 0.009557], [2.740376, 0.166754, 0.000357, 0.000141]),
        (
            [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]],
            [1.395785, 1.532395, 0.049993, 0.008119],
            [2.740376, 0.162024, 0.000398, 0.000119],
        ),
    ],
)
def test_golden_losses_of_a_toy_network(mask: list[list[int]] | None, mse: list[float], vb: list[float]) -> None:
    def denoise(x: Tensor, timesteps: Tensor, x_mask: Tensor | None) -> Tensor:
        noise = 0.9 * x + 1e-5 * timesteps.reshape(-1, 1, 1, 1, 1)
        return torch.cat([noise, 0.3 * torch.sin(3 * x)], dim=1)

    x_start, noise = filler((4, 4, 4, 2, 3), 1), 1.7 * filler((4, 4, 4, 2, 3), 2)
    x_mask = None if mask is None else torch.tensor(mask)
    terms = IDDPM().training_losses(denoise, x_start, torch.tensor([0, 10, 500, 999]), noise, x_mask)
    torch.testing.assert_close(terms.mse, torch.tensor(mse), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms.vb, torch.tensor(vb), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(terms.loss, terms.mse + terms.vb)


def test_half_precision_latents_train_in_float32() -> None:
    x_start, noise = filler((2, 4, 3, 2, 2), 1).bfloat16(), filler((2, 4, 3, 2, 2), 2).bfloat16()
    denoise = Recorder(filler((2, 8, 3, 2, 2), 3).bfloat16())
    terms = IDDPM().training_losses(denoise, x_start, torch.tensor([3, 800]), noise)
    assert denoise.x.dtype == terms.loss.dtype == torch.float32
    assert torch.isfinite(terms.loss).all()


def test_a_sample_of_condition_frames_only_does_not_poison_the_batch() -> None:
    x_start, noise = filler((2, 4, 2, 2, 2), 1), filler((2, 4, 2, 2, 2), 2)
    x_mask = torch.tensor([[False, False], [True, True]])
    denoise = Recorder(filler((2, 8, 2, 2, 2), 3).requires_grad_())
    terms = IDDPM().training_losses(denoise, x_start, torch.tensor([3, 800]), noise, x_mask)
    assert terms.loss[0] == 0
    terms.loss.mean().backward()
    assert torch.isfinite(denoise.output.grad).all()


def test_wrong_shapes_are_named() -> None:
    x = filler((2, 4, 3, 2, 2), 1)
    with pytest.raises(ValueError, match="pred_sigma"):
        IDDPM().training_losses(Recorder(x), x, torch.tensor([3, 800]), x)
    with pytest.raises(ValueError, match="frame mask"):
        IDDPM().training_losses(Recorder(x), x, torch.tensor([3, 800]), x, torch.ones(2, 4))


@pytest.mark.parametrize("case", ["iddpm_psample", "iddpm_psample_clip", "iddpm_psample_mask"])
def test_single_sampling_steps_match_the_reference(case: str) -> None:
    meta, t = load_case(case)
    clip_denoised = meta["config"]["clip_denoised"]
    process = IDDPM(meta["config"]["num_sampling_steps"])
    denoise = Recorder(t["in.model_output"])
    mask = t.get("in.mask")
    noise = [t["in.noise_sample"]] if mask is None else [t["in.noise_mask"], t["in.noise_sample"]]
    step = process.p_sample(denoise, t["in.x"], t["in.t"], mask=mask, clip_denoised=clip_denoised, noise=noise)
    assert_close_to_largest(step.sample, t["out.sample"], 1e-5)
    assert_close_to_largest(step.pred_xstart, t["out.pred_xstart"], 1e-5)
    assert_close_to_largest(denoise.x, t["out.x_passed_to_model"], 1e-5)
    assert torch.equal(denoise.timesteps, t["out.t_passed_to_model"])
    if mask is not None:
        assert torch.equal(denoise.x_mask, t["out.x_mask_passed_to_model"])
        return
    assert denoise.x_mask is None
    prediction = process.predict(denoise.output, t["in.x"], t["in.t"], clip_denoised)
    assert_close_to_largest(prediction.mean, t["out.mean"], 1e-5)
    assert_close_to_largest(prediction.log_variance, t["out.log_variance"], 1e-5)
    for eta in (0.0, 0.5, 1.0):
        step = process.p_sample(denoise, t["in.x"], t["in.t"], clip_denoised=clip_denoised, noise=noise, eta=eta)
        assert_close_to_largest(step.sample, t[f"out.ddim_eta{eta}.sample"], 1e-5)


def test_condition_frames_can_be_kept() -> None:
    latents, mask = filler((1, 4, 3, 2, 2), 1), torch.tensor([[0.0, 1.0, 0.5]])

    def sample(keep: bool) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return IDDPM(5).sample(denoise_softly, latents, mask=mask, generator=generator, keep_condition_frames=keep)

    kept, replaced = sample(True), sample(False)
    assert torch.equal(kept[:, :, 0], latents[:, :, 0])
    assert torch.equal(kept[:, :, 1:], replaced[:, :, 1:])
    assert not torch.equal(replaced[:, :, 0], latents[:, :, 0])


def test_sampling_is_a_function_of_the_generator() -> None:
    latents = filler((2, 4, 3, 2, 2), 1)
    done: list[int] = []

    results = [
        IDDPM(4).sample(denoise_softly, latents, generator=torch.Generator().manual_seed(s), on_step=done.append)
        for s in (1, 1, 2)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert done == [1, 2, 3, 4] * 3


def test_ddim_without_noise_is_deterministic() -> None:
    latents = filler((1, 4, 2, 2, 2), 1)
    first, second = (IDDPM(4).sample(denoise_softly, latents, eta=0.0) for _ in range(2))
    assert torch.equal(first, second)


def test_recorded_noise_must_fit() -> None:
    latents = filler((1, 4, 2, 2, 2), 1)
    denoise = Recorder(filler((1, 8, 2, 2, 2), 1))
    with pytest.raises(ValueError, match="ran out"):
        IDDPM(4).sample(denoise, latents, noise=[latents])
    with pytest.raises(ValueError, match="shape"):
        IDDPM(4).sample(denoise, latents, noise=[latents[:, :1]])


def test_timesteps_are_uniform_and_reproducible() -> None:
    draws = [IDDPM().sample_timesteps(4000, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].min() >= 0
    assert draws[0].max() <= 999
    assert abs(draws[0].float().mean() - 499.5) < 20


def test_speed_prefers_steep_timesteps_and_mirrors_them() -> None:
    process = IDDPMSpeed()
    assert process.turning_point == 700
    weights = process.timestep_weights
    assert weights[:630].min() / weights[650:].max() == pytest.approx(5, rel=1e-3)
    timesteps = process.sample_timesteps(7, torch.Generator().manual_seed(3))
    assert timesteps.shape == (7,)
    assert torch.equal(timesteps[4:], (timesteps[:3] - 700).abs())
    one = torch.ones(3)
    expected = torch.tensor([1.0002e-4, 0.9222, 0.99996])
    torch.testing.assert_close(process.weigh_error(one, torch.tensor([0, 500, 999])), expected, rtol=1e-4, atol=0)
    x = filler((1, 4, 2, 2, 2), 1)
    with pytest.raises(ValueError, match="only trains"):
        process.sample(Recorder(x), x)


def test_gaussian_kl_against_torch() -> None:
    mean_a, mean_b, log_a, log_b = (filler((5,), j) for j in range(4))
    a, b = (torch.distributions.Normal(m, torch.exp(0.5 * v)) for m, v in ((mean_a, log_a), (mean_b, log_b)))
    expected = torch.distributions.kl_divergence(a, b)
    torch.testing.assert_close(gaussian_kl(mean_a, log_a, mean_b, log_b), expected)


def test_discretised_gaussian_covers_the_line_and_stays_finite() -> None:
    bins = torch.linspace(-1, 1, 256)
    log_scale = torch.tensor(math.log(0.3))
    total = discretized_gaussian_log_likelihood(bins, torch.tensor(0.1), log_scale).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-3)
    unlikely = discretized_gaussian_log_likelihood(torch.tensor(0.5), torch.tensor(-0.5), torch.tensor(-6.0))
    assert unlikely.item() == pytest.approx(math.log(1e-12))
