"""The per-frame autoencoders: a fitted one, a released one, and the folder they live in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.autoencoder import Autoencoder, PatchAutoencoder, fit_autoencoder, load_autoencoder
from model.encoder_config import AutoencoderConfig

COLOURS = ((0.9, -0.8, -0.8), (-0.8, 0.7, -0.6), (-0.7, -0.5, 0.9), (0.8, 0.7, -0.8))
GREYS = (-0.8, 0.0, 0.9)


def draw_frames(count: int, seed: int, sides: tuple[int, ...] = (32, 48, 64)) -> list[Tensor]:
    """Anti-aliased coloured discs and squares on grey, (3, H, W) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        side = sides[index % len(sides)]
        y, x = np.mgrid[:side, :side] + 0.5
        centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * side
        norm = np.hypot if index % 2 else lambda a, b: np.maximum(abs(a), abs(b))
        cover = np.clip(0.15 * side - norm(y - centre_y, x - centre_x) + 0.5, 0, 1)
        colour = np.array(COLOURS[rng.integers(4)])[:, None, None]
        frame = GREYS[rng.integers(3)] * (1 - cover) + colour * cover
        frames.append(torch.from_numpy(frame.astype(np.float32)))
    return frames


def psnr_db(autoencoder: Autoencoder, frames: list[Tensor]) -> float:
    errors = [
        (autoencoder.decode(autoencoder.encode(frame[None, :, None])) - frame[:, None]).square().mean()
        for frame in frames
    ]
    return float(10 * torch.log10(4 / torch.stack(errors).mean()))


@pytest.fixture(scope="module")
def fitted() -> Autoencoder:
    config = AutoencoderConfig(latent_channels=12, hidden_channels=64, depth=1, steps=300, crop_px=32)
    return fit_autoencoder(draw_frames(150, seed=0), config)


def test_fit_reconstructs_unseen_frames_and_their_colours(fitted: Autoencoder) -> None:
    frames = draw_frames(24, seed=1)
    assert psnr_db(fitted, frames) > 28
    palette = torch.tensor(COLOURS)
    errors = []
    for frame in frames:
        rebuilt = fitted.decode(fitted.encode(frame[None, :, None]))[0, :, 0]
        object_mask = (frame - frame[:, :1, :1]).abs().sum(0) > 0.5
        wanted, seen = (picture[:, object_mask].median(1).values for picture in (frame, rebuilt))
        assert (palette - seen).abs().sum(1).argmin() == (palette - wanted).abs().sum(1).argmin()
        errors.append((seen - wanted).abs().mean())
    assert torch.stack(errors).mean() < 0.1  # of a range of 2


def test_training_beats_principal_components_alone(fitted: Autoencoder) -> None:
    frames = draw_frames(24, seed=1)
    linear = fit_autoencoder(draw_frames(150, seed=0), fitted.codec.config.model_copy(update={"steps": 0}))
    assert 18 < psnr_db(linear, frames) < psnr_db(fitted, frames) - 1


def test_full_rank_linear_part_is_exact() -> None:
    frames = draw_frames(8, seed=2, sides=(32,))
    frames = [frame + 0.1 * torch.rand(frame.shape, generator=torch.Generator().manual_seed(0)) for frame in frames]
    frames = [frame.clamp(-1, 1) for frame in frames]
    exact = fit_autoencoder(frames, AutoencoderConfig(latent_channels=192, steps=0, crop_px=32))
    assert psnr_db(exact, frames) > 60


def test_latents_have_zero_mean_and_unit_deviation_per_channel(fitted: Autoencoder) -> None:
    latents = torch.cat([fitted.encode(f[None, :, None]).flatten(2)[0] for f in draw_frames(150, seed=3)], dim=1)
    assert latents.shape[0] == 12
    assert latents.mean(1).abs().max() < 0.35
    assert ((latents.std(1) > 0.6) & (latents.std(1) < 1.5)).all()


def test_shapes_follow_the_stride_and_incomplete_patches_are_dropped(fitted: Autoencoder) -> None:
    pixels = torch.zeros(2, 3, 5, 36, 47)
    latents = fitted.encode(pixels)
    assert latents.shape == (2, 12, 5, 4, 5)
    assert latents.dtype == torch.float32
    decoded = fitted.decode(latents)
    assert decoded.shape == (2, 3, 5, 32, 40)
    assert decoded.abs().max() <= 1
    assert (fitted.latent_channels, fitted.stride) == (12, (1, 8, 8))


def test_frames_keep_their_place_whatever_the_micro_batch(fitted: Autoencoder) -> None:
    pixels = torch.stack(draw_frames(6, seed=4, sides=(32,)), dim=1).unflatten(1, (2, 3)).transpose(0, 1)
    latents = fitted.encode(pixels)
    assert torch.allclose(Autoencoder(fitted.codec, 1).encode(pixels), latents, atol=1e-5)
    assert torch.allclose(fitted.encode(pixels[1:, :, 2:]), latents[1:, :, 2:], atol=1e-5)


def test_fit_is_deterministic_and_reports_every_step() -> None:
    frames = draw_frames(12, seed=5)
    config = AutoencoderConfig(hidden_channels=16, depth=1, steps=5, batch_size=2, crop_px=32)
    seen: list[tuple[int, int]] = []
    torch.manual_seed(1)
    first = fit_autoencoder(frames, config, lambda step, steps, psnr: seen.append((step, steps)))
    torch.manual_seed(2)
    second = fit_autoencoder(frames, config)
    assert seen == [(step, 5) for step in range(1, 6)]
    assert first.digest == second.digest
    assert fit_autoencoder(frames, config.model_copy(update={"seed": 1})).digest != first.digest


def test_save_and_load_keep_every_value(fitted: Autoencoder, tmp_path: Path) -> None:
    fitted.save(tmp_path / "autoencoder")
    loaded = load_autoencoder(tmp_path / "autoencoder", micro_batch_size=2)
    pixels = torch.stack(draw_frames(4, seed=6, sides=(32,)), dim=1)[None]
    assert json.loads((tmp_path / "autoencoder/config.json").read_text())["_class_name"] == "PatchAutoencoder"
    assert isinstance(loaded.codec, PatchAutoencoder)
    assert loaded.digest == fitted.digest
    assert torch.allclose(loaded.encode(pixels), fitted.encode(pixels), atol=1e-6)


def test_small_frames_shrink_the_crops() -> None:
    frames = draw_frames(4, seed=7, sides=(24,))
    config = AutoencoderConfig(steps=1, hidden_channels=8, depth=1, batch_size=2, crop_px=48)
    assert fit_autoencoder(frames, config).encode(frames[0][None, :, None]).shape == (1, 8, 1, 3, 3)


def test_fit_refuses_frames_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        fit_autoencoder([], AutoencoderConfig())
    with pytest.raises(ValueError, match="at least one frame"):
        fit_autoencoder([torch.zeros(1, 3, 32, 32)], AutoencoderConfig())
    with pytest.raises(ValueError, match="side of 6 pixels"):
        fit_autoencoder([torch.zeros(3, 6, 32)], AutoencoderConfig())


def test_wrong_shapes_are_refused(fitted: Autoencoder) -> None:
    with pytest.raises(ValueError, match="Expected pixels"):
        fitted.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="Expected latents"):
        fitted.decode(torch.zeros(1, 4, 1, 4, 4))
    with pytest.raises(ValueError, match="micro_batch_size"):
        Autoencoder(fitted.codec, 0)


def test_config_refuses_crops_of_broken_patches() -> None:
    with pytest.raises(ValueError, match="multiple of the autoencoder's stride"):
        AutoencoderConfig(crop_px=50)


def test_folders_that_hold_no_autoencoder(fitted: Autoencoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an autoencoder folder"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "STDiT2"}')
    with pytest.raises(ValueError, match="not an autoencoder folder"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DModel"):
        load_autoencoder(tmp_path)
    fitted.save(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_autoencoder(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_autoencoder(tmp_path)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL saved by diffusers, with the layout of the released ones."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    folder = tmp_path_factory.mktemp("released")
    network.save_pretrained(folder)
    return folder


def test_released_autoencoder_scales_the_posterior_mode(released: Path) -> None:
    autoencoder = load_autoencoder(released)
    pixels = torch.stack(draw_frames(6, seed=8, sides=(40,)), dim=1)[None]
    latents = autoencoder.encode(pixels)
    network = autoencoder.codec.network
    with torch.no_grad():
        expected = network.encode(pixels[0].transpose(0, 1)).latent_dist.mode() * 0.18215
        decoded = network.decode(expected / 0.18215).sample.clamp(-1, 1)
    assert latents.shape == (1, 4, 6, 5, 5)
    assert torch.allclose(latents[0].transpose(0, 1), expected, atol=1e-5)
    assert torch.allclose(autoencoder.decode(latents)[0].transpose(0, 1), decoded, atol=1e-4)


def test_released_autoencoder_samples_with_a_generator(released: Path) -> None:
    autoencoder = load_autoencoder(released)
    pixels = torch.stack(draw_frames(2, seed=8, sides=(32,)), dim=1)[None]
    samples = [autoencoder.encode(pixels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    assert not torch.equal(samples[0], autoencoder.encode(pixels))


def test_released_autoencoder_round_trips_through_a_folder(released: Path, tmp_path: Path) -> None:
    autoencoder = load_autoencoder(released)
    autoencoder.save(tmp_path)
    assert load_autoencoder(tmp_path).digest == autoencoder.digest


def test_other_strides_are_refused(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stride 1; only stride 8"):
        load_autoencoder(tmp_path)
