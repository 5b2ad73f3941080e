"""The start noise of the reference implementation, for runs that have to begin where its runs began."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

TILE = 256  # px of the reference's tiles
ROW_WIDTH = 416  # tiles in a row of its seed's formula, whatever the brain's width


def tile_seed(row: int, column: int) -> int:
    """The seed of one 256-px tile."""
    return (1103515245 * (row * ROW_WIDTH + column) + 12345) % 2**31


def tile_noise_field(
    z0: int, y0: int, x0: int, shape: tuple[int, int, int, int], atlas_slices: int
) -> NDArray[np.float32]:
    """Standard normals from torch's CPU generator, seeded per 256-px tile; there is no other seed.

    Each tile draws ``randn(256, 256, stains * slices)`` for all slices of the atlas at once, so the values depend on
    their number.

    Args:
        z0: atlas slice of the first plane.
        y0: px of the first row.
        x0: px of the first column.
        shape: (S, Z, H, W) of the result; planes beyond the atlas are zero.
        atlas_slices: slices of the atlas.
    """
    stains, depth, height, width = shape
    out = np.zeros(shape, np.float32)
    inside = max(0, min(depth, atlas_slices - z0))
    for row in range(y0 // TILE, -(-(y0 + height) // TILE)):
        for column in range(x0 // TILE, -(-(x0 + width) // TILE)):
            generator = torch.Generator().manual_seed(tile_seed(row, column))
            drawn = torch.randn((TILE, TILE, stains * atlas_slices), generator=generator).numpy()
            planes = drawn.reshape(TILE, TILE, stains, atlas_slices).transpose(2, 3, 0, 1)
            top, left = max(y0, row * TILE), max(x0, column * TILE)
            bottom, right = min(y0 + height, (row + 1) * TILE), min(x0 + width, (column + 1) * TILE)
            out[:, :inside, top - y0 : bottom - y0, left - x0 : right - x0] = planes[
                :,
                z0 : z0 + inside,
                top - row * TILE : bottom - row * TILE,
                left - column * TILE : right - column * TILE,
            ]
    return out
