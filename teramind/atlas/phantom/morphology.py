"""What the genes leave open about a cell: where exactly its nucleus lies, its size, shape, texture and brightness.

All of it is drawn with a seed of its own. With another one the same cells, with the same transcripts, look as they
might as well have looked: the best that a model which sees nothing but the genes can do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import Draws, FloatArray, Purpose

# Standard deviations of what is drawn.
OFFSET = 0.11  # of the nucleus' centre from the cell's, in radii of the nucleus, along each axis
RADIUS_SPREAD = 0.06  # relative
ELONGATION_SPREAD = 0.09  # relative
TURN_SPREAD = 0.22  # rad, of what is aligned
BRIGHTNESS_SPREAD = 0.12  # relative
OUTLINE_SPREAD = 0.05  # of the outline's third harmonic, relative
# The optical section: what lies this far off the plane is seen as if it lay in it, um.
FOCUS = 1.2
# Standard deviation of the smooth harmonics of a cell body's outline, relative.
SOMA_SPREAD = 0.07
MAX_SPOTS = 6
MAX_ARMS = 5


@dataclass(frozen=True)
class Bodies:
    """How the cells of a table look in one plane; (n,) each, um where not said otherwise.

    Attributes:
        x: centre of the nucleus.
        y: centre of the nucleus.
        major: semi-axis of the nucleus' cut; 0 where the plane misses it.
        minor: the other one.
        angle: of the major axis, rad from x towards y.
        outline: strength of the third harmonic of its outline.
        outline_skew: that of the other phase.
        dapi: grey levels of the nucleus.
        focus: 1 where the plane cuts the nucleus through its middle, towards 0 at its caps, which are blurred.
        soma: semi-axis of the cell body's cut; 0 where the plane misses it.
        soma_focus: as ``focus``, of the cell body.
        soma_waves: (n, 4) cosine and sine parts of the second and third harmonic of its outline.
        arms: (n, MAX_ARMS, 3) processes: direction (cosine, sine) and length in radii of the body; 0 for none.
        poly_t: grey levels of the cytoplasm.
        spots: (n, MAX_SPOTS, 4) chromocentres: place in the nucleus along major and minor axis (1 is the outline),
            radius in um, and height relative to the nucleus' brightness; 0 for none.
    """

    x: FloatArray
    y: FloatArray
    major: FloatArray
    minor: FloatArray
    angle: FloatArray
    outline: FloatArray
    outline_skew: FloatArray
    dapi: FloatArray
    focus: FloatArray
    soma: FloatArray
    soma_focus: FloatArray
    soma_waves: FloatArray
    arms: FloatArray
    poly_t: FloatArray
    spots: FloatArray

    def take(self, chosen: npt.NDArray[np.intp]) -> Bodies:
        """Some of the cells."""
        return Bodies(**{name: values[chosen] for name, values in vars(self).items()})


def bodies_of(cells: Cells, morphology_seed: int, plane: float) -> Bodies:
    """Draw the bodies of cells and cut them.

    Args:
        cells: which.
        morphology_seed: of all that the genes do not decide.
        plane: z of the image, um.
    """
    draws = Draws(morphology_seed, Purpose.MORPHOLOGY, cells.id)
    look = {name: values[cells.type] for name, values in LOOKS.items()}
    radius = look["nucleus"] * (1 + RADIUS_SPREAD * draws.normal(0))
    stretch = np.sqrt(look["elongation"] * (1 + ELONGATION_SPREAD * np.abs(draws.normal(1))))
    shift = OFFSET * look["nucleus"]
    depth_axis = radius / np.cbrt(stretch)
    cut = _cut(plane - cells.z - shift * draws.normal(2), depth_axis)
    soma_cut = _cut(plane - cells.z, look["soma"])
    aligned = look["aligned"] > 0
    turn = np.where(aligned, cells.direction + TURN_SPREAD * draws.normal(3), 2 * np.pi * draws.uniform(3))
    bright = 1 + BRIGHTNESS_SPREAD * draws.normal(4)
    return Bodies(
        x=cells.x + shift * draws.normal(5),
        y=cells.y + shift * draws.normal(6),
        major=radius * stretch * cut,
        minor=radius / stretch * cut,
        angle=turn,
        outline=OUTLINE_SPREAD * draws.normal(7),
        outline_skew=OUTLINE_SPREAD * draws.normal(8),
        dapi=look["dapi"] * bright * (0.2 + 0.8 * cut),
        focus=cut,
        soma_focus=soma_cut,
        soma_waves=SOMA_SPREAD * np.stack([draws.normal(k) for k in range(11, 15)], axis=1),
        arms=_arms(draws, look["arms"]),
        soma=look["soma"] * (1 + RADIUS_SPREAD * draws.normal(9)) * soma_cut,
        poly_t=look["poly_t"]
        * np.sqrt(cells.size)
        * (1 + BRIGHTNESS_SPREAD * draws.normal(10))
        * (0.4 + 0.6 * soma_cut),
        spots=_spots(draws, look["spots"], look["spot_contrast"], radius),
    )


def _cut(distance: FloatArray, half_depth: FloatArray) -> FloatArray:
    """The radius of an ellipsoid's cut relative to that through its middle; 0 where the plane misses it."""
    off = np.maximum(np.abs(distance) - FOCUS, 0) / half_depth
    return np.sqrt(np.maximum(1 - off * off, 0))


def _arms(draws: Draws, length: FloatArray) -> FloatArray:
    arms = np.empty((len(length), MAX_ARMS, 3))
    for number in range(MAX_ARMS):
        first = 64 + 2 * number
        angle = 2 * np.pi * (number + 0.7 * draws.uniform(first)) / MAX_ARMS
        arms[:, number, 0], arms[:, number, 1] = np.cos(angle), np.sin(angle)
        # Some are short, so that the cell has fewer to be seen.
        arms[:, number, 2] = length * np.maximum(1.6 * draws.uniform(first + 1) - 0.35, 0)
    return arms


def _spots(draws: Draws, count: FloatArray, contrast: FloatArray, radius: FloatArray) -> FloatArray:
    spots = np.empty((len(radius), MAX_SPOTS, 4))
    for number in range(MAX_SPOTS):
        first = 16 + 4 * number
        # Within 0.62 of the outline, where most chromocentres are.
        spots[:, number, 0] = 0.62 * (2 * draws.uniform(first) - 1)
        spots[:, number, 1] = 0.62 * (2 * draws.uniform(first + 1) - 1)
        spots[:, number, 2] = radius * (0.10 + 0.09 * draws.uniform(first + 2))
        held = number < count * (0.6 + 0.8 * draws.uniform(first + 3))
        spots[:, number, 3] = np.where(held, contrast * (0.7 + 0.6 * draws.uniform(first + 2)), 0)
    return spots
