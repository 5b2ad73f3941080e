"""The norms of the network with what follows them: SiLU, modulation by time, AdaLN.

Each function has two bodies with one result: one that carries gradients, and one for inference that goes over memory as
few times as torch's operators allow. Statistics are in float32. Where memory is laid out plane by plane
(``empty_planes``), a convolution can read each slice without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from teramind.model.resample import concatenate, pairs, spread

EPSILON = 1e-6


class _Normalise(torch.autograd.Function):
    """``x * factor * gain + shift`` with ``factor = rsqrt(mean(x^2) + 1e-6)``, see ``normalise``.

    Composed of torch's operators, its gradient goes over activations about 20 times; here it is 8, two of them matrix
    products. Arguments are (N, M, C), (N or 1, 1, C) and the same or None, all float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
        factor = inverse_rms([x], None)  # (N, M, 1)
        ctx.save_for_backward(x, gain, factor)
        ctx.is_shared = [value is not None and value.shape[0] == 1 < x.shape[0] for value in (gain, shift)]
        return _scale_and_shift(x, factor, gain, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, gain, factor = ctx.saved_tensors
        of_gain, of_shift = None, None
        products = gradient * x  # (N, M, C)
        n, m, channels = x.shape
        of_gain = factor.reshape(n, 1, m) @ products  # (N, 1, C)
        dots = products @ gain.transpose(1, 2).expand(n, channels, 1)  # (N, M, 1)
        if ctx.needs_input_grad[2]:
            of_shift = gradient.sum(dim=1, keepdim=True)  # (N, 1, C)
        gain_shared, shift_shared = ctx.is_shared
        if gain_shared:
            of_gain = of_gain.sum(dim=0, keepdim=True)
        if of_shift is not None and shift_shared:
            of_shift = of_shift.sum(dim=0, keepdim=True)
        of_x = torch.mul(gradient, gain, out=products).mul_(factor)
        of_x.addcmul_(x, dots.mul_(factor**3 / -channels))
        return of_x, of_gain, of_shift


def normalise(x: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
    """``RMSNorm(x) * gain + shift`` in float32: x (N, ..., C), gain and shift (N, 1, ..., 1, C) or (C,)."""
    if not torch.is_grad_enabled():
        return _scale_and_shift(x, inverse_rms([x], None), gain, shift)
    channels = x.shape[-1]
    flat = [None if value is None else value.float().reshape(-1, 1, channels) for value in (gain, shift)]
    rows = x.float().reshape(x.shape[0], -1, channels)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _Normalise.apply(rows, *flat)  # type: ignore[no-untyped-call]
    return out.reshape(x.shape)


def _scale_and_shift(x: Tensor, factor: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
    normed = x * factor
    return normed.mul_(gain) if shift is None else torch.addcmul(shift, normed, gain, out=normed)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x * rsqrt(mean(x^2) + 1e-6) * weight`` over the last axis."""
    return normalise(x, weight.flatten()).to(x.dtype)


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
    normed = normalise(x, weight.flatten() * (1 + scale.float()), shift.float())  # (N, H, W, Z, C)
    if torch.is_grad_enabled():
        return F.silu(normed.to(x.dtype))
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
    if x.dtype == torch.float64:
        x = x.float()  # vector_norm does not narrow
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()


def _silu(x: Tensor, dtype: torch.dtype, planes: bool) -> Tensor:
    """SiLU of a float32 tensor that is not needed any more."""
    if not planes:
        return F.silu(x, inplace=True).to(dtype)
    out = empty_planes(x.shape, dtype, x.device)
    if dtype == x.dtype:
        return torch.ops.aten.silu.out(x, out=out)
    return out.copy_(F.silu(x, inplace=True))


def empty_planes(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised (N, H, W, Z, C) that lies in memory as (Z, N, H, W, C)."""
    n, h, w, z, c = shape
    return torch.empty(z, n, h, w, c, dtype=dtype, device=device).permute(1, 2, 3, 0, 4)
