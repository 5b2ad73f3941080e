"""The norms of the network with what follows them: SiLU, modulation by time, AdaLN.

Each function has two bodies with one result: one that carries gradients, and one for inference that goes over memory as
few times as torch's operators allow. Statistics are in float32. Where memory is laid out plane by plane
(``empty_planes``), a convolution can read each slice without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.model.resample import concatenate, pairs, spread

EPSILON = 1e-6


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x * rsqrt(mean(x^2) + 1e-6) * weight`` over the last axis."""
    if torch.is_grad_enabled():
        return F.rms_norm(x.float(), (x.shape[-1],), weight.flatten().float(), EPSILON).to(x.dtype)
    return (x * inverse_rms([x], None)).mul_(weight.flatten()).to(x.dtype)


def norm_silu(features: Sequence[Tensor], genes: Tensor | None, weight: Tensor, planes: bool = False) -> Tensor:
    """SiLU of the RMSNorm of the channel-wise concatenation, which inference does not build.

    Args:
        features: (N, H, W, Z, ci) each.
        genes: (N, H/2, W/2, Z, cg), upsampled and concatenated last, or None.
        weight: I values, I the sum of all channels.
        planes: lay the result out plane by plane.

    Returns:
        (N, H, W, Z, I).
    """
    if torch.is_grad_enabled():
        return F.silu(rms_norm(concatenate(features, genes), weight))
    factor = inverse_rms(features, genes)  # (N, H, W, Z, 1) float32
    normed = factor.new_empty(*factor.shape[:-1], weight.numel())
    start = 0
    for part in features:
        torch.mul(part, factor, out=normed[..., start : (start := start + part.shape[-1])])
    if genes is not None:
        torch.mul(spread(genes), pairs(factor), out=pairs(normed)[..., start:])
    normed.mul_(weight.flatten())
    return _silu(normed, features[0].dtype, planes)


def modulated_silu(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, planes: bool = False) -> Tensor:
    """``SiLU(RMSNorm(x) * (1 + scale) + shift)``.

    Args:
        x: (N, H, W, Z, C).
        weight: C values.
        scale: (N, 1, 1, 1, C).
        shift: (N, 1, 1, 1, C).
        planes: lay the result out plane by plane.
    """
    if torch.is_grad_enabled():
        return F.silu(rms_norm(x, weight) * (1 + scale) + shift)
    normed = x * inverse_rms([x], None)  # (N, H, W, Z, C) float32
    torch.addcmul(shift.float(), normed, weight.flatten() * (1 + scale.float()), out=normed)
    return _silu(normed, x.dtype, planes)


def adaptive_norm(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """AdaLN: ``RMSNorm(x) * (1 + scale) + shift`` for x (N, H, W, Z, C), scale and shift (N, H/2, W/2, Z, C)."""
    if torch.is_grad_enabled():
        return (pairs(rms_norm(x, weight)) * (1 + spread(scale)) + spread(shift)).reshape(x.shape)
    normed = x * inverse_rms([x], None)  # (N, H, W, Z, C) float32
    gain = weight.flatten() * (1 + scale.float())  # (N, H/2, W/2, Z, C)
    torch.addcmul(spread(shift.float()), pairs(normed), spread(gain), out=pairs(normed))
    return normed.to(x.dtype)


def inverse_rms(features: Sequence[Tensor], genes: Tensor | None) -> Tensor:
    """``rsqrt(mean(x^2) + 1e-6)`` over the channels of a concatenation, see ``norm_silu``; (..., 1) float32."""
    channels = sum(part.shape[-1] for part in features)
    squares = _sum_of_squares(features[0])
    for part in features[1:]:
        squares += _sum_of_squares(part)
    if genes is not None:
        channels += genes.shape[-1]
        pairs(squares).add_(spread(_sum_of_squares(genes)))
    return squares.div_(channels).add_(EPSILON).rsqrt_()


def _sum_of_squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()


def _silu(x: Tensor, dtype: torch.dtype, planes: bool) -> Tensor:
    """SiLU of a float32 tensor that is not needed any more."""
    if not planes:
        return F.silu(x, inplace=True).to(dtype)
    out = empty_planes(x.shape, dtype)
    if dtype == x.dtype:
        return torch.ops.aten.silu.out(x, out=out)
    return out.copy_(F.silu(x, inplace=True))


def empty_planes(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised (N, H, W, Z, C) that lies in memory as (Z, N, H, W, C), on the CPU."""
    n, h, w, z, c = shape
    return torch.empty(z, n, h, w, c, dtype=dtype).permute(1, 2, 3, 0, 4)
