"""Single layers against reference results."""

import pytest
import torch
from torch import nn

from model.attention import (
    Attention,
    CrossAttention,
    PackedText,
    PaddedText,
    RMSNorm,
    RotaryEmbedding,
)
from model.cpu_kernels import multiply_add
from model.kernels import (
    Available,
    attention,
    available_kernels,
    choose_kernel,
    choose_packed_kernel,
    chosen_kernels,
    packed_attention,
)
from model.layers import (
    CaptionEmbedder,
    FinalLayer,
    PatchEmbed3D,
    PositionEmbedding2D,
    SizeEmbedder,
    TimestepEmbedder,
    sinusoidal_embedding,
)
from tests.parity import load_case

ATOL = 1e-5


def load_layer(layer: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the case's weights of one layer, all keys required."""
    names = layer.state_dict()
    layer.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in names})


def test_rotary_matches_reference() -> None:
    meta, tensors = load_case("rotary")
    for case in meta["cases"]:
        name = f"{case['case']:02d}"
        rotary = RotaryEmbedding(case["shape"][-1])
        torch.testing.assert_close(rotary.freqs.detach(), tensors[f"{name}.freqs"])
        assert not rotary.freqs.requires_grad
        tolerance = 5e-5 if case["shape"][2] > 100 else ATOL
        out = rotary(tensors[f"{name}.in.q"])
        torch.testing.assert_close(out, tensors[f"{name}.out"], atol=tolerance, rtol=0)


def test_rotary_in_bfloat16_rounds_every_step() -> None:
    rotary = RotaryEmbedding(72).bfloat16()
    table = rotary.table(6)
    angle = torch.tensor(5.0, dtype=torch.bfloat16) * rotary.freqs[1]
    assert float(angle) == 3.875
    assert table.cos.dtype == torch.bfloat16 and table.cos[5, 1] == angle.cos()
    x = torch.randn(1, 2, 6, 72, generator=torch.Generator().manual_seed(0))
    exact = RotaryEmbedding(72)(x)
    assert rotary(x.bfloat16()).dtype == torch.bfloat16
    assert float((rotary(x.bfloat16()).float() - exact).abs().mean()) < 0.02


def test_position_table_matches_reference() -> None:
    meta, tensors = load_case("pos_embed")
    for case in meta["cases"]:
        table = PositionEmbedding2D(case["dim"])(case["H"], case["W"], case["scale"], case["base_size"])
        torch.testing.assert_close(table, tensors[f"{case['case']:02d}.out"], atol=ATOL, rtol=0)


def test_position_table_golden_numbers() -> None:
    table = PositionEmbedding2D(1152)(15, 27, scale=(240 * 426) ** 0.5 / 512, base_size=20)[0]
    channels = [0, 1, 288, 289, 576, 577, 864, 865]
    expected = {
        1: [0.926917, 0.912265, 0.375266, 0.409601, 0, 0, 1, 1],
        27: [0, 0, 1, 1, 0.845014, 0.879013, -0.534745, -0.476798],
        404: [-0.545520, -0.999732, 0.838098, 0.023150, -0.998992, -0.624839, 0.044883, -0.780754],
    }
    for token, values in expected.items():
        assert table[token, channels].tolist() == pytest.approx(values, abs=1e-5)
    rounded = PositionEmbedding2D(1152)(15, 27, (240 * 426) ** 0.5 / 512, 20, frequency_dtype=torch.bfloat16)
    assert float((rounded - table).abs().max()) == pytest.approx(0.054, abs=0.003)


def test_position_table_made_while_sampling_serves_training() -> None:
    embedding = PositionEmbedding2D(8)
    with torch.inference_mode():
        embedding(3, 7, 0.77)
    scale = torch.ones(8, requires_grad=True)
    (embedding(3, 7, 0.77) * scale).sum().backward()
    assert scale.grad is not None


def test_scalar_embedders_match_reference() -> None:
    _, tensors = load_case("embedders")
    for dim in (256, 16, 9):
        out = sinusoidal_embedding(tensors["in.t"], dim)
        torch.testing.assert_close(out, tensors[f"out.sinusoid.dim{dim}"], atol=ATOL, rtol=0)
    timesteps = TimestepEmbedder(72)
    load_layer(timesteps, tensors, "t_embedder")
    torch.testing.assert_close(timesteps(tensors["in.t"]), tensors["out.t_embedder"], atol=ATOL, rtol=0)
    sizes = SizeEmbedder(24)
    load_layer(sizes, tensors, "size_embedder")
    values = tensors["in.sizes"]
    torch.testing.assert_close(sizes(values), tensors["out.size_embedder"], atol=ATOL, rtol=0)
    torch.testing.assert_close(sizes(values, 8), tensors["out.size_embedder_bs_times_2"], atol=ATOL, rtol=0)
    torch.testing.assert_close(sizes(values[:, 0]), tensors["out.size_embedder_1d"], atol=ATOL, rtol=0)


def test_sinusoid_golden_numbers() -> None:
    features = sinusoidal_embedding(torch.tensor([999]), 256)[0]
    assert features[:4].tolist() == pytest.approx([0.9996, 0.9638, -0.3990, 0.7048], abs=1e-4)
    assert features[128:132].tolist() == pytest.approx([-0.0265, -0.2667, -0.9169, 0.7094], abs=1e-4)


def test_caption_embedder_matches_reference() -> None:
    _, tensors = load_case("embedders")
    captions = CaptionEmbedder(10, 72, 6)
    load_layer(captions, tensors, "y_embedder")
    y = tensors["in.y"]
    torch.testing.assert_close(captions(y), tensors["out.y_embedder"], atol=ATOL, rtol=0)
    dropped = captions(y, tensors["in.force_drop_ids"])
    torch.testing.assert_close(dropped, tensors["out.y_embedder_dropped"], atol=ATOL, rtol=0)


@pytest.mark.parametrize(("kind", "rotary"), [("attn_spatial", None), ("attn_temporal", RotaryEmbedding(18))])
def test_self_attention_matches_reference(kind: str, rotary: RotaryEmbedding | None) -> None:
    _, tensors = load_case("layers")
    layer = Attention(72, 4, qk_norm=True)
    load_layer(layer, tensors, kind)
    out = layer(tensors[f"{kind}.in"], rotary)
    torch.testing.assert_close(out, tensors[f"{kind}.out"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_over_frames_is_attention_over_tokens_of_the_transposed(qk_norm: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(24, 2, qk_norm)
    rotary = RotaryEmbedding(12)
    for frames in (1, 5):
        x = torch.randn(2, frames, 3, 24)
        by_sequence = layer(x.transpose(1, 2).flatten(0, 1), rotary).view(2, 3, frames, 24).transpose(1, 2)
        torch.testing.assert_close(layer.over_frames(x, rotary), by_sequence)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_cross_attention_matches_reference(layout: str) -> None:
    _, tensors = load_case("layers")
    layer = CrossAttention(72, 4)
    load_layer(layer, tensors, "cross_attn")
    tokens, lengths = tensors["cross_attn.in.cond"][0], tuple(tensors["cross_attn.in.lens"].tolist())
    text: PackedText | PaddedText = PackedText(tokens, lengths)
    if layout == "padded":
        rows = torch.randn(3, max(lengths), 72)
        bias = torch.full((3, 1, 1, max(lengths)), -torch.inf)
        for sample, part in enumerate(tokens.split(lengths)):
            rows[sample, : len(part)] = part
            bias[sample, ..., : len(part)] = 0
        text = PaddedText(rows, bias)
    out = layer(tensors["cross_attn.in.x"], text)
    torch.testing.assert_close(out, tensors["cross_attn.out"], atol=ATOL, rtol=0)


def test_final_layer_matches_reference() -> None:
    _, tensors = load_case("layers")
    layer = FinalLayer(72, 4, 8)
    load_layer(layer, tensors, "final_layer")
    x, t = tensors["final_layer.in.x"].view(3, 6, 5, 72), tensors["final_layer.in.t"]
    torch.testing.assert_close(layer(x, t).flatten(1, 2), tensors["final_layer.out.nomask"], atol=ATOL, rtol=0)
    masked = layer(x, t, tensors["final_layer.in.x_mask"], tensors["final_layer.in.t0"])
    torch.testing.assert_close(masked.flatten(1, 2), tensors["final_layer.out.masked"], atol=ATOL, rtol=0)


@pytest.mark.parametrize(("name", "patch_size"), [("patch122", (1, 2, 2)), ("patch222", (2, 2, 2))])
def test_patch_embedding_matches_reference(name: str, patch_size: tuple[int, int, int]) -> None:
    _, tensors = load_case("layers")
    layer = PatchEmbed3D(patch_size, 3, 72)
    load_layer(layer, tensors, name)
    torch.testing.assert_close(layer(tensors[f"{name}.in"]), tensors[f"{name}.out"], atol=ATOL, rtol=0)


def test_rms_norm_formula() -> None:
    norm = RMSNorm(6)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_keys", [7, 600])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_kernels_agree_with_the_formula(dtype: torch.dtype, num_keys: int, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 4, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 3, num_keys, 8, generator=generator, dtype=torch.float64)
    bias = torch.zeros(2, 1, 1, num_keys, dtype=torch.float64)
    bias[1, ..., num_keys // 2 :] = -torch.inf
    expected = (q @ k.mT * (scale or 8**-0.5) + bias).softmax(-1) @ v
    out = attention(q.to(dtype), k.to(dtype), v.to(dtype), bias.to(dtype), scale)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_kernel_choice_by_device_and_length() -> None:
    assert choose_kernel("cpu", torch.float32, 64) == "bmm"
    assert choose_kernel("cpu", torch.bfloat16, 256) == "bmm"
    assert choose_kernel("cpu", torch.float32, 1024) == "sdpa"
    assert choose_kernel("cpu", torch.bfloat16, 1024) == "sdpa"
    assert choose_kernel("cuda", torch.bfloat16, 8) == "sdpa"


def test_flash_attention_is_taken_where_it_can_be() -> None:
    both = Available(flash_attn=True, varlen=True)
    assert choose_kernel("cuda", torch.bfloat16, 8, head_dim=72, available=both) == "flash-attn"
    assert choose_kernel("cuda", torch.bfloat16, 8, head_dim=72, biased=True, available=both) == "sdpa"
    assert choose_kernel("cuda", torch.float32, 8, head_dim=72, available=both) == "sdpa"
    assert choose_kernel("cuda", torch.bfloat16, 8, head_dim=12, available=both) == "sdpa"
    assert choose_kernel("cpu", torch.bfloat16, 8, available=both) == "bmm"
    assert choose_packed_kernel("cuda", torch.bfloat16, 72, 1, both) == "flash-attn"
    assert choose_packed_kernel("cuda", torch.bfloat16, 72, 1, Available(varlen=True)) == "varlen"
    assert choose_packed_kernel("cuda", torch.bfloat16, 72, 1, Available()) == "loop"
    assert choose_packed_kernel("cuda", torch.bfloat16, 72, 0, both) == "loop"
    assert choose_packed_kernel("cuda", torch.float32, 72, 1, both) == "loop"
    assert choose_packed_kernel("cpu", torch.bfloat16, 72, 1, both) == "loop"


def test_packed_keys_are_each_sample_s_own() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 5, 8, generator=generator)
    k, v = torch.randn(2, 6, 2, 8, generator=generator)
    out = packed_attention(q, k, v, (2, 0, 4))
    for sample, keys in ((0, slice(0, 2)), (2, slice(2, 6))):
        scores = q[sample] @ k[keys].permute(1, 2, 0) * 8**-0.5
        torch.testing.assert_close(out[sample], scores.softmax(-1) @ v[keys].transpose(0, 1))
    assert not out[1].any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU has")
def test_no_kernel_for_cuda_is_available_without_one() -> None:
    assert available_kernels() == Available()


@pytest.mark.parametrize(("frames", "tokens"), [(5, 6), (1, 4), (3, 140), (140, 3)])
@pytest.mark.parametrize("direction", ["over_tokens", "over_frames"])
def test_float32_gradients_equal_those_of_the_plain_formula(frames: int, tokens: int, direction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Attention(24, 2, qk_norm=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(2, frames, tokens, 24, generator=generator)
    out_weight = torch.randn(x.shape, generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.float64):  # float64 takes the plain formulas
        layer = layer.to(dtype).requires_grad_()
        layer.zero_grad()
        entry = x.detach().to(dtype, copy=True).requires_grad_()
        rotary = RotaryEmbedding(12).to(dtype) if direction == "over_frames" else None
        (getattr(layer, direction)(entry, rotary) * out_weight).sum().backward()
        gradients.append({"x": entry.grad, **{name: p.grad for name, p in layer.named_parameters()}})
    for name, exact in gradients[1].items():
        assert exact is not None
        torch.testing.assert_close(
            gradients[0][name].double(), exact, atol=2e-5 * float(exact.abs().max()) + 1e-6, rtol=1e-3
        )


@pytest.mark.parametrize("base_shape", [(2, 3, 1, 4), (2, 1, 1, 4), (2, 3, 5, 4)])
def test_multiply_add_gradients(base_shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (base_shape, (2, 1, 1, 4), (2, 3, 5, 4))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(multiply_add, inputs)
    torch.testing.assert_close(multiply_add(*inputs), inputs[0] + inputs[1] * inputs[2])


def test_kernel_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    q = torch.randn(1, 1, 3, 22)
    keys = torch.randn(1, 1, 300, 22)
    with caplog.at_level("INFO", logger="model.kernels"):
        for _ in range(2):
            attention(q, q, q)
            attention(q, keys, keys)
    expected = (
        "bmm on cpu, torch.float32, 22 channels per head",
        "sdpa (flash_attention) on cpu, torch.float32, 22 channels per head",
    )
    assert [record.getMessage() for record in caplog.records] == [f"attention: {kind}" for kind in expected]
    assert set(expected) <= set(chosen_kernels())
