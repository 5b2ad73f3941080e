"""Seam score: is the image rougher across the borders of a grid than beside them?

The score of a grid is the mean absolute difference of neighbouring pixels across its borders, over that of the same
rows and columns displaced to both sides. 1.00 is seamless, whatever the image shows; its sampling error is that of a
jackknife over blocks of the image (Efron and Stein 1981).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind.atlas.layout import BIN_SIZE
from teramind.errors import InputError

_SMALLEST_BLOCK = 256  # px; several nuclei wide, so that blocks are close to independent
_MOST_BLOCKS = 20_000


@dataclass(frozen=True)
class Grid:
    """Lines at ``offset + k * period`` px of the atlas frame, in both directions.

    Attributes:
        name: for tables.
        period: px.
        offset: px.
        displacement: how far from a line the gradients lie that it is compared with, px.
    """

    name: str
    period: int
    offset: int
    displacement: int

    def __post_init__(self) -> None:
        if not 0 < self.displacement < self.period or self.period < 2:
            raise InputError(f"a grid of {self.period} px cannot be compared with itself {self.displacement} px aside")

    def lines(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """The grid's lines in ``start <= line < end``."""
        first = start + (self.offset - start) % self.period
        return np.arange(first, end, self.period, dtype=np.int64)


def network_grids(patch: int, tile: int) -> list[Grid]:
    """The grids on which a generated image could show seams.

    Gradients are compared with those a quarter of a patch aside: on neither of the patch grids, and, from patches of 64
    px on, at the same place relative to the bins and to the network's upsampling, so that a pattern in phase with these
    does not pass for a seam. That pattern has the last row, which is compared half a bin aside.

    Args:
        patch: P, px.
        tile: side of a tile of the run, px.
    """
    aside = patch // 4
    return [
        Grid("tile", tile, 0, aside),
        Grid("decoder patch", patch, 0, aside),
        Grid("encoder patch", patch, patch // 2, aside),
        Grid("gene bin", BIN_SIZE, 0, BIN_SIZE // 2),
    ]


@dataclass(frozen=True)
class SeamScore:
    """A score and its sampling error; both NaN where there is no border to see.

    Attributes:
        score: 1.00 is seamless.
        error: standard error.
        blocks: of the image, over which the error was estimated.
    """

    score: float
    error: float
    blocks: int


class SeamSums:
    """Gradients on and beside the lines of a grid, block by block; windows come in any order.

    Args:
        grid: the lines.
        pixels: of all planes together, for the size of the blocks that the error is estimated with.
    """

    def __init__(self, grid: Grid, pixels: int) -> None:
        self.grid = grid
        self.block = max(_SMALLEST_BLOCK, grid.period)
        while pixels / self.block**2 > _MOST_BLOCKS:
            self.block *= 2
        self._sums: defaultdict[tuple[int, int, int], npt.NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))

    def update(
        self, image: npt.NDArray[Any], *, z: int, origin: tuple[int, int], core: tuple[int, int, int, int]
    ) -> None:
        """Take a window.

        Args:
            image: (..., h, w) pixels.
            z: slice.
            origin: place of its first pixel in the frame, y, x.
            core: y0, y1, x0, x1 in the frame: lines and rows in here count, so that windows may overlap. Lines whose
                displaced gradients the image does not have are left out; a margin of the displacement + 1 shows all.
        """
        y0, y1, x0, x1 = core
        rows, columns = (y0, y1), (x0, x1)
        self._one_direction(image, z, origin, columns, rows, transposed=False)
        self._one_direction(np.swapaxes(image, -1, -2), z, origin[::-1], rows, columns, transposed=True)

    def _one_direction(
        self,
        image: npt.NDArray[Any],
        z: int,
        origin: tuple[int, int],
        across: tuple[int, int],
        along: tuple[int, int],
        *,
        transposed: bool,
    ) -> None:
        """Lines that cross the last axis of ``image``."""
        aside, (along_0, across_0) = self.grid.displacement, origin
        lines = self.grid.lines(*across)
        lines = lines[(lines - aside - 1 >= across_0) & (lines + aside < across_0 + image.shape[-1])]
        if not len(lines) or along[0] >= along[1]:
            return
        part = image[..., along[0] - along_0 : along[1] - along_0, :]
        on, before, after = (_gradients(part, lines - across_0 + shift) for shift in (0, -aside, aside))
        starts = np.arange(along[0], along[1])
        edges = np.flatnonzero(np.diff(starts // self.block, prepend=-1))
        values = np.stack([np.add.reduceat(kind, edges, axis=0) for kind in (on, (before + after) / 2)], axis=-1)
        for row, block_along in enumerate((starts[edges] // self.block).tolist()):
            for column, line in enumerate(lines.tolist()):
                place = (line // self.block, block_along) if transposed else (block_along, line // self.block)
                self._sums[z, *place] += values[row, column]

    def merge(self, other: SeamSums) -> None:
        """Take what another one took of the same grid with the same blocks."""
        if (other.grid, other.block) != (self.grid, self.block):
            raise InputError(f"gradients of the grids {self.grid.name} and {other.grid.name} cannot be joined")
        for place, sums in other._sums.items():
            self._sums[place] += sums

    def compute(self) -> SeamScore:
        """The score of everything taken so far."""
        sums = np.array(list(self._sums.values())).reshape(-1, 2)
        on, beside = sums.sum(axis=0)
        count = len(sums)
        if not beside > 0:
            return SeamScore(float("nan"), float("nan"), count)
        left_out = sums.sum(axis=0) - sums
        if count < 2 or not (left_out[:, 1] > 0).all():
            return SeamScore(float(on / beside), float("nan"), count)
        ratios = left_out[:, 0] / left_out[:, 1]
        error = np.sqrt((count - 1) / count * np.square(ratios - ratios.mean()).sum())
        return SeamScore(float(on / beside), float(error), count)


def seam_score(image: npt.NDArray[Any], grid: Grid, origin: tuple[int, int] = (0, 0)) -> SeamScore:
    """Score a whole image.

    Args:
        image: (..., h, w); leading axes are stains and slices.
        grid: the lines.
        origin: place of the first pixel in the frame, y, x.
    """
    planes = image.reshape(-1, *image.shape[-2:])
    sums = SeamSums(grid, planes.size)
    (y, x), (h, w) = origin, image.shape[-2:]
    for z, plane in enumerate(planes):
        sums.update(plane, z=z, origin=origin, core=(y, y + h, x, x + w))
    return sums.compute()


def naively_stitched(
    image: npt.NDArray[Any], tile: int, other: npt.NDArray[Any] | None = None, origin: tuple[int, int] = (0, 0)
) -> npt.NDArray[Any]:
    """What tiles that know nothing of each other would look like: the score's yardstick.

    Args:
        image: (..., h, w).
        tile: side of the tiles, px.
        other: another sample of the same place, whose tiles take every second place as on a chessboard. Without, they
            are the image's own, from half its size away.
        origin: place of the first pixel in the frame, y, x.

    Returns:
        The stitched image, (..., h, w).
    """
    h, w = image.shape[-2:]
    if other is None:
        other = np.roll(image, (max(tile, h // 2 // tile * tile), max(tile, w // 2 // tile * tile)), axis=(-2, -1))
    rows, columns = (np.arange(start, start + side) // tile for start, side in zip(origin, (h, w), strict=True))
    return np.where((rows[:, None] + columns) % 2 == 0, image, other)


def _gradients(image: npt.NDArray[Any], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """|image[column] - image[column - 1]|, summed over the leading axes: (rows, columns)."""
    difference = image[..., columns].astype(np.float64) - image[..., columns - 1]
    return np.asarray(np.abs(difference).reshape(-1, *difference.shape[-2:]).sum(axis=0))
