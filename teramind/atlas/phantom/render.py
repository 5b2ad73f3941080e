"""Draws one tile of an image plane: nuclei and cell bodies over the tissue between them, then the camera's noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from teramind import _core
from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import FloatArray, Purpose, key
from teramind.atlas.phantom.morphology import MAX_SPOTS, Bodies
from teramind.atlas.phantom.regions import REGIONS

Plane = npt.NDArray[np.float32]

# Half the width of an edge, um: the microscope's blur.
BLUR = 0.45
# Patches of cells are squares of a multiple of this, px, so that those of a size are drawn together.
PATCH_STEP = 8
# Pixels that are drawn together: their arrays stay in the cache.
BATCH_PIXELS = 1 << 16
# The tissue between the cells is computed on nodes this far apart, px.
NODE_STEP = 8
# Sizes of the neuropil's texture, um, and its strength at each, relative.
TEXTURE = ((1.1, 0.16), (3.5, 0.14), (14.0, 0.10))
# PolyT in a nucleus, relative to the cell body around it.
NUCLEAR_POLY_T = 0.62
# The camera: noise of a dark pixel and the growth of its variance with the signal, grey levels.
DARK_NOISE, SHOT_NOISE = 1.2, 0.12
# Offsets that keep noise coordinates positive.
_ORIGIN = 1 << 30


class TileFrame:
    """A square of pixels of a slice.

    Args:
        y0: first row, px.
        x0: first column, px.
        side: px.
        pixel_size: um.
    """

    def __init__(self, y0: int, x0: int, side: int, pixel_size: float) -> None:
        self.y0, self.x0, self.side, self.pixel_size = y0, x0, side, pixel_size


def render_tile(
    frame: TileFrame,
    plane: float,
    slice_index: int,
    anatomy: Anatomy,
    cells: Cells,
    bodies: Bodies,
    morphology_seed: int,
) -> npt.NDArray[np.uint8]:
    """Draw a tile.

    Args:
        frame: which.
        plane: z of the image, um.
        slice_index: of the slice, for its noise.
        anatomy: for the tissue between the cells.
        cells: all that may reach into the tile.
        bodies: theirs.
        morphology_seed: of texture and noise.

    Returns:
        uint8 (2, side, side): DAPI and PolyT.
    """
    dapi, poly_t = _between(frame, plane, anatomy, morphology_seed)
    inside = np.zeros_like(dapi)
    _draw_somata(frame, cells, bodies, poly_t)
    _draw_nuclei(frame, bodies, dapi, inside)
    poly_t *= 1 - (1 - NUCLEAR_POLY_T) * inside
    noise = _core.noise_field(
        key(morphology_seed, Purpose.NOISE),
        slice_index,
        frame.y0 + _ORIGIN,
        frame.x0 + _ORIGIN,
        (2, 1, frame.side, frame.side),
        threads=1,
    )[:, 0]
    image = np.stack([dapi, poly_t])
    image += noise * np.sqrt(DARK_NOISE**2 + SHOT_NOISE * image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _between(frame: TileFrame, plane: float, anatomy: Anatomy, morphology_seed: int) -> tuple[Plane, Plane]:
    """The tissue between the cells: levels of the regions, smooth across their borders, and the neuropil's texture."""
    nodes = frame.side // NODE_STEP + 1
    steps = np.arange(nodes) * (NODE_STEP * frame.pixel_size)
    x, y = frame.x0 * frame.pixel_size + steps, frame.y0 * frame.pixel_size + steps
    labels = anatomy.region(x[None, :], y[:, None], plane)
    levels = np.stack([_DARK[labels], _NEUROPIL[labels]])
    position = (np.arange(frame.side) + 0.5) / NODE_STEP
    dark, neuropil = _interpolated(levels, position, position)
    texture = np.ones_like(dark)
    for number, (size, strength) in enumerate(TEXTURE):
        texture += strength * _value_noise(frame, plane, size, number, morphology_seed)
    return dark * (0.6 + 0.4 * texture), neuropil * np.maximum(texture, 0.1)


def _value_noise(frame: TileFrame, plane: float, size: float, number: int, morphology_seed: int) -> Plane:
    """Smooth noise of unit-variance nodes ``size`` um apart, the same at any pixel size."""
    first, position = [], []
    for start in (frame.y0, frame.x0):
        place = (start + np.arange(frame.side) + 0.5) * (frame.pixel_size / size)
        first.append(int(np.floor(place[0])))
        position.append(place - first[-1])
    count = int(np.ceil(max(position[0][-1], position[1][-1]))) + 2
    layer = int(np.floor(plane / size)) + _ORIGIN
    nodes = _core.noise_field(
        key(morphology_seed, Purpose.TEXTURE, number),
        layer,
        first[0] + _ORIGIN,
        first[1] + _ORIGIN,
        (1, 1, count, count),
        threads=1,
    )[0]
    return _interpolated(nodes, *position)[0]


def _interpolated(nodes: npt.NDArray[np.floating], rows: FloatArray, columns: FloatArray) -> Plane:
    """(c, n, n) values at nodes 0, 1, ... -> (c, rows, columns), bilinear."""
    values = nodes.astype(np.float32)
    low = rows.astype(np.intp)
    rest = (rows - low).astype(np.float32)[:, None]
    values = values[:, low] * (1 - rest) + values[:, low + 1] * rest
    low = columns.astype(np.intp)
    rest = (columns - low).astype(np.float32)
    return values[:, :, low] * (1 - rest) + values[:, :, low + 1] * rest


def _draw_nuclei(frame: TileFrame, bodies: Bodies, dapi: Plane, inside: Plane) -> None:
    reach = bodies.major * 1.15 + BLUR
    for chosen, window in _patches(frame, bodies, reach, bodies.major > 0.6):
        body = bodies.take(chosen)
        dx, dy = window.offsets(body.x, body.y)
        u, v = _turned(dx, dy, body.angle)
        u /= _column(body.major)
        v /= _column(body.minor)
        uu, vv = u * u, v * v
        squared = uu + vv
        # u^3 - 3 u v^2 is the third harmonic, cos 3 phi at the outline.
        squared += _column(body.outline) * u * (uu - 3 * vv) + _column(body.outline_skew) * v * (3 * uu - vv)
        sharpness = body.minor / (4 * BLUR)
        covered = np.clip((1 - squared) * _column(sharpness) + 0.5, 0, 1)
        shade = 1.04 - 0.16 * np.minimum(squared, 1)
        _add_spots(shade, u, v, body)
        window.maximum(dapi, covered * shade * _column(body.dapi))
        window.maximum(inside, covered)


def _add_spots(shade: Plane, u: Plane, v: Plane, body: Bodies) -> None:
    scale = (body.major * body.minor).astype(np.float32)
    for number in range(MAX_SPOTS):
        place_u, place_v, radius, height = body.spots[:, number].T
        if not height.any():
            continue
        across, along = v - _column(place_v), u - _column(place_u)
        distance = (across * across + along * along) * _column(scale / (radius * radius))
        shade += _column(height) / (1 + distance * distance)


def _draw_somata(frame: TileFrame, cells: Cells, bodies: Bodies, poly_t: Plane) -> None:
    apical = LOOKS["apical"][cells.type]
    reach = np.maximum(bodies.soma * 1.2, np.where(bodies.soma > 0, apical, 0)) + 2 * BLUR
    for chosen, window in _patches(frame, bodies, reach, bodies.soma > 0.8):
        body = bodies.take(chosen)
        dx, dy = window.offsets(body.x, body.y)
        u, v = _turned(dx, dy, cells.direction[chosen])
        radius = _column(body.soma)
        squared = (u * u + v * v) / (radius * radius)
        covered = np.clip((1 - squared) * _column(body.soma / (6 * BLUR)) + 0.5, 0, 1) * (
            1.1 - 0.3 * np.minimum(squared, 1)
        )
        reaches = apical[chosen]
        if reaches.any():
            # A dendrite that tapers from the cell body to its end.
            along = np.clip(u / _column(np.maximum(reaches, 1)), 0, 1)
            width = 0.62 * radius * (1 - along) ** 1.5 + 0.7
            dendrite = np.clip((width - np.abs(v)) / (2 * BLUR), 0, 1) * (1 - along) * (u > 0)
            covered = np.maximum(covered, 0.85 * dendrite * (_column(reaches) > 0))
        window.maximum(poly_t, covered * _column(body.poly_t))


class _Window:
    """Square patches of one size, one around each of some cells."""

    def __init__(self, frame: TileFrame, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], half: int) -> None:
        self._frame, self._rows, self._columns, self._half = frame, rows, columns, half
        self._steps = np.arange(-half, half)

    def offsets(self, x: FloatArray, y: FloatArray) -> tuple[Plane, Plane]:
        """Distance of every pixel's centre from the point of its patch, um: (n, 1, p) along x and (n, p, 1) along y."""
        size = self._frame.pixel_size
        dx = (self._columns[:, None] + self._steps + 0.5 + self._frame.x0) * size - x[:, None]
        dy = (self._rows[:, None] + self._steps + 0.5 + self._frame.y0) * size - y[:, None]
        return dx.astype(np.float32)[:, None, :], dy.astype(np.float32)[:, :, None]

    def maximum(self, target: Plane, values: Plane) -> None:
        """Raise a tile to the values, where they lie inside."""
        side, half = self._frame.side, self._half
        for row, column, patch in zip(self._rows.tolist(), self._columns.tolist(), values, strict=True):
            top, left = max(0, row - half), max(0, column - half)
            bottom, right = min(side, row + half), min(side, column + half)
            place = target[top:bottom, left:right]
            np.maximum(
                place,
                patch[top - row + half : bottom - row + half, left - column + half : right - column + half],
                out=place,
            )


def _patches(
    frame: TileFrame, bodies: Bodies, reach: FloatArray, drawn: npt.NDArray[np.bool_]
) -> Iterator[tuple[npt.NDArray[np.intp], _Window]]:
    """Cells that reach into the tile, in groups of one patch size, and their patches."""
    size = frame.pixel_size
    column = np.floor(bodies.x / size).astype(np.intp) - frame.x0
    row = np.floor(bodies.y / size).astype(np.intp) - frame.y0
    half = PATCH_STEP // 2 * (np.ceil(reach / (size * (PATCH_STEP // 2))).astype(np.intp) + 1)
    drawn = drawn & (column + half > 0) & (column - half < frame.side) & (row + half > 0) & (row - half < frame.side)
    for patch_half in np.unique(half[drawn]).tolist():
        members = np.flatnonzero(drawn & (half == patch_half))
        batch = max(1, BATCH_PIXELS // (2 * patch_half) ** 2)
        for first in range(0, len(members), batch):
            chosen = members[first : first + batch]
            yield chosen, _Window(frame, row[chosen], column[chosen], patch_half)


def _turned(dx: Plane, dy: Plane, angle: FloatArray) -> tuple[Plane, Plane]:
    """Coordinates along and across a direction."""
    cosine, sine = _column(np.cos(angle)), _column(np.sin(angle))
    return dx * cosine + dy * sine, dy * cosine - dx * sine


def _column(values: FloatArray | Plane) -> Plane:
    """(n,) -> (n, 1, 1)."""
    return values.astype(np.float32)[:, None, None]


_DARK = np.array([region.dark for region in REGIONS])
_NEUROPIL = np.array([region.neuropil for region in REGIONS])
