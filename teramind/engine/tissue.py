"""Which tiles hold tissue: those near which transcripts were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teramind.engine.frame import Window
from teramind.engine.plan import Rectangle


class CountSource(Protocol):
    """The part of an atlas that this needs."""

    def count_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint32]:
        """Transcripts (z1-z0, h, w) of the bins of a box in px, zero beyond the atlas."""


def empty_tiles(
    atlas: CountSource,
    plane: Rectangle,
    windows: Sequence[Window],
    gene_slices: int,
    *,
    tile: int,
    patch: int,
    steps: int,
    below: int,
) -> NDArray[np.bool_]:
    """Tiles near which a window has fewer than ``below`` transcripts: within ``steps * patch`` px of the tile.

    That is the dependency radius: no transcript further away has an influence on the tile, so with ``below=1`` every
    voxel that any transcript acts on is kept.

    Returns:
        (windows, rows, columns) bool.
    """
    height, width = plane.shape
    rows, columns = -(-height // tile), -(-width // tile)
    out = np.zeros((len(windows), rows, columns), bool)
    for number, window in enumerate(windows):
        totals = _patch_totals(atlas, plane, window.gene_start, gene_slices, patch)
        sums = np.pad(totals.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # sums[i, j]: of all patches above and left
        side = tile // patch
        tops, bottoms = _reach(rows, side, steps, totals.shape[0])
        lefts, rights = _reach(columns, side, steps, totals.shape[1])
        near = (
            sums[np.ix_(bottoms, rights)]
            - sums[np.ix_(tops, rights)]
            - sums[np.ix_(bottoms, lefts)]
            + sums[np.ix_(tops, lefts)]
        )
        out[number] = near < below
    return out


def _reach(tiles: int, side: int, steps: int, patches: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and end, in patches, of what acts on each tile along an axis."""
    starts = np.arange(tiles) * side
    return np.maximum(starts - steps, 0), np.minimum(starts + side + steps, patches)


def _patch_totals(atlas: CountSource, plane: Rectangle, z0: int, slices: int, patch: int) -> NDArray[np.int64]:
    """Transcripts of each patch of the plane over a window's slices, read strip by strip."""
    height, width = plane.shape
    bins = patch // 16
    strips = []
    for y in range(0, height, patch * 16):
        end = min(y + patch * 16, height)
        counts = atlas.count_window(z0, z0 + slices, y, end, 0, width).sum(axis=0, dtype=np.int64)
        strips.append(counts.reshape((end - y) // patch, bins, width // patch, bins).sum(axis=(1, 3)))
    return np.concatenate(strips)
