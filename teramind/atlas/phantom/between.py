"""The tissue between the cells: neuropil, fibres, the lumen of vessels, and the haze of what is out of focus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from teramind import _core
from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import FloatArray, Purpose, key
from teramind.atlas.phantom.regions import BANDS

Plane = npt.NDArray[np.floating[Any]]

# Smooth fields are computed on nodes this far apart, px, and interpolated.
NODE_STEP = 8
# Sizes of the neuropil's texture, um, and its strength at each, relative.
TEXTURE = ((1.0, 0.15), (3.0, 0.12), (11.0, 0.10))
# The first of them is also the grain of cytoplasm.
GRAIN = 0.8
# Width of a fibre bundle in depth, um.
FIBRE_WIDTH = 2.2
# Regions pass into each other over this depth, um.
TRANSITION = 6.0
# Radius of a vessel's lumen and thickness of its wall, um.
LUMEN, WALL = 2.3, 1.3
# Haze: reach in the plane and in depth, um, and strength relative to what is out of focus.
HAZE_REACH, HAZE_DEPTH, HAZE = 6.0, 8.0, 0.16
# Noise coordinates are not negative.
ORIGIN = 1 << 30


@dataclass(frozen=True)
class TileFrame:
    """A square of pixels of a slice.

    Attributes:
        y0: first row, px.
        x0: first column, px.
        side: px.
        pixel_size: um.
    """

    y0: int
    x0: int
    side: int
    pixel_size: float

    def nodes(self) -> tuple[FloatArray, FloatArray]:
        """Positions x (1, n) and y (n, 1) of the nodes, um."""
        steps = np.arange(self.side // NODE_STEP + 1) * NODE_STEP
        return ((self.x0 + steps) * self.pixel_size)[None], ((self.y0 + steps) * self.pixel_size)[:, None]

    def interpolated(self, nodes: Plane) -> Plane:
        """(c, n, n) values at the nodes -> (c, side, side)."""
        position = (np.arange(self.side) + 0.5) / NODE_STEP
        return _interpolated(nodes, position, position)


@dataclass(frozen=True)
class Ground:
    """The tissue between the cells of a tile, (side, side) each.

    Attributes:
        dapi: grey levels.
        poly_t: grey levels.
        grain: of the cytoplasm, around 1.
    """

    dapi: Plane
    poly_t: Plane
    grain: Plane


def between_cells(frame: TileFrame, plane: float, anatomy: Anatomy, cells: Cells, morphology_seed: int) -> Ground:
    """Draw all but the cells.

    Args:
        frame: the tile.
        plane: z of the image, um.
        anatomy: of the phantom.
        cells: around the tile, for the haze.
        morphology_seed: of the texture.
    """
    x, y = frame.nodes()
    depth = anatomy.depth(x, y, plane)
    levels = np.stack([np.interp(depth, _KNOTS, column) for column in _LEVELS.T])
    dark, neuropil, fibres, depth_here = frame.interpolated(np.concatenate([levels, depth[None]]))
    textures = [_value_noise(frame, plane, size, number, morphology_seed) for number, (size, _) in enumerate(TEXTURE)]
    texture = sum(strength * noise for (_, strength), noise in zip(TEXTURE, textures, strict=True)) + np.float32(1)
    texture += fibres * _streaks(depth_here, morphology_seed) * (1 + 0.4 * textures[-1])
    poly_t = neuropil * np.maximum(texture, 0.15)
    tissue = np.clip(neuropil / 20 - 0.3, 0, 1)
    _open_vessels(frame, plane, anatomy, tissue, poly_t)
    haze = frame.interpolated(_haze(frame, plane, cells))
    poly_t += haze[1]
    return Ground(dark + haze[0], poly_t, 1 + np.float32(GRAIN * TEXTURE[0][1]) * textures[0])


def _streaks(depth: Plane, seed: int) -> Plane:
    """Noise of the depth alone: lines along the layers."""
    place = depth * (1 / FIBRE_WIDTH)
    first = int(np.floor(place.min()))
    count = int(np.ceil(place.max())) - first + 2
    nodes = _core.noise_field(
        key(seed, Purpose.TEXTURE, len(TEXTURE)), 0, 0, first + ORIGIN, (1, 1, 1, count), threads=1
    ).ravel()
    place -= first
    low = place.astype(np.intp)
    rest = place - low
    return nodes[low] * (1 - rest) + nodes[low + 1] * rest


def _open_vessels(frame: TileFrame, plane: float, anatomy: Anatomy, tissue: Plane, poly_t: Plane) -> None:
    """Darken the lumen of vessels and draw their wall."""
    x, y = frame.nodes()
    step = frame.interpolated(anatomy.vessel_step(x, y, np.full((1, 1), plane)).clip(-40, 40))
    distance = np.sqrt((step * step).sum(axis=0))
    lumen = np.clip(LUMEN + 0.5 - distance, 0, 1) * tissue
    wall = np.clip(1.3 - np.abs(distance - LUMEN - WALL / 2) / WALL, 0, 1) * tissue
    poly_t *= 1 - 0.75 * lumen
    poly_t += 14 * wall


def _haze(frame: TileFrame, plane: float, cells: Cells) -> Plane:
    """Light of cells above and below the plane, (2, n, n) on the nodes: DAPI and PolyT."""
    step = NODE_STEP * frame.pixel_size
    margin = int(np.ceil(3 * HAZE_REACH / step))
    count = frame.side // NODE_STEP + 1 + 2 * margin
    column = np.rint(cells.x / step).astype(np.intp) - frame.x0 // NODE_STEP + margin
    row = np.rint(cells.y / step).astype(np.intp) - frame.y0 // NODE_STEP + margin
    inside = (row >= 0) & (row < count) & (column >= 0) & (column < count)
    place = row[inside] * count + column[inside]
    near = 1 / (1 + ((cells.z[inside] - plane) / HAZE_DEPTH) ** 4)
    types = cells.type[inside]
    layers = []
    for level, radius in (("dapi", "nucleus"), ("poly_t", "soma")):
        light = LOOKS[level][types] * np.pi * LOOKS[radius][types] ** 2 * near * (HAZE / step**2)
        spread = np.bincount(place, weights=light, minlength=count * count).reshape(count, count)
        blurred = ndimage.gaussian_filter(spread, HAZE_REACH / step, truncate=3, mode="constant")
        layers.append(blurred[margin : count - margin, margin : count - margin])
    return np.stack(layers)


def _value_noise(frame: TileFrame, plane: float, size: float, number: int, seed: int) -> Plane:
    """Smooth noise of unit-variance nodes ``size`` um apart, the same at any pixel size."""
    first, position = [], []
    for start in (frame.y0, frame.x0):
        place = (start + np.arange(frame.side) + 0.5) * (frame.pixel_size / size)
        first.append(int(np.floor(place[0])))
        position.append(place - first[-1])
    count = int(np.ceil(max(position[0][-1], position[1][-1]))) + 2
    nodes = _core.noise_field(
        key(seed, Purpose.TEXTURE, number),
        int(np.floor(plane / size)) + ORIGIN,
        first[0] + ORIGIN,
        first[1] + ORIGIN,
        (1, 1, count, count),
        threads=1,
    )[0]
    noise: Plane = _interpolated(nodes, position[0], position[1])[0]
    return noise


def _interpolated(nodes: Plane, rows: FloatArray, columns: FloatArray) -> Plane:
    """(c, n, m) values at nodes 0, 1, ... -> (c, rows, columns), bilinear."""
    values = nodes.astype(np.float32)
    low = columns.astype(np.intp)
    rest = (columns - low).astype(np.float32)
    values = values[:, :, low] * (1 - rest) + values[:, :, low + 1] * rest
    # Whole rows are copied faster than columns: so these come last, when there is the more to copy.
    low = rows.astype(np.intp)
    rest = (rows - low).astype(np.float32)[:, None]
    upper = values[:, low]
    step = values[:, low + 1]
    step -= upper
    step *= rest
    step += upper
    return step


# Levels of the bands along the depth: constant within each, linear across their borders.
_KNOTS = np.concatenate([[band.start - TRANSITION, band.start + TRANSITION] for band in BANDS[1:]])
_LEVELS = np.concatenate([[(band.dark, band.neuropil, band.fibres) for band in pair] for pair in pairwise(BANDS)])
