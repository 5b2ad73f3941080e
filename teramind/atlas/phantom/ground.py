"""The tissue between the cells: neuropil, fibres, the lumen of vessels, and the haze of what is out of focus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.regions import BANDS
from teramind.atlas.phantom.tile import NODE_STEP, Plane, Tile, line_noise

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


def between_cells(tile: Tile, anatomy: Anatomy, cells: Cells, morphology_seed: int) -> Ground:
    """Draw all but the cells.

    Args:
        tile: which.
        anatomy: of the phantom.
        cells: around the tile, for the haze.
        morphology_seed: of the texture.
    """
    x, y = tile.nodes()
    depth = anatomy.depth(x, y, tile.z)
    levels = np.stack([np.interp(depth, _KNOTS, column) for column in _LEVELS.T])
    dark, neuropil, fibres, depth_here = tile.interpolated(np.concatenate([levels, depth[None]]))
    textures = [tile.smooth_noise(morphology_seed, number, size) for number, (size, _) in enumerate(TEXTURE)]
    texture = sum(strength * noise for (_, strength), noise in zip(TEXTURE, textures, strict=True)) + np.float32(1)
    if fibres.any():
        texture += fibres * _streaks(depth_here, morphology_seed) * (1 + 0.4 * textures[-1])
    poly_t = neuropil * np.maximum(texture, 0.15)
    tissue = np.clip(neuropil / 20 - 0.3, 0, 1)
    _open_vessels(tile, anatomy, tissue, poly_t)
    haze = tile.interpolated(_haze(tile, cells))
    poly_t += haze[1]
    return Ground(dark + haze[0], poly_t, 1 + np.float32(GRAIN * TEXTURE[0][1]) * textures[0])


def _streaks(depth: Plane, seed: int) -> Plane:
    """Noise of the depth alone: lines along the layers."""
    place = depth * (1 / FIBRE_WIDTH)
    first = int(np.floor(place.min()))
    nodes = line_noise(seed, len(TEXTURE), first, int(np.ceil(place.max())) - first + 2)
    place -= first
    low = place.astype(np.intp)
    rest = place - low
    return nodes[low] * (1 - rest) + nodes[low + 1] * rest


def _open_vessels(tile: Tile, anatomy: Anatomy, tissue: Plane, poly_t: Plane) -> None:
    """Darken the lumen of vessels and draw their wall."""
    x, y = tile.nodes()
    step = tile.interpolated(anatomy.vessel_step(x, y, np.full((1, 1), tile.z)).clip(-40, 40))
    distance = np.sqrt((step * step).sum(axis=0))
    lumen = np.clip(LUMEN + 0.5 - distance, 0, 1) * tissue
    wall = np.clip(1.3 - np.abs(distance - LUMEN - WALL / 2) / WALL, 0, 1) * tissue
    poly_t *= 1 - 0.75 * lumen
    poly_t += 14 * wall


def _haze(tile: Tile, cells: Cells) -> Plane:
    """Light of cells above and below the plane, (2, n, n) on the nodes: DAPI and PolyT."""
    step = NODE_STEP * tile.pixel_size
    margin = int(np.ceil(3 * HAZE_REACH / step))
    count = tile.side // NODE_STEP + 1 + 2 * margin
    column = np.rint(cells.x / step).astype(np.intp) - tile.x0 // NODE_STEP + margin
    row = np.rint(cells.y / step).astype(np.intp) - tile.y0 // NODE_STEP + margin
    inside = (row >= 0) & (row < count) & (column >= 0) & (column < count)
    place = row[inside] * count + column[inside]
    near = 1 / (1 + ((cells.z[inside] - tile.z) / HAZE_DEPTH) ** 4)
    types = cells.type[inside]
    layers = []
    for level, radius in (("dapi", "nucleus"), ("poly_t", "soma")):
        light = LOOKS[level][types] * np.pi * LOOKS[radius][types] ** 2 * near * (HAZE / step**2)
        spread = np.bincount(place, weights=light, minlength=count * count).reshape(count, count)
        blurred = ndimage.gaussian_filter(spread, HAZE_REACH / step, truncate=3, mode="constant")
        layers.append(blurred[margin : count - margin, margin : count - margin])
    return np.stack(layers)


# Levels of the bands along the depth: constant within each, linear across their borders.
_KNOTS = np.concatenate([[band.start - TRANSITION, band.start + TRANSITION] for band in BANDS[1:]])
_LEVELS = np.concatenate([[(band.dark, band.neuropil, band.fibres) for band in pair] for pair in pairwise(BANDS)])
