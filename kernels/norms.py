"""RMSNorm in plain torch: what the references of the normalising operations share.

There are two bodies with one result: a plain composition, which carries gradients and which torch.compile fuses, and
one that goes over memory as few times as torch's operators allow. Statistics are in float32, of float64 in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from teramind.kernels.layout import pairs, spread

EPSILON = 1e-6


def is_composed() -> bool:
    """Whether references are to be plain compositions of differentiable operators."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


class _Normalise(torch.autograd.Function):
    """``x * factor * gain + shift`` with ``factor = rsqrt(mean(x^2) + 1e-6)``, see ``normalise``.

    Composed of torch's operators, its gradient goes over activations about 20 times; here it is 8, two of them matrix
    products. Arguments are (N, M, C), (N or 1, 1, C) and the same or None, all of one type.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
        factor = rms_factor([x], None)  # (N, M, 1)
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
    """``RMSNorm(x) * gain + shift`` in ``wide_type(x)``: x (N, ..., C), gain and shift (N, 1, ..., 1, C) or (C,)."""
    if not is_composed():
        return _scale_and_shift(x, rms_factor([x], None), gain, shift)
    channels, wide = x.shape[-1], wide_type(x)
    flat = [None if value is None else value.to(wide).reshape(-1, 1, channels) for value in (gain, shift)]
    rows = x.to(wide).reshape(x.shape[0], -1, channels)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _Normalise.apply(rows, *flat)
    return out.reshape(x.shape)


def _scale_and_shift(x: Tensor, factor: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
    normed = x * factor
    return normed.mul_(gain) if shift is None else torch.addcmul(shift, normed, gain, out=normed)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x * rsqrt(mean(x^2) + 1e-6) * weight`` over the last axis."""
    return normalise(x, weight.flatten()).to(x.dtype)


def rms_factor(features: Sequence[Tensor], genes: Tensor | None) -> Tensor:
    """``rsqrt(mean(x^2) + 1e-6)`` over the channels of a concatenation that is not built.

    Args:
        features: (N, H, W, Z, ci) each.
        genes: (N, H/2, W/2, Z, cg), upsampled and concatenated last, or None.

    Returns:
        (N, H, W, Z, 1) in ``wide_type`` of the features.
    """
    channels = sum(part.shape[-1] for part in features)
    squares = _sum_of_squares(features[0])
    for part in features[1:]:
        squares += _sum_of_squares(part)
    if genes is not None:
        channels += genes.shape[-1]
        pairs(squares).add_(spread(_sum_of_squares(genes)))
    return squares.div_(channels).add_(EPSILON).rsqrt_()


def wide_type(x: Tensor) -> torch.dtype:
    """The type that statistics of ``x`` are computed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _sum_of_squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_type(x)).square_()


def silu_in_place(x: Tensor, dtype: torch.dtype, planes: bool) -> Tensor:
    """SiLU of a tensor that is not needed any more, rounded to ``dtype``.

    With ``planes``, (N, H, W, Z, C) lies in memory as (Z, N, H, W, C): convolutions can read each slice without a copy.
    """
    if not planes:
        return F.silu(x, inplace=True).to(dtype)
    n, h, w, z, c = x.shape
    out = torch.empty(z, n, h, w, c, dtype=dtype, device=x.device).permute(1, 2, 3, 0, 4)
    if dtype == x.dtype:
        return torch.ops.aten.silu.out(x, out=out)
    return out.copy_(F.silu(x, inplace=True))
