"""Plain-torch operations on ``(N, H, W, Z, C)`` that the references share with the network.

Half and double resolution in plane, concatenation with genes at half resolution, and the grid of patches that is
shifted by half a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def concatenated(features: Sequence[Tensor], genes: Tensor | None) -> Tensor:
    """Features (N, H, W, Z, ci) and genes (N, H/2, W/2, Z, cg) -> (N, H, W, Z, I)."""
    parts = [*features] if genes is None else [*features, upsample(genes)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


class _Upsample(torch.autograd.Function):
    """Nearest upsampling; torch's own gradient of it, a sum over two inner axes, takes five times as long."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        n, h, w, z, c = x.shape
        return spread(x).expand(n, h, 2, w, 2, z, c).reshape(n, 2 * h, 2 * w, z, c)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return sum_blocks(gradient)


def upsample(x: Tensor) -> Tensor:
    """Nearest upsampling x2 in plane: (N, h, w, Z, C) -> (N, 2h, 2w, Z, C)."""
    out: Tensor = _Upsample.apply(x)
    return out


def pairs(x: Tensor) -> Tensor:
    """(N, H, W, Z, C) -> (N, H/2, 2, W/2, 2, Z, C), a view."""
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def spread(x: Tensor) -> Tensor:
    """Half resolution, as it broadcasts against ``pairs``: (N, h, w, Z, C) -> (N, h, 1, w, 1, Z, C)."""
    return x[:, :, None, :, None]


def sum_blocks(x: Tensor) -> Tensor:
    """Sums over 2x2 px: (N, H, W, Z, C) -> (N, H/2, W/2, Z, C)."""
    blocks = pairs(x)  # (N, H/2, 2, W/2, 2, Z, C)
    top, bottom = (blocks[:, :, row, :, 0] + blocks[:, :, row, :, 1] for row in (0, 1))
    return top + bottom


def average_pool(x: Tensor) -> Tensor:
    """Means over 2x2 px: (N, H, W, Z, C) -> (N, H/2, W/2, Z, C)."""
    return sum_blocks(x) * 0.25


def shift(grid: Tensor) -> Tensor:
    """Features of encoder patches -> those of the decoder patches between them.

    Laid out as an image, cropped by half a patch on each side and cut again, every decoder patch takes a quarter of
    each of four encoder patches. (..., n, m, p, p, Z, C) -> (patches, p, p, Z, C), row-major; p is even.
    """
    between = grid.shape[-6] - 1
    return shift_between(grid.narrow(-6, 0, between), grid.narrow(-6, 1, between)).flatten(0, -5)


def shift_between(above: Tensor, below: Tensor) -> Tensor:
    """``shift`` for rows of encoder patches and those below them: (..., m, p, p, Z, C) twice -> (..., m-1, ...)."""
    *leading, columns, p, _, z, c = above.shape
    half = p // 2
    out = above.new_empty(*leading, columns - 1, p, p, z, c)
    first, second = slice(0, half), slice(half, p)
    before, after = slice(0, -1), slice(1, None)
    for rows, target_y, source_y in ((above, first, second), (below, second, first)):
        for column, target_x, source_x in ((before, first, second), (after, second, first)):
            out[..., target_y, target_x, :, :] = rows[..., column, source_y, source_x, :, :]
    return out
