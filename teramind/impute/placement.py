"""Cells on a plane or in a hole: how many, where, guided by the slices nearby. Nothing of the target is looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from teramind.checks import integer_between
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.density import TissueDensity
from teramind.impute.holes import STEEP, examine_hole
from teramind.impute.interpolation import BetweenSlices
from teramind.impute.kde import log_density_gradient
from teramind.impute.location import Guide, LocationModel
from teramind.impute.planes import Plane, Positions
from teramind.impute.regions import Region

log = logging.getLogger(__name__)

REACH = 0.05  # mm: cells this close to a plane across the slices, after they were spread between them, guide it
COPIES = 4  # of each cell, spread
CELLS_IN_KERNEL = 40  # of the sparsest of the densities that guide: less is noise, more blurs layers
GUIDE_GRID = 4  # nodes along one bandwidth, of the grid on which the gradient is computed once
FALLBACK_BANDWIDTH = 0.02  # mm: of draws around measured cells where the model gives none
MOST_DRAWS = 300  # for each cell wanted: a hole of 0.3 mm is 1/140 of a mouse brain's coronal plane
DRAWS_AT_ONCE = 16_384
SPARE = 1.1  # draws of a round, of what the acceptance so far makes necessary
FALLBACK_ROUNDS = 50  # of draws around measured cells, where cells have to keep a distance


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """How to place cells.

    Raises:
        InputError: for a value outside what is allowed.
    """

    thickness: float = 0.01  # mm, of the slab to fill
    steps: int = 35  # of the diffusion
    guidance: float = 1.0  # how much of the way from the model's density to the neighbours' the cells go; 0 for none
    bandwidth: float | None = None  # mm, of those densities; None: such that the kernel holds some 40 cells
    longest_move: float = 0.05  # mm, in one step
    spacing: float = 0.0  # mm: leave out cells closer than this to another; 0.005 to 0.008 is what nuclei allow
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("thickness", "bandwidth", "longest_move"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)} mm; it has to be > 0")
        for name in ("guidance", "spacing"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        integer_between("seed", self.seed, 0, 2**31)


@dataclass(frozen=True)
class Placement:
    """Cells that were placed.

    Attributes:
        positions: (n, 3) mm.
        acceptance: of the model's samples, how many fell where cells were wanted.
        fallback: cells that the model did not give, drawn around measured ones instead.
    """

    positions: Positions
    acceptance: float
    fallback: int


@dataclass(frozen=True)
class Neighbour:
    """Measured cells beside a plane.

    Attributes:
        points: (n, 2) in the plane's coordinates.
        offset: of their slice from the plane, mm; 0 where they come from many slices.
        weight: by proximity; those of all neighbours add to 1.
    """

    points: Positions
    offset: float
    weight: float


def place_cells(
    model: LocationModel,
    measured: Cells,
    density: TissueDensity,
    plane: Plane,
    options: PlacementOptions,
    region: Region | None = None,
) -> Placement:
    """Fill a plane of the tissue, or a hole in it, with cells.

    Their number is that of the slices on either side; in a hole, scaled by how its own slice compares with them around
    it (``examine_hole``). A hole's own slice has no cells there, and the model has learned so; therefore the planes of
    the nearest slices that have are sampled for it. Should the slice have cells in the hole after all, nothing looks at
    them. Fewer cells are placed where ``options.spacing`` leaves no room for more.

    Args:
        model: trained on slices of the same frame.
        measured: cells with sections, which guide.
        density: of those.
        plane: the middle of the slab to fill.
        options: how.
        region: the hole, in the plane's coordinates; the whole tissue in the plane if None.

    Raises:
        InputError: the plane or the hole lies outside the tissue.
    """
    if region is None:
        target: Region = density.tissue_mask(plane)
        wanted = round(density.expected_cells(plane, options.thickness))
        neighbours, shifts = find_neighbours(measured, density, plane), []
    else:
        hole = examine_hole(density, plane, region)
        target, wanted = hole.target, round(hole.cells_per_mm * options.thickness)
        neighbours = shifts = find_neighbours(measured, density, plane, hole.intact)
        if hole.ignored:
            log.warning("%d measured cells lie in the hole; they are not looked at", hole.ignored)
    if wanted == 0:
        raise InputError("the hole is so small or the slab so thin that it holds no cell; enlarge it")
    placement = _sample(model, plane, target, shifts, wanted, options, None)
    covers = neighbours and all(target.contains(neighbour.points).any() for neighbour in neighbours)
    if options.guidance and covers and len(placement.positions):
        guide = _guide(neighbours, plane.flatten(placement.positions), target, options)
        placement = _sample(model, plane, target, shifts, wanted, options, guide)
    if len(placement.positions) == wanted:
        return placement
    return _completed(placement, wanted, neighbours, target, plane, options)


def _completed(
    placement: Placement,
    wanted: int,
    neighbours: list[Neighbour],
    target: Region,
    plane: Plane,
    options: PlacementOptions,
) -> Placement:
    """What the model did not give is drawn around measured cells, as far as the spacing leaves room."""
    numbers = np.random.default_rng([options.seed, wanted])
    positions, given = placement.positions, len(placement.positions)
    for _ in range(FALLBACK_ROUNDS if options.spacing else 1):
        missing = wanted - len(positions)
        if not missing:
            break
        offsets = options.thickness * numbers.uniform(-0.5, 0.5, missing)
        extra = plane.lift(_around_measured(neighbours, target, missing, numbers), offsets)
        positions = spaced(np.concatenate([positions, extra]), options.spacing)
    drawn = len(positions) - given
    log.warning("the model gave %d of %d cells; %d are drawn around measured ones", given, wanted, drawn)
    if len(positions) < wanted:
        log.warning("a spacing of %g mm leaves room for %d cells of %d", options.spacing, len(positions), wanted)
    return Placement(positions, placement.acceptance, drawn)


def _sample(
    model: LocationModel,
    plane: Plane,
    target: Region,
    shifts: list[Neighbour],
    wanted: int,
    options: PlacementOptions,
    guide: Guide | None,
) -> Placement:
    """Sample the plane, or those of ``shifts``, and keep what falls into the target, until there are enough."""
    generator, numbers = torch.Generator().manual_seed(options.seed), np.random.default_rng(options.seed)
    positions, drawn = np.zeros((0, 3)), 0
    while len(positions) < wanted and drawn < MOST_DRAWS * wanted:
        acceptance = (len(positions) + 1) / (drawn + 1)
        count = min(DRAWS_AT_ONCE, int(np.ceil(SPARE * (wanted - len(positions)) / acceptance)))
        offsets = options.thickness * numbers.uniform(-0.5, 0.5, count)
        asked = offsets + _shifts(shifts, count, numbers)
        flat = model.sample(plane, asked, generator, steps=options.steps, guide=guide)
        inside = target.contains(flat)
        positions = spaced(np.concatenate([positions, plane.lift(flat[inside], offsets[inside])]), options.spacing)
        drawn += count
    return Placement(positions[:wanted], len(positions) / drawn, 0)


def find_neighbours(
    measured: Cells, density: TissueDensity, plane: Plane, usable: NDArray[np.bool_] | None = None
) -> list[Neighbour]:
    """What was measured beside a plane: the nearest slice on either side, or all cells near a plane across the slices.

    Args:
        measured: cells with sections.
        density: of those; its sections are looked at.
        plane: which.
        usable: (sections,) which of the density's sections count; all if None.
    """
    if abs(plane.normal[density.axis]) < STEEP:
        uniform = np.random.default_rng(0).random((COPIES * len(measured), 3))
        _, moved = BetweenSlices(measured.positions, density.sections).draw(uniform)
        points = plane.flatten(moved[np.abs(plane.offsets(moved)) < REACH])
        return [Neighbour(points, 0.0, 1.0)] if len(points) else []
    flat = [plane.flatten(measured.positions[section.rows]) for section in density.sections]
    offsets = np.array([plane.offsets(measured.positions[section.rows]).mean() for section in density.sections])
    usable = np.ones(len(flat), dtype=bool) if usable is None else usable
    sides = [np.flatnonzero(usable & side) for side in (offsets <= 0, offsets > 0)]
    nearest = [int(rows[np.abs(offsets[rows]).argmin()]) for rows in sides if rows.size]
    distance = np.abs(offsets[nearest])
    weights = distance[::-1] / distance.sum() if len(nearest) == 2 else np.ones(len(nearest))
    found = zip(nearest, weights, strict=True)
    return [Neighbour(flat[index], float(offsets[index]), float(weight)) for index, weight in found if weight > 0]


def spaced(positions: Positions, minimum: float) -> Positions:
    """The positions without those that lie closer than ``minimum`` mm to an earlier one that stays."""
    if minimum <= 0 or len(positions) < 2:
        return positions
    keep = np.ones(len(positions), dtype=bool)
    pairs = cKDTree(positions).query_pairs(minimum, output_type="ndarray")
    for earlier, later in np.sort(pairs[np.lexsort(pairs.T[::-1])], axis=1):
        if keep[earlier]:
            keep[later] = False
    return positions[keep]


def _shifts(neighbours: list[Neighbour], count: int, numbers: np.random.Generator) -> NDArray[np.float64]:
    """(count,) offsets of neighbouring slices, each as often as its weight says; zeros without neighbours."""
    if not neighbours:
        return np.zeros(count)
    chosen = numbers.choice(len(neighbours), count, p=[neighbour.weight for neighbour in neighbours])
    return np.array([neighbour.offset for neighbour in neighbours])[chosen]


def _guide(neighbours: list[Neighbour], unguided: Positions, target: Region, options: PlacementOptions) -> Guide:
    """Moves positions towards where the neighbours are denser than the model's own samples.

    The gradient is that of the logarithm of the ratio of both densities. (The neighbours' density alone is highest in
    the middle of the tissue, and drives all cells there as far as the steps allow; the ratio is 1 where the model is
    right.) With noise of variance v in a position, guidance by the score moves it by v times the gradient. The gradient
    is computed once, on a grid around the target, and held constant beyond it.
    """
    beside = [neighbour.points[target.contains(neighbour.points)] for neighbour in neighbours]
    fewest = min(map(len, (unguided, *beside)))
    bandwidth = options.bandwidth or float(np.sqrt(CELLS_IN_KERNEL * target.area / (2 * np.pi * fewest)))
    pixel = bandwidth / GUIDE_GRID
    low, high = (corner + way * 3 * bandwidth for corner, way in zip(target.bounds, (-1, 1), strict=True))
    axes = [np.arange(start, stop + pixel, pixel) for start, stop in zip(low, high, strict=True)]
    nodes = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2))
    gradient = -log_density_gradient(nodes, torch.from_numpy(unguided), bandwidth)
    # The samples end where the target ends; what the neighbours have beyond it would draw cells across the border.
    for neighbour, points in zip(neighbours, beside, strict=True):
        gradient += neighbour.weight * log_density_gradient(nodes, torch.from_numpy(points), bandwidth)
    field = gradient.numpy().reshape(len(axes[0]), len(axes[1]), 2)

    def guide(positions: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
        where = ((positions - low) / pixel).T
        way = np.stack([map_coordinates(field[..., axis], where, order=1, mode="nearest") for axis in (0, 1)], axis=1)
        way *= options.guidance * variance
        length = np.linalg.norm(way, axis=1, keepdims=True)
        return way * np.minimum(1, options.longest_move / np.maximum(length, 1e-12))

    return guide


def _around_measured(
    neighbours: list[Neighbour], target: Region, count: int, numbers: np.random.Generator
) -> NDArray[np.float64]:
    """(count, 2) draws around measured cells in the target."""
    points = np.concatenate([np.zeros((0, 2)), *(neighbour.points for neighbour in neighbours)])
    points = points[target.contains(points)]
    if not len(points):
        raise InputError("no measured slice has cells where the hole is; fill a smaller one")
    found = np.zeros((0, 2))
    while len(found) < count:
        drawn = points[numbers.integers(len(points), size=count)] + numbers.normal(0, FALLBACK_BANDWIDTH, (count, 2))
        found = np.concatenate([found, drawn[target.contains(drawn)]])
    return found[:count]
