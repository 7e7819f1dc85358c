"""Hand-written gradients for what dominates training on a CPU beside the matrix products.

Automatic differentiation of the same formulas takes up to three times as many passes over memory.
All functions are exact; tests compare them with the plain formulas.

Shapes: B batch, T frames, S tokens per frame, H heads, d channels per head, N sequences of L tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

# Axes of (B, T, S, 3, H, d) in the order (3, B, T, H, S, d), or (3, B, S, H, T, d) for sequences of frames.
TOKEN_ORDER = (3, 0, 1, 4, 2, 5)
FRAME_ORDER = (3, 0, 2, 4, 1, 5)


def multiply_add(base: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """``base + factor * x``; `base` and `factor` may broadcast to the shape of `x`."""
    if x.device.type != "cpu" or is_compiling() or not base.dtype == factor.dtype == x.dtype:
        return torch.addcmul(base, factor, x)
    out: Tensor = MultiplyAdd.apply(base, factor, x)
    return out


class MultiplyAdd(torch.autograd.Function):
    """``base + factor * x`` without the full-size copy of `x` that the gradient of ``torch.addcmul`` makes."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        """Combine; `base` and `factor` broadcast to `x`."""
        ctx.save_for_backward(factor, x)
        ctx.base_shape = base.shape
        return torch.addcmul(base, factor, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of base, factor and x."""
        factor, x = ctx.saved_tensors
        gradient = gradients[0]
        grad_factor = (gradient * x).sum_to_size(factor.shape)
        return gradient.sum_to_size(ctx.base_shape), grad_factor, gradient * factor


class ShortAttention(torch.autograd.Function):
    """``softmax(q k^T) v`` on (N, L, d) tensors, keeping every gradient contiguous; q carries the scale.

    All three have one type, which scores and weights keep; the softmax computes in float32 inside.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; `q` (N, Lq, d), `k` and `v` (N, Lk, d)."""
        with torch.autocast("cpu", enabled=False):  # the backward pass runs without it too
            weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
            ctx.save_for_backward(q, k, v, weights)
            return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""
        q, k, v, weights = ctx.saved_tensors
        grad_weights = torch.bmm(gradients[0], v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        return (
            torch.bmm(grad_scores, k),
            torch.bmm(grad_scores.transpose(1, 2), q),
            torch.bmm(weights.transpose(1, 2), gradients[0]),
        )


class SplitHeads(torch.autograd.Function):
    """From the joint projection of q, k, v to normalised heads, in float32.

    Rotates q and k (if asked), divides them by their root mean square and multiplies q by `weight`, which holds
    both norms' weights and the softmax scale: only the product of q and k matters.

    With n = x / rms(x) and a gradient g of n: dx = (g - n mean(g n)) / rms(x); the rotation is undone last.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weight: Tensor, rotation: Tensor | None, over_frames: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split `qkv` (B, T, S, 3, H, d).

        Args:
            weight: (d,).
            rotation: (L, d / 2) complex unit numbers, or None.
            over_frames: sequences run over T, else over S.
            eps: added to the mean square.

        Returns:
            q, k, v, each (N, H, L, d) and contiguous.
        """
        order = FRAME_ORDER if over_frames else TOKEN_ORDER
        q_in, k_in, v_in = qkv.permute(order).unbind(0)
        normalised, inverses = [], []
        for x in (q_in, k_in):
            heads = x.contiguous() if rotation is None else _rotate(x, rotation)
            inverse = torch.linalg.vector_norm(heads, dim=-1, keepdim=True)
            inverse = inverse.square_().div_(heads.shape[-1]).add_(eps).rsqrt_()
            normalised.append(torch.mul(heads, inverse) if heads is x else heads.mul_(inverse))
            inverses.append(inverse)
        ctx.save_for_backward(*normalised, *inverses, weight, rotation)
        ctx.order = order
        ctx.shape = qkv.shape
        q, k = normalised
        return (q * weight).flatten(0, 1), k.flatten(0, 1), v_in.contiguous().flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of the joint projection and of the weight."""
        q, k, q_inverse, k_inverse, weight, rotation = ctx.saved_tensors
        grad_q, grad_k, grad_v = gradients
        channels = weight.shape[0]
        grad_qkv = grad_q.new_empty(ctx.shape)
        q_out, k_out, v_out = grad_qkv.permute(ctx.order).unbind(0)
        v_out.copy_(grad_v.view(v_out.shape))
        grad_q, grad_k = grad_q.view(q.shape), grad_k.view(k.shape)
        product = (grad_q * q).reshape(-1, channels)
        grad_weight = product.sum(0)
        dot = torch.mv(product, weight).view_as(q_inverse).div_(-channels)
        _unrotate_into(q_out, (grad_q * weight).addcmul_(q, dot), q_inverse, rotation)
        dot = (grad_k * k).sum(-1, keepdim=True).div_(-channels)
        _unrotate_into(k_out, torch.addcmul(grad_k, k, dot), k_inverse, rotation)
        return grad_qkv, grad_weight, None, None, None


def _as_complex(x: Tensor) -> Tensor:
    """View channel pairs of `x` (..., d) as complex numbers (..., d / 2)."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotated copy of `x` (..., L, d), contiguous whatever the strides of `x`."""
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(_as_complex(x), rotation, out=_as_complex(rotated))
    return rotated


def _unrotate_into(out: Tensor, gradient: Tensor, inverse: Tensor, rotation: Tensor | None) -> None:
    """Write ``gradient * inverse``, turned back, into the strided `out`; overwrites `gradient`."""
    if rotation is None:
        torch.mul(gradient, inverse, out=out)
    else:
        torch.mul(_as_complex(gradient.mul_(inverse)), rotation.conj_physical(), out=_as_complex(out))
