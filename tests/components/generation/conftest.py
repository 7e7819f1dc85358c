"""A small real model, and pictures of the made world to condition it on."""

import pytest
import torch

from components.generation import Bundle, to_pixels
from model.autoencoder import fit_autoencoder
from model.config import STDiT2Config
from model.diffusion_config import FlowConfig
from model.encoder_config import AutoencoderConfig, TextEncoderConfig
from model.stdit2 import STDiT2
from model.text import build_text_encoder
from tests.components.generation.scenes import SCENE, picture


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    frames = list(to_pixels(picture()).permute(1, 0, 2, 3))
    small = AutoencoderConfig(latent_channels=8, hidden_channels=8, depth=1, steps=0, crop_px=16)
    words = TextEncoderConfig(hidden_size=16, num_heads=2, model_max_length=12)
    network = STDiT2(
        STDiT2Config(
            in_channels=8,
            hidden_size=24,
            depth=1,
            num_heads=2,
            caption_channels=16,
            model_max_length=12,
            qk_norm=True,
            pred_sigma=True,
        )
    )
    network.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():  # fresh weights hear no text; these do
                weight.normal_(std=0.2, generator=generator)
    return Bundle(
        network=network.eval(),
        diffusion=FlowConfig(),
        autoencoder=fit_autoencoder(frames, small),
        text_encoder=build_text_encoder([SCENE.caption], words),
        checkpoint="here",
        checkpoint_digest="0" * 64,
        data="there",
    )
