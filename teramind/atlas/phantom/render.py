"""Draws one tile of an image plane: nuclei and cell bodies over the tissue between them, then the camera's noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import FloatArray
from teramind.atlas.phantom.ground import between_cells
from teramind.atlas.phantom.morphology import MAX_SPOTS, Bodies
from teramind.atlas.phantom.patches import column, patches
from teramind.atlas.phantom.tile import Plane, Tile

# Half the width of an edge, um: the microscope's blur, and the cytoplasm's own edge.
BLUR, SOMA_BLUR = 0.45, 0.7
# Cuts of a smaller semi-axis are not seen, um.
SMALLEST_CUT = 0.7
# PolyT in a nucleus, relative to the cell body around it.
NUCLEAR_POLY_T = 0.42
# The camera: noise of a dark pixel and the growth of its variance with the signal, grey levels.
DARK_NOISE, SHOT_NOISE = 1.2, 0.10


def render_tile(
    tile: Tile, anatomy: Anatomy, cells: Cells, bodies: Bodies, morphology_seed: int
) -> npt.NDArray[np.uint8]:
    """Draw a tile.

    Args:
        tile: which.
        anatomy: for the tissue between the cells.
        cells: all that may reach into the tile.
        bodies: theirs.
        morphology_seed: of texture and noise.

    Returns:
        uint8 (2, side, side): DAPI and PolyT.
    """
    ground = between_cells(tile, anatomy, cells, morphology_seed)
    dapi, poly_t = ground.dapi, ground.poly_t
    somata, nuclei, inside = np.zeros_like(dapi), np.zeros_like(dapi), np.zeros_like(dapi)
    _draw_somata(tile, cells, bodies, somata)
    _draw_nuclei(tile, bodies, nuclei, inside)
    np.maximum(dapi, nuclei * ground.grain, out=dapi)
    np.maximum(poly_t, somata * ground.grain, out=poly_t)
    poly_t *= 1 - (1 - NUCLEAR_POLY_T) * inside
    return _photographed(np.stack([dapi, poly_t]), tile.pixel_noise(morphology_seed))


def _photographed(image: Plane, noise: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Add the camera's noise, in place of the standard normals given, and round."""
    noise *= np.sqrt(DARK_NOISE**2 + SHOT_NOISE * image)
    noise += image
    np.rint(noise, out=noise)
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


def _draw_nuclei(tile: Tile, bodies: Bodies, nuclei: Plane, inside: Plane) -> None:
    softness = BLUR * (1 + 1.2 * (1 - bodies.focus))
    # Half of the edge lies outside; the outline's waves, a tenth, come on top.
    reach = 1.1 * bodies.major * np.sqrt(1 + 2 * softness / np.maximum(bodies.minor, SMALLEST_CUT))
    for chosen, group in patches(tile, bodies.x, bodies.y, reach, bodies.minor > SMALLEST_CUT):
        body = bodies.take(chosen)
        u, v = group.turned(body.angle)
        u /= column(body.major)
        v /= column(body.minor)
        uu, vv = u * u, v * v
        squared = uu + vv
        # u^3 - 3 u v^2 is the third harmonic, cos 3 phi at the outline.
        squared += column(body.outline) * u * (uu - 3 * vv) + column(body.outline_skew) * v * (3 * uu - vv)
        covered = np.clip((1 - squared) * column(body.minor / (4 * softness[chosen])) + 0.5, 0, 1)
        shade = 1.04 - 0.16 * np.minimum(squared, 1)
        _add_spots(shade, u, v, body)
        group.raise_to(inside, covered)
        covered *= shade
        covered *= column(body.dapi)
        group.raise_to(nuclei, covered)


def _add_spots(shade: Plane, u: Plane, v: Plane, body: Bodies) -> None:
    scale = (body.major * body.minor).astype(np.float32)
    for number in range(MAX_SPOTS):
        place_u, place_v, radius, height = body.spots[:, number].T
        if not height.any():
            continue
        across, along = v - column(place_v), u - column(place_u)
        distance = (across * across + along * along) * column(scale / (radius * radius))
        shade += column(height) / (1 + distance * distance)


def _draw_somata(tile: Tile, cells: Cells, bodies: Bodies, somata: Plane) -> None:
    apical = LOOKS["apical"][cells.type]
    longest = 1.2 + bodies.arms[:, :, 2].max(axis=1, initial=0)
    reach = np.maximum(bodies.soma * longest, np.where(bodies.soma > 0, apical, 0)) + 3 * BLUR
    for chosen, group in patches(tile, bodies.x, bodies.y, reach, bodies.soma > SMALLEST_CUT):
        body = bodies.take(chosen)
        u, v = group.turned(cells.direction[chosen])
        radius = column(body.soma)
        distance = np.sqrt(u * u + v * v) + np.float32(1e-3)
        cosine, sine = u / distance, v / distance
        softness = SOMA_BLUR * (1 + 1.5 * (1 - body.soma_focus))
        outline = _soma_outline(cosine, sine, body) * radius
        covered = np.clip((outline - distance) * column(0.5 / softness) + 0.5, 0, 1)
        covered *= 1.1 - 0.45 * np.minimum(distance / outline, 1)
        reaches = apical[chosen]
        if reaches.any():
            np.maximum(covered, _apical_dendrite(u, v, radius, reaches), out=covered)
        covered *= column(body.poly_t)
        group.raise_to(somata, covered)


def _soma_outline(cosine: Plane, sine: Plane, body: Bodies) -> Plane:
    """Radius of the outline in the direction of each pixel, relative to the mean: waves and tapering processes."""
    double_cosine, double_sine = cosine * cosine - sine * sine, 2 * cosine * sine
    waves = [column(wave) for wave in body.soma_waves.T]
    outline = 1 + waves[0] * double_cosine + waves[1] * double_sine
    outline += waves[2] * (double_cosine * cosine - double_sine * sine)
    outline += waves[3] * (double_sine * cosine + double_cosine * sine)
    for arm_cosine, arm_sine, length in body.arms.transpose(1, 2, 0):
        if length.any():
            bump = np.maximum(cosine * column(arm_cosine) + sine * column(arm_sine), 0)
            for _ in range(5):  # to the 32nd power: narrow at its end, wide at its root
                bump *= bump
            outline += column(length) * bump
    return outline


def _apical_dendrite(u: Plane, v: Plane, radius: Plane, reaches: FloatArray) -> Plane:
    """A process along u that tapers from the cell body to its end."""
    along = np.clip(u / column(np.maximum(reaches, 1)), 0, 1)
    width = 0.6 * radius * (1 - along) ** 2 + 0.8
    dendrite = np.clip((width - np.abs(v)) / (2 * SOMA_BLUR) + 0.5, 0, 1) * np.sqrt(1 - along)
    dendrite *= (u > 0) & (column(reaches) > 0)
    return np.float32(0.8) * dendrite
