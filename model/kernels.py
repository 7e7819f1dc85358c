"""Softmax attention by whichever kernel is fastest for device, type and length, and which ones that were.

Shapes: B batch, N sequences, H heads, Lq queries, Lk keys, d channels per head.
"""

import logging
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend

from model.cpu_kernels import ShortAttention

logger = logging.getLogger(__name__)

Kernel = Literal["bmm", "sdpa", "flash-attn"]
PackedKernel = Literal["loop", "varlen", "flash-attn"]

# On CPU a fused kernel pays off only from this many keys on; below it two plain batched products are faster.
CPU_SDPA_MIN_KEYS = {torch.float32: 128, torch.bfloat16: 512, torch.float16: 512}
FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_MAX_HEAD_DIM = 256
FLASH_MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Available:
    """Kernels for CUDA that can be called here.

    Attributes:
        flash_attn: the package flash-attn, with its compiled part.
        varlen: torch's attention over sequences of different lengths.
    """

    flash_attn: bool = False
    varlen: bool = False


def available_kernels() -> Available:
    """What really imports here; an installed flash-attn may lack its compiled part."""
    if not _found:
        _found.append(_find_kernels())
    return _found[0]


_found: list[Available] = []  # not functools.cache: torch.compile warns of it


def _find_kernels() -> Available:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < FLASH_MIN_CAPABILITY:
        return Available()
    flash_attn = varlen = True
    try:
        from flash_attn import flash_attn_func, flash_attn_varlen_func  # noqa: F401
    except (ImportError, OSError):  # OSError: built against another torch
        flash_attn = False
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        varlen = False
    return Available(flash_attn, varlen)


def choose_kernel(
    device_type: str,
    dtype: torch.dtype,
    num_keys: int,
    head_dim: int = 64,
    biased: bool = False,
    available: Available | None = None,
) -> Kernel:
    """The fastest kernel for sequences of one length.

    Returns:
        "bmm": two plain batched products. "sdpa": torch's fused attention, which chooses among its own backends
        (flash or cuDNN on CUDA in half precision). "flash-attn": the package of that name.
    """
    if device_type == "cpu":
        return "bmm" if num_keys < CPU_SDPA_MIN_KEYS.get(dtype, 0) else "sdpa"
    available = available or Available()
    if available.flash_attn and not biased and _flash_can(device_type, dtype, head_dim):
        return "flash-attn"
    return "sdpa"


def choose_packed_kernel(
    device_type: str, dtype: torch.dtype, head_dim: int, fewest_keys: int, available: Available
) -> PackedKernel:
    """The fastest kernel for keys of different lengths without padding; "loop" calls one kernel per sample.

    Args:
        fewest_keys: of any sample; the kernels for CUDA are not asked about samples without any.
    """
    if fewest_keys and _flash_can(device_type, dtype, head_dim):
        if available.flash_attn:
            return "flash-attn"
        if available.varlen:
            return "varlen"
    return "loop"


def _flash_can(device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    return (
        device_type == "cuda" and dtype in FLASH_DTYPES and head_dim % 8 == 0 and head_dim <= FLASH_MAX_HEAD_DIM
    )  # fmt: skip


def chosen_kernels() -> tuple[str, ...]:
    """What this process has attended with so far, one sentence for each kind of input."""
    return tuple(_chosen)


_chosen: list[str] = []
_seen: set[tuple[object, ...]] = set()


def _note(kernel: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> None:
    """Log a kernel the first time it meets a kind of input."""
    kind = (kernel, q.device.type, q.dtype, q.shape[-1], bias is not None)
    if kind in _seen:
        return
    _seen.add(kind)
    if kernel == "sdpa":  # torch knows its backend before it runs
        kernel = f"sdpa ({SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=bias)).name.lower()})"
    sentence = f"{kernel} on {q.device.type}, {q.dtype}, {q.shape[-1]} channels per head"
    if sentence not in _chosen:
        _chosen.append(sentence)
        logger.info("attention: %s", sentence)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Softmax attention, exact, by whichever kernel suits device, type and length.

    Args:
        q: (N, H, Lq, d).
        k, v: (N, H, Lk, d).
        bias: (N, 1, 1, Lk) added to the scores, or None.
        scale: factor of the scores; ``d ** -0.5`` when None.

    Returns:
        (N, H, Lq, d), dtype of `v`. The softmax is computed in float32 inside all kernels.
    """
    device_type, head_dim = q.device.type, q.shape[-1]
    available = None if device_type == "cpu" else available_kernels()
    kernel = choose_kernel(device_type, q.dtype, k.shape[-2], head_dim, bias is not None, available)
    if not is_compiling():
        _note(kernel, q, k, v, bias)
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if kernel == "bmm":
        return _short_attention(q, k, v, bias, scale)
    from flash_attn import flash_attn_func

    exact = torch.are_deterministic_algorithms_enabled()
    rows = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out: Tensor = flash_attn_func(*rows, softmax_scale=scale, deterministic=exact)
    return out.transpose(1, 2)


def _short_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads, num_keys = k.shape[1:3]
    queries, keys, values = (tensor.reshape(-1, *tensor.shape[2:]) for tensor in (q, k, v))
    if bias is not None:
        bias = bias.expand(-1, heads, -1, -1).reshape(-1, 1, num_keys)
        weights = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
        return torch.bmm(weights, values).view(q.shape)
    if scale != 1.0:
        queries = queries * scale
    if is_compiling() or not q.dtype == k.dtype == v.dtype:
        return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values).view(q.shape)
    out: Tensor = ShortAttention.apply(queries, keys, values)
    return out.view(q.shape)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attention of each sample's queries to its own keys, all keys in a row.

    Args:
        q: (B, H, Lq, d).
        k, v: (sum of lengths, H, d).
        lengths: keys of each sample.

    Returns:
        (B, H, Lq, d); zeros for a sample without keys.
    """
    kernel = choose_packed_kernel(q.device.type, q.dtype, q.shape[-1], min(lengths), available_kernels())
    if kernel == "loop":
        keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        pieces = zip(q.split(1), keys.split(lengths, 2), values.split(lengths, 2), strict=True)
        return torch.cat(
            [attention(q_b, k_b, v_b) if k_b.numel() else torch.zeros_like(q_b) for q_b, k_b, v_b in pieces]
        )
    batch, heads, num_queries, head_dim = q.shape
    if not is_compiling():
        _note(f"{kernel} over packed keys", q, k, v)
    rows = q.transpose(1, 2).reshape(-1, heads, head_dim)
    ends_q = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * num_queries
    ends_k = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, device=q.device)
    sizes = (ends_q, ends_k, num_queries, max(lengths))
    out: Tensor
    if kernel == "flash-attn":
        from flash_attn import flash_attn_varlen_func

        out = flash_attn_varlen_func(rows, k, v, *sizes, deterministic=torch.are_deterministic_algorithms_enabled())
    else:
        from torch.nn.attention.varlen import varlen_attn

        answer = varlen_attn(rows, k, v, *sizes)
        out = answer if isinstance(answer, Tensor) else answer[0]
    return out.view(batch, num_queries, heads, head_dim).transpose(1, 2)
