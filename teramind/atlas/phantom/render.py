"""Draws one tile of an image plane: nuclei and cell bodies over the tissue between them, then the camera's noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from teramind import _core
from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.between import ORIGIN, Plane, TileFrame, between_cells
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import FloatArray, Purpose, key
from teramind.atlas.phantom.morphology import MAX_SPOTS, Bodies

# Half the width of an edge, um: the microscope's blur, and the cytoplasm's own edge.
BLUR, SOMA_BLUR = 0.45, 0.7
# Patches of cells are squares of a multiple of this, px, so that those of a size are drawn together.
PATCH_STEP = 8
# Pixels that are drawn together: their arrays stay in the cache.
BATCH_PIXELS = 1 << 15
# PolyT in a nucleus, relative to the cell body around it.
NUCLEAR_POLY_T = 0.42
# The camera: noise of a dark pixel and the growth of its variance with the signal, grey levels.
DARK_NOISE, SHOT_NOISE = 1.2, 0.10


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
    ground = between_cells(frame, plane, anatomy, cells, morphology_seed)
    dapi, poly_t = ground.dapi, ground.poly_t
    somata, inside = np.zeros_like(dapi), np.zeros_like(dapi)
    _draw_somata(frame, cells, bodies, somata)
    _draw_nuclei(frame, bodies, dapi, inside)
    np.maximum(poly_t, somata * ground.grain, out=poly_t)
    poly_t *= 1 - (1 - NUCLEAR_POLY_T) * inside
    return _photographed(np.stack([dapi, poly_t]), frame, slice_index, morphology_seed)


def _photographed(image: Plane, frame: TileFrame, slice_index: int, seed: int) -> npt.NDArray[np.uint8]:
    """Add the camera's noise, which depends on the pixel alone, and round."""
    noise = _core.noise_field(
        key(seed, Purpose.NOISE),
        slice_index,
        frame.y0 + ORIGIN,
        frame.x0 + ORIGIN,
        (2, 1, frame.side, frame.side),
        threads=1,
    )[:, 0]
    noise *= np.sqrt(DARK_NOISE**2 + SHOT_NOISE * image)
    noise += image
    np.rint(noise, out=noise)
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


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
        softness = BLUR * (1 + 1.2 * (1 - body.focus))
        covered = np.clip((1 - squared) * _column(body.minor / (4 * softness)) + 0.5, 0, 1)
        shade = 1.04 - 0.16 * np.minimum(squared, 1)
        _add_spots(shade, u, v, body)
        window.maximum(inside, covered)
        covered *= shade
        covered *= _column(body.dapi)
        window.maximum(dapi, covered)


def _add_spots(shade: Plane, u: Plane, v: Plane, body: Bodies) -> None:
    scale = (body.major * body.minor).astype(np.float32)
    for number in range(MAX_SPOTS):
        place_u, place_v, radius, height = body.spots[:, number].T
        if not height.any():
            continue
        across, along = v - _column(place_v), u - _column(place_u)
        distance = (across * across + along * along) * _column(scale / (radius * radius))
        shade += _column(height) / (1 + distance * distance)


def _draw_somata(frame: TileFrame, cells: Cells, bodies: Bodies, somata: Plane) -> None:
    apical = LOOKS["apical"][cells.type]
    longest = 1.2 + bodies.arms[:, :, 2].max(axis=1, initial=0)
    reach = np.maximum(bodies.soma * longest, np.where(bodies.soma > 0, apical, 0)) + 3 * BLUR
    for chosen, window in _patches(frame, bodies, reach, bodies.soma > 0.8):
        body = bodies.take(chosen)
        dx, dy = window.offsets(body.x, body.y)
        u, v = _turned(dx, dy, cells.direction[chosen])
        radius = _column(body.soma)
        distance = np.sqrt(u * u + v * v) + np.float32(1e-3)
        cosine, sine = u / distance, v / distance
        softness = SOMA_BLUR * (1 + 1.5 * (1 - body.soma_focus))
        outline = _soma_outline(cosine, sine, body) * radius
        covered = np.clip((outline - distance) * _column(0.5 / softness) + 0.5, 0, 1)
        covered *= 1.1 - 0.45 * np.minimum(distance / outline, 1)
        reaches = apical[chosen]
        if reaches.any():
            np.maximum(covered, _apical_dendrite(u, v, radius, reaches), out=covered)
        covered *= _column(body.poly_t)
        window.maximum(somata, covered)


def _soma_outline(cosine: Plane, sine: Plane, body: Bodies) -> Plane:
    """Radius of the outline in the direction of each pixel, relative to the mean: waves and tapering processes."""
    double_cosine, double_sine = cosine * cosine - sine * sine, 2 * cosine * sine
    waves = [_column(wave) for wave in body.soma_waves.T]
    outline = 1 + waves[0] * double_cosine + waves[1] * double_sine
    outline += waves[2] * (double_cosine * cosine - double_sine * sine)
    outline += waves[3] * (double_sine * cosine + double_cosine * sine)
    for arm_cosine, arm_sine, length in body.arms.transpose(1, 2, 0):
        if length.any():
            bump = np.maximum(cosine * _column(arm_cosine) + sine * _column(arm_sine), 0)
            for _ in range(5):  # to the 32nd power: narrow at its end, wide at its root
                bump *= bump
            outline += _column(length) * bump
    return outline


def _apical_dendrite(u: Plane, v: Plane, radius: Plane, reaches: FloatArray) -> Plane:
    """A process along u that tapers from the cell body to its end."""
    along = np.clip(u / _column(np.maximum(reaches, 1)), 0, 1)
    width = 0.6 * radius * (1 - along) ** 2 + 0.8
    dendrite = np.clip((width - np.abs(v)) / (2 * SOMA_BLUR) + 0.5, 0, 1) * np.sqrt(1 - along)
    dendrite *= (u > 0) & (_column(reaches) > 0)
    return np.float32(0.8) * dendrite


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
