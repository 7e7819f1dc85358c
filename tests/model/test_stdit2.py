"""The whole network against reference results, and the promises it makes to its callers."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import STDiT2Config
from model.stdit2 import STDiT2
from tests.model.golden import filler
from tests.parity import load_case

CASES = (
    "stdit2_01_image",
    "stdit2_02_video",
    "stdit2_03_video_oddsize",
    "stdit2_04_nonsquare_xmask",
    "stdit2_05_captions",
    "stdit2_06_nomask",
    "stdit2_07_cfg_repeat",
    "stdit2_08_mixed_info",
    "stdit2_09_grads",
    "stdit2_10_noqknorm",
    "stdit2_11_long",
)
XL = STDiT2Config(qk_norm=True, model_max_length=200, input_sq_size=512)
SMALL = STDiT2Config(
    hidden_size=48, depth=2, num_heads=2, caption_channels=16, model_max_length=6, qk_norm=True, input_sq_size=512
)


def load_network(name: str) -> tuple[STDiT2, dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """A case's network with its weights, the forward arguments, all its tensors and its description."""
    meta, tensors = load_case(name)
    network = STDiT2(STDiT2Config.model_validate(meta["config"])).eval()
    network.load_state_dict({key[3:]: value for key, value in tensors.items() if key.startswith("sd.")})
    arguments = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    return network, arguments, tensors, meta


def small_arguments(batch: int = 2, frames: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random forward arguments for the `SMALL` network."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, 4, frames, 4, 6, generator=generator),
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "y": torch.randn(batch, 1, 6, 16, generator=generator),
        "mask": (torch.arange(6) < torch.tensor([4, 2, 6, 1])[:batch, None]).int(),
        "num_frames": torch.full((batch,), float(frames)),
        "height": torch.full((batch,), 32.0),
        "width": torch.full((batch,), 48.0),
        "ar": torch.full((batch,), 1.5),
        "fps": torch.full((batch,), 24.0),
    }


@pytest.fixture
def small_network() -> STDiT2:
    """A small network with every weight random (a fresh one returns zeros)."""
    network = STDiT2(SMALL).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if name != "rope.freqs":
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    torch.nn.init.normal_(network.y_embedder.y_embedding, generator=generator)
    return network


@pytest.mark.parametrize("layout", ["auto", "packed", "padded"])
@pytest.mark.parametrize("name", CASES)
def test_forward_matches_reference(name: str, layout: Any) -> None:
    network, arguments, tensors, _ = load_network(name)
    network.text_layout = layout
    with torch.inference_mode():
        out = network(**arguments)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, tensors["out"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_match_reference(checkpointing: bool) -> None:
    network, arguments, tensors, meta = load_network("stdit2_09_grads")
    network.set_activation_checkpointing(checkpointing)
    arguments["x"].requires_grad_()
    arguments["y"].requires_grad_()
    loss = (network(**arguments) * tensors["loss_weight"]).mean()
    loss.backward()
    torch.testing.assert_close(loss.detach()[None], tensors["loss"])
    parameters = dict(network.named_parameters())
    for name, expected in tensors.items():
        if name.startswith("grad."):
            variable = arguments.get(name[5:], parameters.get(name[5:]))
            assert variable is not None and variable.grad is not None
            difference = (variable.grad - expected).abs().max() / expected.abs().max()
            assert difference < 1e-5, name
    for name, norm in meta["grad_norm_all_params"].items():
        gradient = parameters[name].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-4), name


def golden_network() -> tuple[STDiT2, dict[str, Tensor]]:
    """The golden network and its arguments (without frame mask)."""
    config = STDiT2Config(
        depth=2, hidden_size=144, num_heads=4, caption_channels=32, model_max_length=10, qk_norm=True,
        input_sq_size=512,
    )  # fmt: skip
    network = STDiT2(config).eval()
    state = network.state_dict()
    keys = sorted(key for key in state if key != "rope.freqs")
    assert (len(keys), keys[0], keys[9]) == (82, "ar_embedder.mlp.0.bias", "blocks.0.attn.qkv.weight")
    weights = {
        key: 0.15 * filler(state[key].shape, number) + (1.0 if key.endswith("_norm.weight") else 0.0)
        for number, key in enumerate(keys)
    }
    network.load_state_dict({**weights, "rope.freqs": state["rope.freqs"]})
    mask = torch.tensor([[1] * 6 + [0] * 4, [1] * 9 + [0]])
    meta = {"num_frames": 3.0, "height": 40.0, "width": 48.0, "ar": 1.2, "fps": 24.0}
    return network, {
        "x": 1.7 * filler((2, 4, 3, 5, 6), 1001),
        "timestep": torch.tensor([7, 612]),
        "y": filler((2, 1, 10, 32), 1002),
        "mask": mask,
        **{name: torch.full((2,), value) for name, value in meta.items()},
    }


GOLDEN = {  # frame mask: mean, population std, sum of magnitudes, first three, [0,1,1,2,3], [1,5,2,4,5]
    "none": (-0.175474, 1.564738, 1814.4276, (-3.02398, 0.85096, -4.36157), -0.14352, 2.50383),
    "all": (-0.175474, 1.564738, 1814.4276, (-3.02398, 0.85096, -4.36157), -0.14352, 2.50383),
    "some": (-0.170082, 1.695853, 1966.2874, (-2.76074, 0.87433, -4.19507), -0.77842, 2.75172),
    "no frame": (-0.223161, 1.831305, 2162.3492, (-3.48956, 0.65526, -4.30803), -0.88006, -0.00235),
    "no text mask": (-0.176116, 1.563926, 1812.7832, (-2.99049, 0.90728, -4.34213), -0.14062, 2.50450),
    "null text": (-0.173165, 1.563397, 1807.5846, (-2.93367, 0.96836, -4.30248), -0.07412, 2.46783),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_numbers(case: str) -> None:
    network, arguments = golden_network()
    frame_masks = {
        "all": torch.ones(2, 3, dtype=torch.bool),
        "some": torch.tensor([[True, False, True], [False, True, True]]),
        "no frame": torch.zeros(2, 3, dtype=torch.bool),
    }
    if case == "no text mask":
        del arguments["mask"]
    if case == "null text":  # a guidance batch: the second half keeps the mask of the first
        arguments = {name: arguments[name] if name == "mask" else arguments[name].repeat(
            2, *[1] * (arguments[name].ndim - 1)) for name in arguments}  # fmt: skip
        arguments["drop_caption"] = torch.tensor([False, False, True, True])
    with torch.inference_mode():
        out = network(**arguments, x_mask=frame_masks.get(case))[-2:]
    mean, std, magnitude, first, inner, last = GOLDEN[case]
    assert float(out.mean()) == pytest.approx(mean, abs=2e-5)
    assert float(out.std(correction=0)) == pytest.approx(std, rel=1e-5)
    assert float(out.abs().sum()) == pytest.approx(magnitude, rel=1e-5)
    assert out.flatten()[:3].tolist() == pytest.approx(first, abs=2e-5)
    assert float(out[0, 1, 1, 2, 3]) == pytest.approx(inner, abs=2e-5)
    assert float(out[1, 5, 2, 4, 5]) == pytest.approx(last, abs=2e-5)


def test_bfloat16_stays_close_to_float32() -> None:
    network, arguments = golden_network()
    arguments["x_mask"] = torch.tensor([[True, False, True], [False, True, True]])
    with torch.inference_mode():
        exact = network(**arguments)
        rounded = network.bfloat16()(**arguments)
    assert rounded.dtype == torch.float32
    relative_rms = float((rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 0.001 < relative_rms < 0.015


def test_xl_state_dict_is_the_released_one() -> None:
    with torch.device("meta"):
        network = STDiT2(XL)
    state = network.state_dict()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert (parameters, trainable) == (767_452_100, 767_452_064)
    assert sum(value.numel() for value in state.values()) == 768_271_300
    assert len(state) == 707
    shapes = {
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "y_embedder.y_embedding": (200, 4096),
        "rope.freqs": (36,),
        "csize_embedder.mlp.2.weight": (384, 384),
        "blocks.27.attn_temp.k_norm.weight": (72,),
        "blocks.0.cross_attn.kv_linear.weight": (2304, 1152),
        "blocks.5.mlp.fc1.bias": (4608,),
        "final_layer.linear.weight": (32, 1152),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_initialize_follows_the_specified_draws() -> None:
    config = SMALL.model_copy(update={"hidden_size": 192, "num_heads": 4})
    network = STDiT2(config).requires_grad_(False)
    network.initialize(torch.Generator().manual_seed(3))
    again = STDiT2(config)
    again.initialize(torch.Generator().manual_seed(3))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    block = network.blocks[0]
    for zero in (block.cross_attn.proj, block.attn_temp.proj, network.final_layer.linear):
        assert not zero.weight.any() and not zero.bias.any()
    assert float(network.t_block[1].weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(network.t_embedder.mlp[0].weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.mlp.fc1.weight.abs().max()) == pytest.approx((6 / (192 + 768)) ** 0.5, rel=0.01)
    assert float(network.fl_embedder.mlp[0].weight.abs().max()) == pytest.approx((6 / (256 + 192)) ** 0.5, rel=0.01)
    assert float(block.scale_shift_table.std()) == pytest.approx(192**-0.5, rel=0.1)
    assert float(network.y_embedder.y_embedding.std()) == pytest.approx(16**-0.5, rel=0.3)
    assert bool((block.attn.q_norm.weight == 1).all())
    xavier = STDiT2(config.model_copy(update={"init": "xavier"})).requires_grad_(False)
    xavier.initialize(torch.Generator().manual_seed(3))
    assert float(xavier.t_block[1].weight.abs().max()) == pytest.approx((6 / (192 * 7)) ** 0.5, rel=0.01)


def test_fresh_network_predicts_zero_and_temporal_step_is_identity() -> None:
    network = STDiT2(SMALL)
    network.initialize(torch.Generator().manual_seed(0))
    assert not network(**small_arguments()).any()


def test_initialize_restores_a_network_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = STDiT2(SMALL)
    network.to_empty(device="cpu")
    network.initialize(torch.Generator().manual_seed(0))
    reference = STDiT2(SMALL)
    reference.initialize(torch.Generator().manual_seed(0))
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in network.state_dict().items())


def test_short_text_equals_masked_text(small_network: STDiT2) -> None:
    arguments = small_arguments()
    full = small_network(**arguments)
    arguments["y"], arguments["mask"] = arguments["y"][:, :, :4], arguments["mask"][:, :4]
    torch.testing.assert_close(small_network(**arguments), full, atol=1e-6, rtol=1e-5)


def test_dropped_caption_equals_null_text_as_input(small_network: STDiT2) -> None:
    arguments = small_arguments()
    dropped = small_network(**arguments, drop_caption=torch.tensor([False, True]))
    arguments["y"][1, 0] = small_network.y_embedder.y_embedding
    torch.testing.assert_close(dropped, small_network(**arguments))


@pytest.mark.parametrize("layout", ["auto", "packed", "padded"])
def test_sample_without_text_tokens_is_finite(small_network: STDiT2, layout: Any) -> None:
    arguments = small_arguments()
    arguments["mask"][0] = 0
    small_network.text_layout = layout
    out = small_network(**arguments)
    small_network.text_layout = "packed"
    torch.testing.assert_close(out, small_network(**arguments), atol=1e-5, rtol=1e-4)
    out.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in small_network.parameters())


def test_single_frame_leaves_no_parameter_without_gradient(small_network: STDiT2) -> None:
    small_network(**small_arguments(frames=1)).square().sum().backward()
    missing = [name for name, p in small_network.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_checkpointing_gives_the_same_gradients(small_network: STDiT2) -> None:
    gradients = []
    for enabled in (False, True):
        small_network.set_activation_checkpointing(enabled)
        small_network.zero_grad()
        small_network(**small_arguments()).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in small_network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_freeze_selects_parameters() -> None:
    only_temporal = STDiT2(SMALL.model_copy(update={"freeze": "not_temporal"}))
    assert all(("attn_temp" in name) == p.requires_grad for name, p in only_temporal.named_parameters())
    no_text = STDiT2(SMALL.model_copy(update={"freeze": "text"}))
    frozen = [name for name, p in no_text.named_parameters() if not p.requires_grad]
    assert all("cross_attn" in name or name == "rope.freqs" for name in frozen) and len(frozen) == 13


def test_mistakes_are_explained(small_network: STDiT2) -> None:
    arguments = small_arguments()
    with pytest.raises(ValueError, match="needs ar, fps of every clip"):
        small_network(**{name: value for name, value in arguments.items() if name not in ("ar", "fps")})
    with pytest.raises(ValueError, match="latents have shape"):
        small_network(**{**arguments, "x": arguments["x"][:, :3]})
    with pytest.raises(ValueError, match="text features have shape"):
        small_network(**{**arguments, "y": arguments["y"][..., :8]})
    with pytest.raises(ValueError, match="text mask has 3 tokens"):
        small_network(**{**arguments, "mask": arguments["mask"][:, :3]})
    with pytest.raises(ValueError, match="cannot tile 3 rows"):
        small_network(**{**arguments, "fps": torch.ones(3)})


def test_config_reads_a_released_file() -> None:
    released = {
        "architectures": ["STDiT2"], "caption_channels": 4096, "depth": 28, "hidden_size": 1152, "in_channels": 4,
        "input_size": [32, 60, 106], "input_sq_size": 512, "mlp_ratio": 4.0, "model_max_length": 200,
        "model_type": "STDiT2", "num_heads": 16, "patch_size": [1, 2, 2], "pred_sigma": True, "qk_norm": True,
        "enable_flash_attn": False, "enable_layernorm_kernel": False, "torch_dtype": "float32",
    }  # fmt: skip
    config = STDiT2Config.from_hub_dict(released)
    assert config == XL.model_copy(update={"input_size": (32, 60, 106)})
    assert STDiT2Config.from_hub_dict(config.to_hub_dict()) == config
    with pytest.raises(ValueError, match="model_type is 'PixArt'"):
        STDiT2Config.from_hub_dict({"model_type": "PixArt"})


@pytest.mark.parametrize(("hidden_size", "num_heads", "word"), [(64, 4, "by 3"), (90, 3, "by 4"), (144, 5, "by 5")])
def test_config_rejects_indivisible_width(hidden_size: int, num_heads: int, word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        STDiT2Config(hidden_size=hidden_size, num_heads=num_heads)


def test_config_and_geometry_need_no_torch() -> None:
    code = "import sys, model.config, model.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_blocks_compile_without_graph_breaks(small_network: STDiT2) -> None:
    small_network.text_layout = "padded"
    arguments = small_arguments()
    with torch.no_grad():
        expected = small_network(**arguments)
        for block in small_network.blocks:
            block.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(small_network(**arguments), expected, atol=1e-5, rtol=1e-4)


def test_autocast_trains_in_bfloat16(small_network: STDiT2) -> None:
    arguments = small_arguments() | {"x_mask": torch.tensor([[True, False, True], [True, True, True]])}
    exact = small_network(**arguments).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = small_network(**arguments)
    assert out.dtype == torch.float32
    assert float((out - exact).detach().abs().mean() / exact.abs().mean()) < 0.05
    out.square().mean().backward()
    gradients = [p.grad for p in small_network.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)
