"""A hole in a slice: how many cells belong there, and within what tissue, without looking at what lies in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError

from teramind.errors import InputError
from teramind.impute.density import PIXEL, TissueDensity
from teramind.impute.planes import Plane, Positions
from teramind.impute.regions import Mask, Region

STEEP = 0.7  # |cosine| between a plane's normal and the slices' axis above which slices are neighbours of the plane
RING = 0.2  # mm: width of the tissue around a hole in which its slice is compared with the others
PIXELS_ACROSS = 40  # of a hole, at least
ENOUGH_IN_HOLE = 0.2  # of the cells that the median slice has where the hole is: fewer, and it has the hole too
FEWEST_TO_TELL = 10  # cells that the median slice has there: with fewer, an empty slice says nothing


@dataclass(frozen=True)
class Hole:
    """A hole and what belongs there.

    Attributes:
        target: the part of the hole that is tissue.
        cells_per_mm: cells to expect in the target, per mm of the slab's thickness.
        intact: (sections,) slices that have cells where the hole is, and are not the plane's own.
        ignored: measured cells of the plane's own slices that lie in the hole; nothing looks at them.
    """

    target: Region
    cells_per_mm: float
    intact: NDArray[np.bool_]
    ignored: int


@dataclass(frozen=True)
class Within:
    """The part of a region that a mask covers."""

    region: Region
    mask: Mask

    @property
    def area(self) -> float:
        return self.mask.area

    @property
    def bounds(self) -> tuple[Positions, Positions]:
        (low, high), (least, most) = self.region.bounds, self.mask.bounds
        return np.maximum(low, least), np.minimum(high, most)

    def contains(self, points: Positions, margin: float = 0.0) -> NDArray[np.bool_]:
        return self.region.contains(points, margin) & self.mask.contains(points, margin)


def examine_hole(density: TissueDensity, plane: Plane, region: Region) -> Hole:
    """How many cells belong into a hole, and where.

    The intact slices on either side say how dense the tissue is in the hole, and where it ends. They are scaled by how
    the hole's own slice compares with them in a ring of 0.2 mm around the hole. Where no slice is intact, the tissue is
    as dense as in the ring, and ends where the line around the ring's tissue does.

    Args:
        density: of the measured cells.
        plane: that the hole lies in.
        region: the hole, in the plane's coordinates.

    Raises:
        InputError: no tissue there.
    """
    intact, planted = _look_at_sections(density, plane, region)
    ignored = int(sum(rows.sum() for rows in planted))
    if ignored:
        density = density.without(planted)
    centres, shape, pixel = _pixels(region)
    inside = region.contains(centres)
    around = region.contains(centres, RING) & ~region.contains(centres, PIXEL)
    lifted, bare = plane.lift(centres), density.unsmoothed()
    seen = bare.at(lifted)
    expected = bare.of_sections(intact).at(lifted) if intact.any() else np.zeros(len(centres))
    if expected[inside].any():
        if expected[around].any() and seen[around].any():
            expected = expected * (seen[around].sum() / expected[around].sum())
        tissue = inside & (_depth(density, intact, lifted, region.contains(centres, RING / 2)) > 0)
        cells = expected[inside].sum() * pixel**2
    else:
        ring = around & (density.depth(lifted) > 0)
        tissue = inside & _surrounded(centres, centres[ring])
        cells = seen[ring].mean() * tissue.sum() * pixel**2 if ring.any() else 0.0
    if not tissue.any() or cells == 0:
        raise InputError("there is no tissue around the hole: no measured slice near it has cells there")
    corner = centres[0] - pixel / 2
    mask = Mask(tissue.reshape(shape), (float(corner[0]), float(corner[1])), pixel)
    return Hole(Within(region, mask), float(cells), intact, ignored)


def _look_at_sections(
    density: TissueDensity, plane: Plane, region: Region
) -> tuple[NDArray[np.bool_], list[NDArray[np.bool_]]]:
    """Which slices are intact; and of the cells of each slice, those of the plane's own slices that lie in the hole."""
    number = len(density.sections)
    if abs(plane.normal[density.axis]) < STEEP:  # across the slices: each has a line of the hole at most
        return np.ones(number, dtype=bool), [np.zeros(len(points), dtype=bool) for points in density.points]
    own, inside = np.zeros(number, dtype=bool), []
    for index, (section, points) in enumerate(zip(density.sections, density.points, strict=True)):
        flat = plane.flatten(points)
        inside.append(region.contains(flat))
        near = region.contains(flat, RING)
        if near.any():
            away = abs(float(plane.offsets(points[near]).mean()))
            own[index] = away <= max(density.thickness, section.spread)
    held = np.array([rows.sum() for rows in inside])
    others = held[~own & (held > 0)]
    usual = float(np.median(others)) if others.size else 0.0
    broken = own | (held <= ENOUGH_IN_HOLE * usual) if usual >= FEWEST_TO_TELL else own
    return ~broken, [rows & mine for rows, mine in zip(inside, own, strict=True)]


def _pixels(region: Region) -> tuple[Positions, tuple[int, int], float]:
    """Centres (rows * columns, 2) of pixels over a region and the ring around it, rows and columns, and their side."""
    low, high = region.bounds
    pixel = min(PIXEL, float((high - low).max()) / PIXELS_ACROSS)
    axes = [np.arange(start - RING + pixel / 2, stop + RING, pixel) for start, stop in zip(low, high, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return centres, (len(axes[0]), len(axes[1])), pixel


def _depth(
    density: TissueDensity, intact: NDArray[np.bool_], positions: Positions, near_hole: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n,) distance of positions from the outline of the intact slices, moved to where it meets the own slice's."""
    depth = density.of_sections(intact).depth(positions)
    outline = ~near_hole & (np.abs(depth) < RING / 2)  # nearer to the outline than to the hole
    if not outline.any():
        return depth
    return depth + float((density.depth(positions) - depth)[outline].mean())


def _surrounded(points: Positions, ring: Positions) -> NDArray[np.bool_]:
    """(n,) which points lie within the line around the ring's."""
    try:
        return np.asarray(Delaunay(ring).find_simplex(points) >= 0)
    except (QhullError, ValueError):
        return np.zeros(len(points), dtype=bool)
