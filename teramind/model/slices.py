"""Convolutions over a few slices as 2D convolutions of ``(N, H, W, Z, C)``.

Two ways to be rid of the third dimension, both exact. *Folded*: the Z*C channels of a pixel are one 2D convolution with
a block weight, four blocks at two slices. *Paired*: with a 3-tap z-kernel (k0, k1, k2) on a pair of slices (x0, x1) and
``a = k1 (x0 + x1)``, the outputs are ``a + (k2 - k1) x1`` and ``a + (k0 - k1) x0``: three convolutions, not four.
Between pairs of more slices, two taps reach over: 8 convolutions at four slices, where conv3d multiplies 12 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FOLDED_SLICES = 2  # up to this many slices the folded weight multiplies less than conv3d does


def fold_z(weight: Tensor, slices: int) -> Tensor:
    """(O, I, kz, k, k) with zero-padded z-taps -> the (Z*O, Z*I, k, k) block weight that acts on Z slices at once."""
    outputs, inputs, kz, k, _ = weight.shape
    reach = kz // 2
    blocks = [
        [
            weight[:, :, source - target + reach]
            if abs(source - target) <= reach
            else weight.new_zeros(outputs, inputs, k, k)
            for source in range(slices)
        ]
        for target in range(slices)
    ]
    return torch.cat([torch.cat(row, dim=1) for row in blocks], dim=0)


class PairWeights(NamedTuple):
    """2D weights of the paired form, in whatever layout the convolution reads."""

    both: Tensor  # of the sum of a pair, for both outputs
    to_even: Tensor  # of the odd slice, for the even output
    to_odd: Tensor
    from_below: Tensor | None  # of the odd slice of the pair below, for the even output; None for a single pair
    from_above: Tensor | None


def pair_weights(weight: Tensor, slices: int, prepare: Callable[[Tensor], Tensor]) -> PairWeights:
    """(O, I, 3, k, k) -> the paired form's, differences taken in float32."""
    k0, k1, k2 = weight.unbind(2)
    first, second, third = prepare(k1), prepare(difference(k2, k1)), prepare(difference(k0, k1))  # one at a time
    reaching = (prepare(k0), prepare(k2)) if slices > 2 else (None, None)
    return PairWeights(first, second, third, *reaching)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``, rounded once."""
    return (a.float() - b.float()).to(a.dtype)


class SlicePairs(NamedTuple):
    """The slices 0, 2, ... and 1, 3, ... and their sums as images (Z/2 * N, C, H, W), channels last."""

    even: Tensor
    odd: Tensor
    both: Tensor


def slice_pairs(x: Tensor) -> SlicePairs:
    """(N, H, W, Z, C) -> its pairs; without a copy where a single pair lies plane by plane in memory."""
    planes = x.permute(3, 0, 1, 2, 4)  # (Z, N, H, W, C)
    even, odd = (planes[first::2].contiguous().flatten(0, 1).permute(0, 3, 1, 2) for first in (0, 1))
    return SlicePairs(even, odd, even + odd)


def join_pairs(even: Tensor, odd: Tensor, patches: int, onto: Tensor | None) -> Tensor:
    """Images (Z/2 * N, C, H, W) of the even and odd slices -> (N, H, W, Z, C), added to ``onto`` where given."""
    halves = [half.permute(0, 2, 3, 1).unflatten(0, (-1, patches)).permute(1, 2, 3, 0, 4) for half in (even, odd)]
    if onto is None or torch.is_grad_enabled():
        joined = torch.stack(halves, dim=4).flatten(3, 4)
        return joined if onto is None else onto + joined
    out = torch.empty_like(onto, memory_format=torch.contiguous_format)
    for first, half in enumerate(halves):
        torch.add(onto[:, :, :, first::2], half, out=out[:, :, :, first::2])
    return out
