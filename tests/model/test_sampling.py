"""Guidance, whole sampling loops and long videos against the reference's numbers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from model.config import STDiT2Config
from model.flow import RectifiedFlow
from model.iddpm import IDDPM
from model.sampling import (
    ClassifierFreeGuidance,
    GeneratedClip,
    TextConditionedDenoiser,
    extend_video,
    guide,
    join_clips,
    sample_latents,
)
from model.stdit2 import STDiT2
from tests.model.golden import filler
from tests.parity import load_case

CLIP_INFO = ("num_frames", "height", "width", "ar", "fps")


class ToyNetwork(nn.Module):
    """The toy of the golden loops: a text scalar scales the output, condition frames halve it."""

    def __init__(self) -> None:
        super().__init__()
        self.x_masks: list[Tensor | None] = []

    def forward(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None, x_mask: Tensor | None = None
    ) -> Tensor:
        self.x_masks.append(x_mask)
        output = y[:, :, :1, :1, None] * torch.cat([0.9 * x, 0.3 * torch.sin(3 * x)], dim=1)
        return output if x_mask is None else torch.where(x_mask[:, None, :, None, None], output, 0.5 * output)


def guided_toy() -> tuple[ToyNetwork, ClassifierFreeGuidance]:
    network = ToyNetwork()
    null_text = torch.full((1, 1), 0.8)
    return network, ClassifierFreeGuidance(
        network, torch.ones(2, 1, 1), scale=7, cfg_channel=3, null_features=null_text
    )


def test_guided_channels_match_the_reference() -> None:
    meta, t = load_case("iddpm_cfg")
    for channel, scale in meta["config"]["cases"]:
        guided = guide(t["in.model_output"], scale, channel)
        torch.testing.assert_close(guided, t[f"out.channel_{channel}.scale_{scale}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_sigma", [True, False])
def test_all_channels_but_sigma_are_guided(with_sigma: bool) -> None:
    def network(x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None, x_mask: Tensor | None) -> Tensor:
        predicted = y[:, :, 0, 0, None, None, None].expand_as(x)
        return torch.cat([predicted, predicted], dim=1) if with_sigma else predicted

    denoise = ClassifierFreeGuidance(network, torch.ones(2, 1, 1), scale=3.0, null_features=torch.zeros(1, 1))
    guided = denoise(torch.zeros(2, 4, 1, 2, 2), torch.zeros(2))
    torch.testing.assert_close(guided[:, :4], torch.full((2, 4, 1, 2, 2), 3.0))
    torch.testing.assert_close(guided[:, 4:], torch.ones_like(guided[:, 4:]))


def test_both_halves_see_the_first_half() -> None:
    _, t = load_case("iddpm_cfg")
    seen: list[Tensor | None] = []

    def network(x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None, x_mask: Tensor | None) -> Tensor:
        seen.extend([x, x_mask])
        return t["in.model_output"]

    text = torch.zeros(2, 1, 3, 5)
    guidance = ClassifierFreeGuidance(network, text, null_features=text)
    for x_mask in (t["in.x_mask"], torch.cat([t["in.x_mask"]] * 2)):
        guided = guidance(t["in.x"], torch.zeros(4), x_mask)
        torch.testing.assert_close(guided, t["out.channel_None.scale_4.0"], rtol=1e-5, atol=1e-6)
        assert torch.equal(seen[-2], t["out.x_passed_to_model"])
        assert torch.equal(seen[-1], t["out.x_mask_passed_to_model"])
    torch.testing.assert_close(guidance(t["in.x"][:2], torch.zeros(2)), guided[:2])


def test_wrong_guidance_is_refused() -> None:
    _, guidance = guided_toy()
    with pytest.raises(ValueError, match="2 or 4 latents, got 3"):
        guidance(filler((3, 4, 2, 2, 2), 1), torch.zeros(3))
    with pytest.raises(ValueError, match="cfg_channel=9"):
        guide(filler((2, 8, 1, 1, 1), 1), 7.0, 9)


@pytest.mark.parametrize(
    ("mask", "mean", "deviation", "frame_means", "last_channel_means"),
    [
        (
            None, 0.00063, 0.29251,
            [-0.05033, 0.03532, -0.03042, -0.01886], [-0.15426, 0.17227, -0.03162, -0.28451],
        ),
        (
            [[1, 0, 0.35, 0.5], [1, 1, 1, 1]], 0.00152, 0.43341,
            [-0.01062, 0.02367, -0.00500, -0.04284], [-0.07852, 0.01169, 0.02062, -0.20014],
        ),
    ],
)  # fmt: skip
def test_golden_loops(
    mask: list[list[float]] | None,
    mean: float,
    deviation: float,
    frame_means: list[float],
    last_channel_means: list[float],
) -> None:
    network, guidance = guided_toy()
    latents = 1.7 * filler((2, 4, 4, 2, 3), 3)
    frame_mask = None if mask is None else torch.tensor(mask)
    generator = torch.Generator().manual_seed(0)
    sampled = sample_latents(IDDPM(10), guidance, latents, frame_mask, generator=generator)
    assert sampled.mean().item() == pytest.approx(mean, abs=1e-5)
    assert sampled.std(correction=0).item() == pytest.approx(deviation, abs=1e-5)
    assert sampled[0].mean(dim=(0, 2, 3)).tolist() == pytest.approx(frame_means, abs=1e-5)
    assert sampled[0, 3].mean(dim=(1, 2)).tolist() == pytest.approx(last_channel_means, abs=1e-5)
    if mask is not None:
        flags = [x_mask[0].tolist() for x_mask in network.x_masks if x_mask is not None]
        assert flags == [[True, False, i <= 2, i <= 4] for i in reversed(range(10))]


@pytest.mark.parametrize("case", ["iddpm_pipeline_clip", "iddpm_pipeline_mask_clip", "iddpm_pipeline_mask_noclip"])
def test_whole_loops_with_the_network_match_the_reference(case: str) -> None:
    meta, t = load_case(case)
    config = meta["config"]
    network = STDiT2(STDiT2Config(**config["model"])).eval()
    weights = {name.removeprefix("sd."): value for name, value in t.items() if name.startswith("sd.")}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        weights[name] *= meta["final_layer_gain"]
    missing = network.load_state_dict(weights, strict=False)
    assert missing.missing_keys == ["rope.freqs"]
    assert not missing.unexpected_keys
    guidance = ClassifierFreeGuidance(
        network,
        t["in.y"],
        t["in.text_mask"],
        scale=config["cfg_scale"],
        cfg_channel=config["cfg_channel"],
        **{name: t[f"in.{name}"] for name in CLIP_INFO},
    )
    mask = torch.cat([t["in.mask"]] * 2) if "in.mask" in t else None
    steps = IDDPM(config["num_sampling_steps"]).sample_steps(
        guidance,
        torch.cat([t["in.z"]] * 2),
        mask=mask,
        noise=t["in.noises"],
        clip_denoised=config["clip_denoised"],
    )
    samples = [step.sample for step in steps]
    for actual, expected in zip(samples, t["out.step_samples"], strict=True):
        assert (actual - expected).abs().max() <= 1e-3 * expected.std()
    assert (samples[-1][:2] - t["out.samples"]).abs().max() <= 1e-3 * t["out.samples"].std()


def test_null_text_is_the_networks_own_cut_to_the_prompt() -> None:
    config = STDiT2Config(
        hidden_size=24, depth=1, num_heads=2, caption_channels=6, model_max_length=5, input_sq_size=16
    )
    network = STDiT2(config).eval()
    network.initialize(torch.Generator().manual_seed(1))
    info = {name: torch.full((1,), 16.0) for name in CLIP_INFO}
    text, text_mask = filler((1, 3, 6), 1), torch.tensor([[1, 1, 0]])
    x, timesteps = filler((1, 4, 2, 2, 2), 2), torch.tensor([400])
    null_text = network.y_embedder.y_embedding[None, :3]
    unguided = TextConditionedDenoiser(network, null_text, text_mask, **info)(x, timesteps)
    guided = ClassifierFreeGuidance(network, text, text_mask, scale=0.0, cfg_channel=8, **info)(x, timesteps)
    torch.testing.assert_close(guided, unguided)


def test_flow_runs_under_guidance() -> None:
    _, guidance = guided_toy()
    latents = filler((2, 4, 4, 2, 2), 1)
    mask = torch.tensor([[0.0, 1, 1, 0.5]] * 2)
    sampled = sample_latents(
        RectifiedFlow(3), guidance, latents, mask, generator=torch.Generator().manual_seed(1), size=(4, 16, 16)
    )
    assert sampled.shape == latents.shape
    assert torch.equal(sampled[:, :, 0], latents[:, :, 0])


def replay(case: str) -> tuple[dict[str, Tensor], list[GeneratedClip]]:
    """Run a recorded extension with its stand-in sampler and an identity for an autoencoder."""
    meta, t = load_case(case)
    config = meta["config"]

    def sample(latents: Tensor, mask: Tensor, loop_index: int) -> Tensor:
        assert torch.equal(latents, t[f"loop{loop_index}.out.z"])
        frames = torch.arange(latents.shape[2]).reshape(1, 1, -1, 1, 1)
        items = torch.arange(latents.shape[0]).reshape(-1, 1, 1, 1, 1)
        generated = (10000 * (loop_index + 1) + frames + 1000 * items).float()
        return torch.where(mask[:, None, :, None, None] == 0, latents, generated)

    clips = list(
        extend_video(
            sample,
            lambda loop_index: t[f"loop{loop_index}.in.z"].clone(),
            encode=lambda pixels: pixels,
            decode=lambda latents: latents,
            num_loops=config["loops"],
            condition_frame_length=config["condition_frame_length"],
            references=[
                None if own is None else [t[f"in.ref.{b}.{r}"] for r in range(len(own))]
                for b, own in enumerate(config["ref_frames"])
            ],
            strategies=config["strategies"],
        )
    )
    for clip, expected in zip(clips, meta["loops"], strict=True):
        assert list(clip.strategies) == expected["strategies"]
        assert torch.equal(clip.mask, t[f"loop{clip.loop_index}.out.mask"])
        assert torch.equal(clip.pixels, t[f"loop{clip.loop_index}.clip"])
    return t, clips


@pytest.mark.parametrize("case", ["mask_extension", "mask_extension_v2v"])
def test_long_videos_match_the_reference(case: str) -> None:
    t, clips = replay(case)
    assert torch.equal(join_clips(clips), t["final_video"])


def extend(num_loops: int, condition_frame_length: int) -> Iterator[GeneratedClip]:
    return extend_video(
        lambda latents, mask, loop_index: latents + loop_index,
        lambda loop_index: filler((1, 4, 8, 2, 2), loop_index),
        encode=lambda pixels: pixels,
        decode=lambda latents: latents,
        num_loops=num_loops,
        condition_frame_length=condition_frame_length,
    )


def test_long_video_without_references() -> None:
    assert join_clips(extend(3, 2)).shape[2] == 3 * (8 - 2) + 2
    assert join_clips(extend(1, 99)).shape[2] == 8
    assert join_clips(extend(2, 0)).shape[2] == 16
    with pytest.raises(ValueError, match="condition_frame_length must lie between 0 and 7"):
        next(extend(2, 8))
