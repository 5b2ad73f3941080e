"""Scores of where cells lie: density, spacing, copies, and which types are neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from math import gamma, pi

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError, cKDTree
from scipy.stats import wasserstein_distance

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.kde import log_density
from teramind.impute.metrics import Mode

COPY_DISTANCE = 1e-3  # mm: closer to a cell that was given is a copy of it
LIKELIHOOD_BANDWIDTH = 0.05  # mm
DENSITY_FLOOR = 1e-200  # of the reference, under a logarithm

Points = NDArray[np.float64]


@dataclass(frozen=True)
class LayoutScores:
    """How predicted positions compare with the true ones, in one plane.

    Attributes:
        count_ratio: predicted cells per true cell.
        density_error: half of the integral of the difference of the two densities, 0 (alike) .. 1 (disjoint).
        spacing: median distance to the nearest predicted cell, um.
        true_spacing: the same of the true cells.
        spacing_error: Wasserstein distance between the two distributions of nearest distances, um.
        copies: fraction of predicted cells within 1 um of a cell that was given to the method.
        chance_copies: the same of the true cells, which copy nothing: what ``copies`` is by the density and the order
            of cells alone.
        log_likelihood: mean over true cells of the log density (per mm2) of the predicted cells, as a kernel density.
    """

    count_ratio: float
    density_error: float
    spacing: float
    true_spacing: float
    spacing_error: float
    copies: float
    chance_copies: float
    log_likelihood: float


def layout_scores(truth: Points, prediction: Points, given: Points) -> LayoutScores:
    """Compare positions within one plane.

    Args:
        truth: (n, 2) true cells, mm.
        prediction: (m, 2) predicted cells.
        given: (k, 2) cells that the prediction was made from, projected to the plane: those of the slices beside it,
            for all slices together leave no place that is not near one of their cells.

    Raises:
        InputError: fewer than two cells on a side.
    """
    if min(len(truth), len(prediction)) < 2:
        raise InputError(f"{len(truth)} true and {len(prediction)} predicted cells are too few to compare layouts")
    nearest, true_nearest = (nearest_distances(points, points, rank=2) * 1e3 for points in (prediction, truth))
    log_kernel = log_density(torch.from_numpy(truth), torch.from_numpy(prediction), LIKELIHOOD_BANDWIDTH)
    return LayoutScores(
        count_ratio=len(prediction) / len(truth),
        density_error=grid_difference(truth, prediction, radius=0.1),
        spacing=float(np.median(nearest)),
        true_spacing=float(np.median(true_nearest)),
        spacing_error=float(wasserstein_distance(nearest, true_nearest)),
        copies=_copies(prediction, given),
        chance_copies=_copies(truth, given),
        log_likelihood=float(log_kernel.mean()) - float(np.log(2 * pi * LIKELIHOOD_BANDWIDTH**2)),
    )


def _copies(prediction: Points, given: Points) -> float:
    return float((nearest_distances(given, prediction) < COPY_DISTANCE).mean()) if len(given) else 0.0


def neighbour_types(truth: Cells, prediction: Cells, mode: Mode = "paper") -> float:
    """Difference in which types touch, over the edges of Delaunay triangulations in the plane.

    In mode "reference" the sum of the differences of edge counts by ordered pair of types, per true cell (an edge
    within a type counts once, others twice, and other numbers of cells add to it); in mode "paper" half of the sum of
    the differences of the fractions of edges by pair: 0 (alike) .. 1.

    Args:
        truth: true cells, positions (n, 2), with types.
        prediction: predicted cells.
        mode: the rules.

    Raises:
        InputError: fewer than three cells, all of them on a line, or no types.
    """
    of_truth, of_prediction = (cells.require_types("scoring neighbours") for cells in (truth, prediction))
    names, codes = np.unique(np.concatenate([of_truth, of_prediction]), return_inverse=True)
    counts = [
        _pair_counts(cells.positions, types, len(names))
        for cells, types in ((truth, codes[: len(truth)]), (prediction, codes[len(truth) :]))
    ]
    if mode == "reference":
        return float(np.abs(counts[0] - counts[1]).sum() / len(truth))
    upper = [np.triu(pairs) / np.triu(pairs).sum() for pairs in counts]
    return float(np.abs(upper[0] - upper[1]).sum() / 2)


def grid_densities(
    truth: Points, prediction: Points, *, radius: float | None = None, neighbours: int | None = None, grid: int = 50
) -> tuple[Points, Points, float]:
    """Densities (per unit area, integrating to about 1) at the nodes of a grid over both sets of cells.

    Args:
        truth: (n, d).
        prediction: (m, d).
        radius: count cells in closed balls of this radius, or
        neighbours: measure the distance to the neighbour of this rank. Exactly one of the two.
        grid: nodes along each axis of the joint bounding box.

    Returns:
        Densities of truth and prediction (grid^d,), the last axis running fastest, and the area of a grid cell.
    """
    if (radius is None) == (neighbours is None):
        raise InputError("a density needs either a radius or a number of neighbours")
    both = np.concatenate([truth, prediction])
    axes = [np.linspace(low, high, grid) for low, high in zip(both.min(axis=0), both.max(axis=0), strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, both.shape[1])
    dimension = both.shape[1]
    unit_ball = pi ** (dimension / 2) / gamma(dimension / 2 + 1)
    densities = []
    for points in (truth, prediction):
        if radius is not None:
            inside = cKDTree(points).query_ball_point(nodes, radius, return_length=True)
            densities.append(inside / (len(points) * unit_ball * radius**dimension))
        else:
            rank = neighbours or 1
            distance = nearest_distances(points, nodes, rank)
            densities.append(rank / (len(points) * unit_ball * distance**dimension))
    cell = float(np.prod([axis[1] - axis[0] for axis in axes]))
    return densities[0], densities[1], cell


def grid_difference(
    truth: Points,
    prediction: Points,
    *,
    radius: float | None = None,
    neighbours: int | None = None,
    grid: int = 50,
    mode: Mode = "paper",
) -> float:
    """Difference of two densities on a grid.

    In mode "reference" the mean of ``|p - q|`` over the nodes; in mode "paper" half of its integral, with both
    densities scaled to integrate to 1: 0 (alike) .. 1 (disjoint). Other arguments are those of ``grid_densities``.
    """
    p, q, cell = grid_densities(truth, prediction, radius=radius, neighbours=neighbours, grid=grid)
    if mode == "reference":
        return float(np.abs(p - q).mean())
    return float(np.abs(p / (p.sum() * cell) - q / (q.sum() * cell)).sum() * cell / 2)


def grid_divergence(
    truth: Points,
    prediction: Points,
    *,
    radius: float | None = None,
    neighbours: int | None = None,
    grid: int = 50,
    mode: Mode = "paper",
) -> float:
    """Kullback-Leibler divergence of the prediction from the truth on a grid.

    In mode "reference" the mean of ``p log(p / q)`` with both floored at 1e-200, which can be negative; in mode "paper"
    both are scaled to sum to 1 first. Other arguments are those of ``grid_densities``.
    """
    p, q, _ = grid_densities(truth, prediction, radius=radius, neighbours=neighbours, grid=grid)
    if mode == "paper":
        p, q = p / p.sum(), q / q.sum()
    terms = np.maximum(p, DENSITY_FLOOR) * np.log(np.maximum(p, DENSITY_FLOOR) / np.maximum(q, DENSITY_FLOOR))
    return float(terms.mean() if mode == "reference" else terms.sum())


def nearest_distances(points: Points, at: Points, rank: int = 1) -> Points:
    """(n,) distance from each of the points (n, d) ``at`` to the nearest of ``points``, or to that of another rank."""
    return np.asarray(cKDTree(points).query(at, [rank])[0])[:, 0]


def _pair_counts(points: Points, types: NDArray[np.intp], kinds: int) -> NDArray[np.int64]:
    """(kinds, kinds) edges of the triangulation by the types of their ends, mixed ones in both orders."""
    try:
        triangles = Delaunay(points).simplices
    except (QhullError, ValueError):
        raise InputError(f"{len(points)} cells cannot be triangulated: it takes three that are not on a line") from None
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1), axis=0)
    ends = types[edges]
    mixed = ends[ends[:, 0] != ends[:, 1]]
    counts = np.zeros((kinds, kinds), dtype=np.int64)
    np.add.at(counts, tuple(np.concatenate([ends, mixed[:, ::-1]]).T), 1)
    return counts
