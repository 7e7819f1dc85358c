"""The network's training step: over a large matmul, in bf16 over fp32, and over a public network of equal size.

On a CPU the network has XL/2's width and heads but few blocks; on a GPU it is XL/2 itself at a stage's shapes
(`tests.benchmarks.stage_shapes`). The peer is Latte as in `diffusers`: a pair of blocks (spatial, temporal) for each
of ours, so it spends more arithmetic on the same tokens; the figures say how much time each takes, and how much of
the matmul's speed each reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import LatteTransformer3DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.config import STDiT2Config
from model.metrics import training_flops
from model.parallel import Ranks, parallelize
from model.stdit2 import STDiT2
from tests.benchmarks import stage_shapes
from tests.benchmarks.measuring import Figure, Settings, by_turns, matmul


@dataclass(frozen=True)
class Shape:
    """A batch of square clips in pixels (the peer's position table is square)."""

    batch: int
    frames: int
    side: int

    def __str__(self) -> str:
        kind = "images" if self.frames == 1 else "videos"
        return f"{kind} {self.batch} x {self.frames} x {self.side} x {self.side}"


def run(settings: Settings) -> list[Figure]:
    """Training steps, forward and backward."""
    if settings.device == "cuda":
        return stage_shapes.run(settings)
    config = STDiT2Config(depth=2, qk_norm=True, input_sq_size=512)
    shapes, matmul_side = (Shape(4, 1, 192), Shape(1, 16, 192)), 2048
    if settings.toy:
        config = config.model_copy(
            update={"hidden_size": 48, "depth": 1, "num_heads": 4, "caption_channels": 8, "model_max_length": 6}
        )
        shapes, matmul_side = (Shape(2, 1, 32), Shape(1, 4, 32)), 64
    figures = []
    for shape in shapes:
        figures += measure_shape(config, shape, matmul_side, settings)
    return figures


def measure_shape(config: STDiT2Config, shape: Shape, matmul_side: int, settings: Settings) -> list[Figure]:
    """All ratios at one batch shape."""
    network, inputs = ours(config, shape)
    other, other_inputs = peer(config, shape)
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: step(network, inputs),
        "peer": lambda: step(other, other_inputs),
        "matmul": lambda: matmul(matmul_side, torch.float32),
    }
    if has_bf16():
        cases["ours bf16"] = lambda: step(network, inputs, bf16=True)
        cases["peer bf16"] = lambda: step(other, other_inputs, bf16=True)
        cases["matmul bf16"] = lambda: matmul(matmul_side, torch.bfloat16)
    if settings.compiled:
        compiled, _ = ours(config, shape, compile_blocks=True)
        cases["ours compiled"] = lambda: step(compiled, inputs)
    flops = shape.batch * training_flops(config, shape.frames, shape.side, shape.side, config.model_max_length)
    peer_flops, matmul_flops = 3 * peer_forward_flops(config, shape), 2 * matmul_side**3

    timings = by_turns(cases, settings, f"network, {shape}")
    ratio = timings.speed_ratio
    figures = [
        timings.rate("ours", 0, f"{shape}: training step", "s"),
        timings.rate("ours", flops / 1e9, f"{shape}: arithmetic done", "GFLOP/s"),
        Figure(f"{shape}: peer's arithmetic over ours", peer_flops / flops),
        ratio("ours", "matmul", f"{shape}: over a {matmul_side}-square matmul, FLOP/s", flops, matmul_flops),
        ratio("peer", "matmul", f"{shape}: the peer over the same matmul, FLOP/s", peer_flops, matmul_flops),
        ratio("ours", "peer", f"{shape}: ours over the peer, steps/s"),
    ]
    if "ours bf16" in cases:
        figures += [
            ratio("ours bf16", "ours", f"{shape}: bf16 over fp32, steps/s"),
            ratio("ours bf16", "matmul bf16", f"{shape}: bf16 over a bf16 matmul, FLOP/s", flops, matmul_flops),
            ratio("peer bf16", "matmul bf16", f"{shape}: the peer, bf16 over the same", peer_flops, matmul_flops),
            ratio("ours bf16", "peer bf16", f"{shape}: ours over the peer in bf16, steps/s"),
        ]
    if settings.compiled:
        figures.append(ratio("ours compiled", "ours", f"{shape}: compiled over eager, steps/s"))
    return figures


def ours(config: STDiT2Config, shape: Shape, *, compile_blocks: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """Our network in training mode and its inputs."""
    network = STDiT2(config)
    generator = torch.Generator().manual_seed(0)
    network.initialize(generator)
    numbers = {"num_frames": shape.frames, "height": shape.side, "width": shape.side, "ar": 1.0, "fps": 24.0}
    text = torch.randn(shape.batch, 1, config.model_max_length, config.caption_channels, generator=generator)
    inputs = {
        "x": random_latents(config, shape),
        "timestep": torch.full((shape.batch,), 500.0),
        "y": text,
        **{name: torch.full((shape.batch,), float(value)) for name, value in numbers.items()},
    }
    return parallelize(network.train(), Ranks(), compile_blocks=compile_blocks), inputs


def peer(config: STDiT2Config, shape: Shape) -> tuple[nn.Module, dict[str, Tensor]]:
    """Latte with our width, heads and depth, and its inputs."""
    inputs = {
        "hidden_states": random_latents(config, shape),
        "timestep": torch.full((shape.batch,), 500),
        "encoder_hidden_states": torch.randn(shape.batch, config.model_max_length, config.caption_channels),
    }
    return latte(config, shape).train(), inputs


def latte(config: STDiT2Config, shape: Shape) -> nn.Module:
    """`diffusers`' Latte, set as its released weights are but for the sizes."""
    return LatteTransformer3DModel(  # type: ignore[no-untyped-call, return-value]
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        cross_attention_dim=config.hidden_size,
        attention_bias=True,
        sample_size=shape.side // 8,
        patch_size=config.patch_size[1],
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=config.caption_channels,
        video_length=shape.frames,
    )


def random_latents(config: STDiT2Config, shape: Shape) -> Tensor:
    """(B, C, T, h, w) of the shape."""
    return torch.randn(shape.batch, config.in_channels, shape.frames, shape.side // 8, shape.side // 8)


def step(network: nn.Module, inputs: dict[str, Tensor], *, bf16: bool = False) -> None:
    """Forward and backward pass of one batch; gradients are dropped as an optimizer step would."""
    autocast: AbstractContextManager[object] = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with autocast:
        output = network(**inputs)
    prediction = output if isinstance(output, Tensor) else output.sample
    prediction.float().square().mean().backward()
    network.zero_grad(set_to_none=True)


def peer_forward_flops(config: STDiT2Config, shape: Shape) -> int:
    """The peer's forward pass as torch counts it (matrix products), on tensors without memory."""
    with torch.device("meta"):
        network, inputs = peer(config, shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(**inputs)
    return int(counter.get_total_flops())


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers itself."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
