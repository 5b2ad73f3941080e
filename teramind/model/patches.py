"""Regions, encoder patches and the decoder grid that is shifted by half a patch.

Patches are batched row-major: a region of n x m patches gives (B*n*m, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cut(region: Tensor, size: int) -> Tensor:
    """(B, C, Z, n*size, m*size) -> (B*n*m, size, size, Z, C)."""
    b, c, z, height, width = region.shape
    n, m = height // size, width // size
    patches = region.reshape(b, c, z, n, size, m, size).permute(0, 3, 5, 4, 6, 2, 1)
    return patches.reshape(b * n * m, size, size, z, c)


def join(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of ``cut``: (B*n*m, p, p, Z, C) -> (B, C, Z, n*p, m*p)."""
    _, p, _, z, c = patches.shape
    region = patches.reshape(-1, rows, columns, p, p, z, c).permute(0, 6, 5, 1, 3, 2, 4)
    return region.reshape(-1, c, z, rows * p, columns * p)


def shift(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Features of n x m encoder patches -> those of the (n-1) x (m-1) decoder patches between them.

    Laid out as an image, cropped by half a patch on each side and cut again, every decoder patch takes a quarter of
    each of four encoder patches. (B*n*m, p, p, Z, C) -> (B*(n-1)*(m-1), p, p, Z, C); p is even.
    """
    grid = patches.unflatten(0, (-1, rows, columns))
    return shift_between(grid[:, :-1], grid[:, 1:]).flatten(0, 2)


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


def repeat_per_patch(x: Tensor, patches: int) -> Tensor:
    """(B, ...) -> (B*patches, ...); a view where B is 1."""
    if x.shape[0] == 1:
        return x.expand(patches, *x.shape[1:])
    return torch.repeat_interleave(x, patches, dim=0)
