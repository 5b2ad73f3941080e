"""A square of a slice, the unit in which everything is drawn, and interpolation onto its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind import _core
from teramind.atlas.phantom.draws import FloatArray, Purpose, key

Plane = npt.NDArray[np.floating[Any]]

# Smooth fields are computed on nodes this far apart, px, and interpolated.
NODE_STEP = 8
# Coordinates of noise are not negative; those of a node beside the tile may be.
_ORIGIN = 1 << 30


@dataclass(frozen=True)
class Tile:
    """A square of pixels of a slice.

    Attributes:
        slice_index: which slice.
        z: of the slice, um.
        y0: first row, px.
        x0: first column, px.
        side: px.
        pixel_size: um.
    """

    slice_index: int
    z: float
    y0: int
    x0: int
    side: int
    pixel_size: float

    @property
    def y_range(self) -> tuple[float, float]:
        """First and last edge, um."""
        return self.y0 * self.pixel_size, (self.y0 + self.side) * self.pixel_size

    @property
    def x_range(self) -> tuple[float, float]:
        """First and last edge, um."""
        return self.x0 * self.pixel_size, (self.x0 + self.side) * self.pixel_size

    def holds(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which points, px of the frame, lie in the tile."""
        inside: npt.NDArray[np.bool_] = (
            (x >= self.x0) & (x < self.x0 + self.side) & (y >= self.y0) & (y < self.y0 + self.side)
        )
        return inside

    def nodes(self) -> tuple[FloatArray, FloatArray]:
        """Positions x (1, n) and y (n, 1) of the nodes, um."""
        steps = np.arange(self.side // NODE_STEP + 1) * NODE_STEP
        return ((self.x0 + steps) * self.pixel_size)[None], ((self.y0 + steps) * self.pixel_size)[:, None]

    def interpolated(self, nodes: Plane) -> Plane:
        """(c, n, n) values at the nodes -> (c, side, side)."""
        position = (np.arange(self.side) + 0.5) / NODE_STEP
        return interpolated(nodes, position, position)

    def pixel_noise(self, seed: int) -> npt.NDArray[np.float32]:
        """(2, side, side) standard normals, one a stain and pixel."""
        shape = (2, 1, self.side, self.side)
        return _noise(key(seed, Purpose.NOISE), self.slice_index, self.y0, self.x0, shape)[:, 0]

    def smooth_noise(self, seed: int, variant: int, size: float) -> Plane:
        """(side, side) noise from standard normals ``size`` um apart, the same at any pixel size."""
        first, position = [], []
        for start in (self.y0, self.x0):
            place = (start + np.arange(self.side) + 0.5) * (self.pixel_size / size)
            first.append(int(np.floor(place[0])))
            position.append(place - first[-1])
        count = int(np.ceil(max(rows[-1] for rows in position))) + 2
        layer = int(np.floor(self.z / size))
        nodes = _noise(key(seed, Purpose.TEXTURE, variant), layer, first[0], first[1], (1, 1, count, count))[0]
        noise: Plane = interpolated(nodes, position[0], position[1])[0]
        return noise


def line_noise(seed: int, variant: int, first: int, count: int) -> npt.NDArray[np.float32]:
    """Standard normals at the whole numbers from ``first`` on, (count,)."""
    return _noise(key(seed, Purpose.TEXTURE, variant), 0, 0, first, (1, 1, 1, count)).ravel()


def interpolated(nodes: Plane, rows: FloatArray, columns: FloatArray) -> Plane:
    """(c, n, m) values at nodes 0, 1, ... -> (c, rows, columns), bilinear."""
    values = nodes.astype(np.float32)
    low = columns.astype(np.intp)
    rest = (columns - low).astype(np.float32)
    values = values[:, :, low] * (1 - rest) + values[:, :, low + 1] * rest
    # Whole rows are copied faster than columns: so these come last, when there is the more to copy.
    low = rows.astype(np.intp)
    rest = (rows - low).astype(np.float32)[:, None]
    upper = values[:, low]
    total = values[:, low + 1]
    total -= upper
    total *= rest
    total += upper
    return total


def _noise(noise_key: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int]) -> npt.NDArray[np.float32]:
    return _core.noise_field(noise_key, z0 + _ORIGIN, y0 + _ORIGIN, x0 + _ORIGIN, shape, threads=1)
