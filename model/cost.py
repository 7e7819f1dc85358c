"""What a training step costs in seconds and bytes, before it runs: from a device's data sheet, or from probe steps.

Both ways end in two straight lines for each (resolution, num_frames): time over arithmetic, memory over counted
activations. Importing this needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from model.buckets import Bucket
from model.config import STDiT2Config
from model.geometry import TIMESTEP_FEATURES, forward_flops, num_tokens

Pair = tuple[str, int]
Precision = Literal["fp32", "bf16"]

BACKWARD_PASSES = 2  # two matrix products of the same size for each one of the forward pass
GIB = 2**30
RESERVED_SHARE = 0.08
"""Of a device's memory, left to its driver and to fragmentation."""
STATE_BYTES = {"fp32": 20, "bf16": 22}
"""Per trainable parameter: weight, gradient, AdamW's two moments and the moving average, 4 each; autocast's copy, 2."""
TRAFFIC_BYTES = 56
"""Per parameter and step: clipping, AdamW and the moving average read and write their float32 tensors once each."""
MEAN_LAUNCH_S = 1.2e-3
"""Least time of a block's forward and backward kernels however little they compute; doubled by recomputation."""
ASSUMED_MFU = 0.35
# Saved for the backward pass, counted with `torch.autograd.graph.saved_tensors_hooks`: bytes per token, block and
# channel, and those per unit of mlp_ratio. Single frames save no temporal queries and keys.
SAVED_BYTES = {"bf16": (93.0, 4.0), "fp32": (109.0, 8.0)}
SAVED_BYTES_LESS_FOR_IMAGES = {"bf16": 26.0, "fp32": 20.0}
SAVED_BYTES_AT_ENDS = 12.0
SAVED_BYTES_OF_TEXT = {"bf16": (6, 10, 4), "fp32": (4, 12, 8)}
"""Per text token and channel of: the text features, the network's width, and that width in each block."""


@dataclass(frozen=True)
class Device:
    """One accelerator as its data sheet describes it.

    Attributes:
        peak_flops_per_s: dense matrix products in bf16.
        memory_bytes: as the driver reports it.
        bandwidth_bytes_per_s: of its memory.
    """

    name: str
    peak_flops_per_s: float
    memory_bytes: int
    bandwidth_bytes_per_s: float


def _device(name: str, teraflops: float, memory_gib: float, terabytes_per_s: float) -> Device:
    return Device(name, teraflops * 1e12, round(memory_gib * GIB), terabytes_per_s * 1e12)


GPUS: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("a100-40", 312, 39.4, 1.56),
        _device("a100-80", 312, 79.2, 2.04),
        _device("b200", 2250, 178.0, 8.0),
        _device("h100", 989, 79.1, 3.35),
        _device("h200", 989, 139.8, 4.8),
        _device("h800", 989, 79.1, 3.35),
        _device("l40s", 362, 44.4, 0.86),
        _device("rtx4090", 165, 23.5, 1.01),
    )
}
"""Vendors' data sheets, without sparsity."""


@dataclass(frozen=True)
class Workload:
    """What one stage computes in a step.

    Attributes:
        text_tokens: of a caption.
    """

    network: STDiT2Config
    text_tokens: int
    activation_checkpointing: bool = False
    precision: Precision = "bf16"

    def tokens(self, bucket: Bucket) -> int:
        """Video tokens of one sample."""
        return num_tokens(bucket.num_frames, bucket.height, bucket.width, patch_size=self.network.patch_size)

    def flops(self, bucket: Bucket) -> int:
        """Operations of one sample's forward and backward pass, the recomputed forward pass included."""
        passes = 1 + BACKWARD_PASSES + self.activation_checkpointing
        size = (bucket.num_frames, bucket.height, bucket.width)
        return passes * forward_flops(self.network, *size, self.text_tokens)

    def activation_bytes(self, bucket: Bucket) -> float:
        """Bytes that one sample keeps for the backward pass, counted on the network's own operations.

        With activation checkpointing a block keeps its float32 input, and one block at a time keeps everything.
        """
        network, d = self.network, self.network.hidden_size
        constant, per_ratio = SAVED_BYTES[self.precision]
        less = SAVED_BYTES_LESS_FOR_IMAGES[self.precision] if bucket.num_frames == 1 else 0.0
        block = d * (constant + per_ratio * network.mlp_ratio - less)
        features, width, per_block = SAVED_BYTES_OF_TEXT[self.precision]
        whole_blocks = 1 if self.activation_checkpointing else network.depth
        inputs = 4 * d * network.depth if self.activation_checkpointing else 0
        video = inputs + whole_blocks * block + d * SAVED_BYTES_AT_ENDS
        text = features * network.caption_channels + d * (width + whole_blocks * per_block)
        return self.tokens(bucket) * video + self.text_tokens * text


@dataclass(frozen=True)
class Measurement:
    """One batch shape as probed.

    Attributes:
        seconds: of one step; nan where it did not fit.
        peak_bytes: during it; None where it did not fit into the device's memory.
    """

    bucket: Bucket
    batch_size: int
    seconds: float
    peak_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether the device's memory sufficed."""
        return self.peak_bytes is not None


@dataclass(frozen=True)
class Line:
    """``fixed + slope * x``."""

    fixed: float
    slope: float

    def __call__(self, x: float) -> float:
        """The value at `x`."""
        return self.fixed + self.slope * x


@dataclass(frozen=True)
class CostModel:
    """Seconds and bytes of a training step for any bucket and batch size.

    Attributes:
        time: seconds over operations of the batch, for each pair that has its own line.
        memory: bytes over counted activations of the batch, likewise.
        any_time, any_memory: for every other pair.
        too_large: activations of the smallest batch of a pair that is known not to fit.
    """

    workload: Workload
    any_time: Line
    any_memory: Line
    time: Mapping[Pair, Line] = field(default_factory=dict)
    memory: Mapping[Pair, Line] = field(default_factory=dict)
    too_large: Mapping[Pair, float] = field(default_factory=dict)

    def seconds(self, bucket: Bucket, batch_size: int) -> float:
        """Predicted time of one step."""
        return self.time.get(pair_of(bucket), self.any_time)(batch_size * self.workload.flops(bucket))

    def peak_bytes(self, bucket: Bucket, batch_size: int) -> float:
        """Predicted peak memory of one step; infinite from where a probe did not fit."""
        activations = batch_size * self.workload.activation_bytes(bucket)
        if activations >= self.too_large.get(pair_of(bucket), math.inf):
            return math.inf
        return self.memory.get(pair_of(bucket), self.any_memory)(activations)


def pair_of(bucket: Bucket) -> Pair:
    """What a line of costs belongs to: (resolution, num_frames), whatever the aspect."""
    return bucket.resolution, bucket.num_frames


def analytic_costs(workload: Workload, device: Device, *, mfu: float = ASSUMED_MFU, shards: int = 1) -> CostModel:
    """Costs from a data sheet: nothing is run, so times are as good as the assumed utilisation.

    Args:
        workload: what is computed.
        device: where.
        mfu: share of the device's peak that the matrix products reach, recomputed ones included.
        shards: ranks over which weights, gradients, moments and moving average are divided.
    """
    parameters, depth = parameter_count(workload.network), workload.network.depth
    launches = depth * MEAN_LAUNCH_S * (1 + workload.activation_checkpointing)
    fixed_s = TRAFFIC_BYTES * parameters / shards / device.bandwidth_bytes_per_s + launches
    state = STATE_BYTES[workload.precision] * parameters / shards
    if shards > 1:  # two blocks are whole at a time, weights and gradients
        state += 2 * 8 * parameters / depth
    return CostModel(workload, Line(fixed_s, 1 / (device.peak_flops_per_s * mfu)), Line(state, 1.0))


def fit_costs(workload: Workload, measurements: Sequence[Measurement]) -> CostModel:
    """Costs from probe steps: a line for each pair, least squares of the relative errors, nothing below zero.

    A pair with one measurement shares the fixed part of the line through all of them; several aspects of one pair
    share its line.

    Raises:
        ValueError: no measurement fitted into memory.
    """

    def activations(m: Measurement) -> float:
        return m.batch_size * workload.activation_bytes(m.bucket)

    fitting = [m for m in measurements if m.fits]
    if not fitting:
        raise ValueError("no probe step fitted into the device's memory; probe smaller batches or a larger device")
    time_points = {id(m): (float(m.batch_size * workload.flops(m.bucket)), m.seconds) for m in fitting}
    memory_points = {id(m): (activations(m), float(m.peak_bytes or 0)) for m in fitting}
    any_time, any_memory = _line(list(time_points.values())), _line(list(memory_points.values()))
    time, memory, too_large = {}, {}, {}
    for pair in {pair_of(m.bucket) for m in measurements}:
        of_pair = [m for m in measurements if pair_of(m.bucket) == pair]
        own = [id(m) for m in of_pair if m.fits]
        if own:
            time[pair] = _line([time_points[i] for i in own], any_time.fixed)
            memory[pair] = _line([memory_points[i] for i in own], any_memory.fixed)
        if len(own) < len(of_pair):
            too_large[pair] = min(activations(m) for m in of_pair if not m.fits)
    return CostModel(workload, any_time, any_memory, time, memory, too_large)


def _line(points: Sequence[tuple[float, float]], fixed: float = 0.0) -> Line:
    """Least squares of (fixed + slope x) / y - 1 with both parts at least zero; `fixed` where only one x is known."""
    total = sum(1 / y**2 for _, y in points)
    mean_x = sum(x / y**2 for x, y in points) / total
    mean_y = sum(1 / y for _, y in points) / total
    spread = sum(((x - mean_x) / y) ** 2 for x, y in points)
    if spread == 0:
        fixed = min(fixed, mean_y)
        return Line(fixed, (mean_y - fixed) / mean_x)
    slope = sum((x - mean_x) * (y - mean_y) / y**2 for x, y in points) / spread
    if slope < 0:
        return Line(mean_y, 0.0)
    if mean_y < slope * mean_x:
        return Line(0.0, sum(x / y for x, y in points) / sum((x / y) ** 2 for x, y in points))
    return Line(mean_y - slope * mean_x, slope)


def parameter_count(network: STDiT2Config) -> int:
    """Parameters of the network, trained or not; the null text is a buffer and not counted."""
    d, mlp = network.hidden_size, int(network.hidden_size * network.mlp_ratio)
    patch = math.prod(network.patch_size)

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def embedder(width: int) -> int:
        return linear(TIMESTEP_FEATURES, width) + linear(width, width)

    self_attention = linear(d, 3 * d) + linear(d, d) + (2 * network.head_dim if network.qk_norm else 0)
    cross_attention = linear(d, d) + linear(d, 2 * d) + linear(d, d)
    block = 2 * self_attention + cross_attention + linear(d, mlp) + linear(mlp, d) + 9 * d
    embedders = 3 * embedder(d) + 2 * embedder(d // 3) + linear(d, 6 * d) + linear(d, 3 * d)
    text = linear(network.caption_channels, d) + linear(d, d)
    ends = linear(network.in_channels * patch, d) + linear(d, network.out_channels * patch) + 2 * d
    return network.depth * block + embedders + text + ends + network.head_dim // 2


def checkpoint_bytes(network: STDiT2Config) -> int:
    """Size of a checkpoint: weights, moving average and AdamW's two moments in float32."""
    parameters, null_text = parameter_count(network), network.model_max_length * network.caption_channels
    return 4 * (2 * (parameters + null_text) + 2 * parameters)
