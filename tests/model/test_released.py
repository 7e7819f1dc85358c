"""Weights from elsewhere: every tensor is checked, bytes come back as they were, pickles stay shut."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file

from model.config import STDiT2Config
from model.released import from_diffusers, read_released, starting_weights, write_released
from model.stdit2 import STDiT2
from tests.model.tiny_training import CONFIG, fresh_network

XL2_DEPTH = STDiT2Config(
    hidden_size=24, depth=28, num_heads=2, caption_channels=16, model_max_length=10, qk_norm=True, input_sq_size=512
)
PIXART = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "cross_attention_dim": 24, "sample_size": 8, "caption_channels": 16, "interpolation_scale": 1,
}  # fmt: skip


def random_weights(config: STDiT2Config, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in fresh_network(config).state_dict().items()
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as downloaded: XL/2's 707 tensors at a small width, and the keys that `transformers` adds."""
    folder = tmp_path_factory.mktemp("released")
    save_file(random_weights(XL2_DEPTH), folder / "model.safetensors", metadata={"format": "pt"})
    values = XL2_DEPTH.to_hub_dict() | {"torch_dtype": "float32", "transformers_version": "4.38.0"}
    del values["init"]
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    return folder


def test_a_released_folder_of_707_tensors_is_read_and_written_byte_for_byte(released: Path, tmp_path: Path) -> None:
    read = read_released(released)
    assert (read.layout, len(read.weights), read.source) == ("stdit2", 707, released)
    network = STDiT2(read.config)
    network.load_state_dict(read.weights, strict=True)
    write_released(tmp_path, read.config, network.state_dict())
    assert (tmp_path / "model.safetensors").read_bytes() == (released / "model.safetensors").read_bytes()
    assert read_released(tmp_path).config == read.config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks.27.mlp.fc2.bias": None}, ["missing: blocks.27.mlp.fc2.bias"]),
        ({"blocks.28.mlp.fc2.bias": torch.zeros(24)}, ["unexpected: blocks.28.mlp.fc2.bias"]),
        ({"fps_embedder.mlp.0.bias": torch.zeros(23)}, ["fps_embedder.mlp.0.bias is (23,) instead of (24,)"]),
    ],
)
def test_what_does_not_fit_is_named(
    released: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], words: list[str]
) -> None:
    weights = {name: t for name, t in (random_weights(XL2_DEPTH) | changes).items() if t is not None}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((released / "config.json").read_bytes())
    with pytest.raises(ValueError) as raised:
        read_released(tmp_path)
    assert all(word in str(raised.value) for word in words)


def test_old_position_tables_are_left_out(released: Path, tmp_path: Path) -> None:
    save_file(random_weights(XL2_DEPTH) | {"pos_embed": torch.zeros(1, 4, 24)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((released / "config.json").read_bytes())
    read = read_released(tmp_path)
    assert read.source is None and len(read.weights) == 707


@pytest.mark.parametrize("length", [4, 16])
def test_training_starts_with_the_null_text_at_the_length_of_its_captions(released: Path, length: int) -> None:
    network = STDiT2(XL2_DEPTH.model_copy(update={"model_max_length": length}))
    network.load_state_dict(starting_weights(released, network.config))
    stored = load_file(released / "model.safetensors")["y_embedder.y_embedding"]
    rows = [min(row, len(stored) - 1) for row in range(length)]
    assert torch.equal(network.y_embedder.y_embedding, stored[rows])


def test_another_network_is_refused_by_name(released: Path) -> None:
    with pytest.raises(ValueError, match=r"num_heads 2, this stage's network 4"):
        starting_weights(released, XL2_DEPTH.model_copy(update={"num_heads": 4}))


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin", "weights.pt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=r"is a pickle.*weights_only=True.*save_file"):
            read_released(source)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor"):
        read_released(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        read_released(tmp_path / "notes.txt")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="neither ST-DiT-2 nor a PixArt-alpha"):
        read_released(tmp_path)


def pixart(*, sizes: bool) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(**PIXART, use_additional_conditions=sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return network


def test_an_image_network_of_diffusers_draws_the_same_as_before(tmp_path: Path) -> None:
    theirs = pixart(sizes=False)
    theirs.save_pretrained(tmp_path)
    read = read_released(tmp_path, model_max_length=6)
    assert read.layout == "pixart-diffusers" and read.source is None
    assert (read.config.num_heads, read.config.depth, read.config.hidden_size) == (2, 2, 24)
    # what is not PixArt-alpha's: no q/k norm, no sizes, positions without a scale
    config = read.config.model_copy(update={"qk_norm": False, "input_sq_size": 64})
    ours = STDiT2(config).eval()
    weights = {name: t for name, t in read.weights.items() if "_norm." not in name}
    for name in ("csize_embedder.mlp.2", "ar_embedder.mlp.2"):
        weights[f"{name}.weight"] = torch.zeros_like(weights[f"{name}.weight"])
    ours.load_state_dict(weights)
    x, text, t = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 16), torch.tensor([3.0, 700.0])
    keep = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    info = {name: torch.full((2,), value) for name, value in {"num_frames": 1.0, "height": 64.0, "width": 64.0,
            "ar": 1.0, "fps": 120.0}.items()}  # fmt: skip
    with torch.no_grad():
        expected = theirs(x, text, t, {"resolution": None, "aspect_ratio": None}, encoder_attention_mask=keep).sample
        drawn = ours(x[:, :, None], t, text[:, None], keep, **info)[:, :, 0]
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_both_layouts_of_an_image_network_give_the_same_weights(tmp_path: Path) -> None:
    theirs = pixart(sizes=True)
    (tmp_path / "diffusers").mkdir()
    theirs.save_pretrained(tmp_path / "diffusers")
    original = from_diffusers(theirs.state_dict())
    original |= {"pos_embed": torch.zeros(1, 16, 24), "y_embedder.y_embedding": torch.randn(5, 16)}
    save_file({n: t.contiguous() for n, t in original.items()}, tmp_path / "PixArt.safetensors")
    first = read_released(tmp_path / "diffusers", model_max_length=7)
    # 24 channels are fewer than the 72 of one head: a single head is assumed
    second = read_released(tmp_path / "PixArt.safetensors", model_max_length=7)
    assert second.layout == "pixart" and second.config.num_heads == 1
    null_text = "y_embedder.y_embedding"
    assert second.weights[null_text].shape == (7, 16)
    assert torch.equal(second.weights[null_text][4], second.weights[null_text][6])
    given = original.keys() & second.weights.keys() - {null_text}
    assert len(given) > 50
    assert [name for name in given if not torch.equal(first.weights[name], second.weights[name])] == []
    assert first.weights["blocks.1.attn_temp.proj.weight"].abs().sum() == 0


def test_an_image_network_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    original = from_diffusers(pixart(sizes=True).state_dict())
    del original["blocks.1.mlp.fc1.bias"]
    save_file({n: t.contiguous() for n, t in original.items()}, tmp_path / "PixArt.safetensors")
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.mlp\.fc1\.bias"):
        read_released(tmp_path / "PixArt.safetensors")


def test_the_tiny_training_network_round_trips(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    write_released(tmp_path, CONFIG, weights)
    assert all(torch.equal(weights[n], t) for n, t in read_released(tmp_path).weights.items())
