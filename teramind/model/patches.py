"""Regions and patches. Patches are batched row-major: a region of n x m patches gives (B*n*m, ...)."""

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


def repeat_per_patch(x: Tensor, patches: int) -> Tensor:
    """(B, ...) -> (B*patches, ...); a view where B is 1."""
    if x.shape[0] == 1:
        return x.expand(patches, *x.shape[1:])
    return torch.repeat_interleave(x, patches, dim=0)
