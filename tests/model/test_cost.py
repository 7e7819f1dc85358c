"""What a step costs: counted parameters and activations agree with torch, fits find what made the numbers."""

import pytest
import torch

import model.kernels
from model.buckets import Bucket
from model.config import STDiT2Config
from model.cost import (
    GIB,
    GPUS,
    Measurement,
    Workload,
    analytic_costs,
    checkpoint_bytes,
    fit_costs,
    parameter_count,
)
from model.stdit2 import STDiT2

XL2 = STDiT2Config(hidden_size=1152, depth=28, num_heads=16, qk_norm=True, model_max_length=200, input_sq_size=512)
SMALL = STDiT2Config(hidden_size=192, depth=2, num_heads=4, qk_norm=True, caption_channels=8, model_max_length=4)


def bucket(num_frames: int = 16, side: int = 256, name: str = "a") -> Bucket:
    return Bucket(name, num_frames, "1.0", side, side, 1.0, 1)


def test_parameters_of_xl2_are_those_that_were_released() -> None:
    assert parameter_count(XL2) == 767_452_100
    assert checkpoint_bytes(XL2) == 4 * (2 * 768_271_300 + 2 * 767_452_100)


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": False}, {"mlp_ratio": 2.5, "pred_sigma": False}, {"in_channels": 8, "depth": 3}]
)
def test_parameters_are_counted_as_torch_counts_them(changes: dict[str, object]) -> None:
    config = SMALL.model_copy(update=changes)
    with torch.device("meta"):
        network = STDiT2(config)
    assert parameter_count(config) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("num_frames", [1, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_torch_keeps(
    num_frames: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.kernels, "CPU_SDPA_MIN_KEYS", {})  # the fused kernel, as on a GPU
    clip = bucket(num_frames, side=128)
    workload = Workload(SMALL, SMALL.model_max_length, checkpointing)
    kept = kept_bytes(SMALL, clip, batch=2, checkpointing=checkpointing)
    if checkpointing:  # what one block keeps while it is recomputed is not there after the forward pass
        whole = Workload(SMALL.model_copy(update={"depth": 1}), 4).activation_bytes(clip)
        kept += round(2 * whole)
    assert 2 * workload.activation_bytes(clip) == pytest.approx(kept, rel=0.25)


def kept_bytes(config: STDiT2Config, clip: Bucket, *, batch: int, checkpointing: bool) -> int:
    """Bytes that the forward pass under bf16 autocast saves for the backward pass, parameters' copies aside."""
    network = STDiT2(config)
    network.initialize(torch.Generator().manual_seed(0))
    network.train().set_activation_checkpointing(checkpointing)
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    sizes = {"num_frames": clip.num_frames, "height": clip.height, "width": clip.width, "ar": 1.0, "fps": 24.0}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        network(
            torch.randn(batch, 4, clip.num_frames, clip.height // 8, clip.width // 8),
            torch.full((batch,), 5.0),
            torch.randn(batch, 1, config.model_max_length, config.caption_channels),
            torch.ones(batch, config.model_max_length, dtype=torch.int64),
            **{name: torch.full((batch,), float(value)) for name, value in sizes.items()},
        )
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    weights = {p.shape for p in network.parameters()} | {p.T.shape for p in network.parameters() if p.ndim == 2}
    kept = (t for key, t in storages.items() if key not in parameters and t.shape not in weights)
    return sum(t.untyped_storage().nbytes() for t in kept)


def test_a_data_sheet_gives_more_time_and_memory_for_more_samples() -> None:
    workload = Workload(XL2, 200)
    cost = analytic_costs(workload, GPUS["h800"])
    # the listed batches of Open-Sora 1.1's stage 1 ran without activation checkpointing on 80 GB
    for clip, listed in ((bucket(16, 192), 6), (bucket(16, 256), 3), (bucket(1, 1024), 3), (bucket(16, 320), 2)):
        assert 45 * GIB < cost.peak_bytes(clip, listed) < 79 * GIB
        assert cost.peak_bytes(clip, listed) < cost.peak_bytes(clip, listed + 1)
        assert 0.1 < cost.seconds(clip, listed) < 0.5
    sharded = analytic_costs(workload, GPUS["h800"], shards=64)
    assert sharded.peak_bytes(bucket(), 1) < cost.peak_bytes(bucket(), 1) - 10 * GIB
    saved = analytic_costs(Workload(XL2, 200, activation_checkpointing=True), GPUS["h800"])
    assert saved.peak_bytes(bucket(), 8) < cost.peak_bytes(bucket(), 8) / 3
    assert saved.seconds(bucket(), 8) == pytest.approx(cost.seconds(bucket(), 8) * 4 / 3, rel=0.1)


def made_up(clip: Bucket, size: int, workload: Workload) -> Measurement:
    work = size * workload.flops(clip)
    rate = 2e-11 if clip.num_frames == 1 else 3e-11
    return Measurement(clip, size, 0.02 + rate * work, 10**8 + int(1.5 * size * workload.activation_bytes(clip)))


def test_a_fit_finds_the_lines_that_made_the_numbers() -> None:
    workload = Workload(SMALL, 4)
    still, video, wide = bucket(1, 64), bucket(8, 64), Bucket("a", 8, "0.5", 48, 96, 1.0, 1)
    probes = [(still, 4), (still, 8), (video, 1), (video, 2)]
    cost = fit_costs(workload, [made_up(clip, size, workload) for clip, size in probes])
    for clip, size in ((still, 100), (video, 30), (wide, 7)):
        expected = made_up(clip, size, workload)
        assert cost.seconds(clip, size) == pytest.approx(expected.seconds)
        assert cost.peak_bytes(clip, size) == pytest.approx(expected.peak_bytes, rel=1e-3)
    other = bucket(4, 64, "never probed")
    assert 0.02 < cost.seconds(other, 2) < cost.seconds(other, 20)


def test_one_probe_shares_the_fixed_part_and_lines_never_fall() -> None:
    workload = Workload(SMALL, 4)
    video, still = bucket(8, 64), bucket(1, 64)
    probes = [made_up(video, 1, workload), made_up(video, 4, workload), made_up(still, 4, workload)]
    cost = fit_costs(workload, probes)
    assert cost.seconds(still, 4) == pytest.approx(probes[2].seconds)
    assert 0 < cost.seconds(still, 0) < probes[2].seconds
    noisy = [Measurement(video, 1, 0.5, 200), Measurement(video, 2, 0.4, 100)]
    falling = fit_costs(workload, noisy)
    assert falling.seconds(video, 1) == falling.seconds(video, 9) == pytest.approx(0.44, abs=0.02)
    through_zero = fit_costs(workload, [Measurement(video, 1, 0.1, 1), Measurement(video, 2, 0.3, 9)])
    assert through_zero.seconds(video, 0) == 0.0


def test_what_did_not_fit_bounds_the_pair() -> None:
    workload = Workload(SMALL, 4)
    video = bucket(8, 64)
    failed = Measurement(video, 8, float("nan"), None)
    cost = fit_costs(workload, [made_up(video, 1, workload), failed])
    assert cost.peak_bytes(video, 7) < float("inf") == cost.peak_bytes(video, 8)
    with pytest.raises(ValueError, match="no probe step fitted"):
        fit_costs(workload, [failed])
