"""Small squares around cells, drawn many at a time and brought into a tile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.draws import FloatArray
from teramind.atlas.phantom.tile import Plane, Tile

# The half of a patch is a multiple of this, px, so that many have one size and are drawn together.
HALF_STEP = 4
# Pixels that are drawn together: their arrays stay in the cache. A larger patch is cut to the tile and drawn alone.
BATCH_PIXELS = 1 << 15

Index = npt.NDArray[np.intp]


class PatchGroup:
    """Patches of one size, one around each of some points.

    Args:
        tile: into which they are brought.
        x: (n,) of the points, um.
        y: (n,) of the points, um.
        half: half of the patches' side, px.
    """

    def __init__(self, tile: Tile, x: FloatArray, y: FloatArray, half: int) -> None:
        self._side = tile.side
        column_of, row_of = _pixel(tile, x, y)
        rows, columns = (-half, half), (-half, half)
        if (2 * half) ** 2 > BATCH_PIXELS:
            rows, columns = (
                (max(-half, -int(place[0])), min(half, tile.side - int(place[0]))) for place in (row_of, column_of)
            )
        self._top, self._left = row_of + rows[0], column_of + columns[0]
        size = tile.pixel_size
        dx = (column_of[:, None] + np.arange(*columns) + 0.5 + tile.x0) * size - x[:, None]
        dy = (row_of[:, None] + np.arange(*rows) + 0.5 + tile.y0) * size - y[:, None]
        self._dx, self._dy = dx.astype(np.float32)[:, None, :], dy.astype(np.float32)[:, :, None]

    def turned(self, angle: FloatArray) -> tuple[Plane, Plane]:
        """Where every pixel's centre lies from the point of its patch, um, along and across a direction of its own.

        Args:
            angle: (n,) rad from x towards y.

        Returns:
            (n, h, w) each.
        """
        cosine, sine = column(np.cos(angle)), column(np.sin(angle))
        return self._dx * cosine + self._dy * sine, self._dy * cosine - self._dx * sine

    def raise_to(self, target: Plane, values: Plane) -> None:
        """Raise the tile to the patches' values where these are higher, patch by patch.

        Args:
            target: (side, side), changed.
            values: (n, h, w).
        """
        for top, left, patch in zip(self._top.tolist(), self._left.tolist(), values, strict=True):
            height, width = patch.shape
            y0, y1 = max(top, 0), min(top + height, self._side)
            x0, x1 = max(left, 0), min(left + width, self._side)
            place = target[y0:y1, x0:x1]
            np.maximum(place, patch[y0 - top : y1 - top, x0 - left : x1 - left], out=place)


def patches(
    tile: Tile, x: FloatArray, y: FloatArray, reach: FloatArray, drawn: npt.NDArray[np.bool_]
) -> Iterator[tuple[Index, PatchGroup]]:
    """Group the points that reach into a tile by the size of their patch.

    Args:
        tile: into which they are brought.
        x: (n,) of the points, um.
        y: (n,) of the points, um.
        reach: (n,) how far from it a point is drawn, um.
        drawn: (n,) which are drawn at all.

    Yields:
        Indices of points, and their patches.
    """
    column_of, row_of = _pixel(tile, x, y)
    half = HALF_STEP * np.ceil((reach / tile.pixel_size + 1) / HALF_STEP).astype(np.intp)
    for place in (column_of, row_of):
        drawn = drawn & (place + half > 0) & (place - half < tile.side)
    for size in np.unique(half[drawn]).tolist():
        members = np.flatnonzero(drawn & (half == size))
        batch = max(1, BATCH_PIXELS // (2 * size) ** 2)
        for first in range(0, len(members), batch):
            chosen = members[first : first + batch]
            yield chosen, PatchGroup(tile, x[chosen], y[chosen], size)


def column(values: FloatArray) -> Plane:
    """(n,) -> float32 (n, 1, 1), one value a patch."""
    return values.astype(np.float32)[:, None, None]


def _pixel(tile: Tile, x: FloatArray, y: FloatArray) -> tuple[Index, Index]:
    """Column and row in the tile of the pixel that holds each point."""
    column_of = np.floor(x / tile.pixel_size).astype(np.intp) - tile.x0
    return column_of, np.floor(y / tile.pixel_size).astype(np.intp) - tile.y0
