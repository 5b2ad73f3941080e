"""Which nuclei of two images are the same: one-to-one by centroid, or by overlap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from teramind.errors import InputError
from teramind.evaluate.nuclei.segment import Labels

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Pairs of true and found nuclei, each in at most one.

    Attributes:
        truth: index of the true nucleus of each pair.
        found: index of the found one.
        true_count: how many true nuclei there are.
        found_count: how many were found.
    """

    truth: Index
    found: Index
    true_count: int
    found_count: int

    @property
    def f1(self) -> float:
        """Twice the pairs over all nuclei of both images; NaN without any."""
        return f1_of(2 * len(self.truth), self.true_count + self.found_count)


def f1_of(paired: float, nuclei: float) -> float:
    """F1 from how many nuclei of both images are in a pair, and how many there are."""
    return float(paired / nuclei) if nuclei else float("nan")


def match_nuclei(truth: npt.NDArray[np.float64], found: npt.NDArray[np.float64], radius: float) -> Matches:
    """Pair centroids at most ``radius`` apart: as many pairs as possible, and of those with the least total distance.

    The graph of candidates falls into small parts, each of which is an assignment problem of its own.

    Args:
        truth: (n, 2) places.
        found: (m, 2) places.
        radius: in their unit.
    """
    if not radius > 0:
        raise InputError(f"nuclei cannot be matched within {radius} um; give a radius above 0")
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius, output_type="ndarray")
    return Matches(*_assigned(near["i"], near["j"], near["v"] / radius, len(truth), len(found)), len(truth), len(found))


def match_by_overlap(truth: Labels, found: Labels, least: float = 0.5) -> Matches:
    """Pair labels whose intersection is at least ``least`` of their union, 0.5 or more; such pairs exclude each other.

    Args:
        truth: (h, w); 0 is none.
        found: (h, w).
        least: IoU from which two are the same.

    Returns:
        Indices into the sorted labels of each image.
    """
    if not 0.5 <= least <= 1:
        raise InputError(f"an overlap of {least} pairs a nucleus with several; give 0.5 to 1")
    (true_labels, true_area), (found_labels, found_area) = (
        np.unique(image[image > 0], return_counts=True) for image in (truth, found)
    )
    both = (truth > 0) & (found > 0)
    a, b = np.searchsorted(true_labels, truth[both]), np.searchsorted(found_labels, found[both])
    pairs, shared = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    rows, columns = pairs.astype(np.int64)
    overlap = shared / (true_area[rows] + found_area[columns] - shared)
    enough = overlap >= least  # at exactly one half a label could have two partners; the assignment leaves it one
    counts = len(true_labels), len(found_labels)
    return Matches(*_assigned(rows[enough], columns[enough], 1 - overlap[enough], *counts), *counts)


def _assigned(rows: Index, columns: Index, cost: npt.NDArray[np.float64], n: int, m: int) -> tuple[Index, Index]:
    """One-to-one pairs out of candidate pairs with costs of 0..1: as many as possible, then the cheapest."""
    graph = csr_array((np.ones(len(rows)), (rows, n + columns)), shape=(n + m, n + m))
    _, part = connected_components(graph, directed=False)
    order = np.argsort(part[rows], kind="stable")
    rows, columns, cost = rows[order], columns[order], cost[order]
    bounds = np.flatnonzero(np.diff(part[rows], prepend=-1, append=-1))
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for start, end in pairwise(bounds.tolist()):
        r, c = rows[start:end], columns[start:end]
        pairs.append(np.stack([r, c]) if end - start == 1 else _assign_part(r, c, cost[start:end]))
    chosen = np.concatenate(pairs, axis=1)
    return chosen[0], chosen[1]


def _assign_part(rows: Index, columns: Index, cost: npt.NDArray[np.float64]) -> Index:
    (row_names, r), (column_names, c) = (np.unique(axis, return_inverse=True) for axis in (rows, columns))
    # No chain of cheaper pairs is worth one pair less.
    matrix = np.full((len(row_names), len(column_names)), 2.0 * (len(rows) + 1))
    matrix[r, c] = cost
    i, j = linear_sum_assignment(matrix)
    real = matrix[i, j] <= 1
    return np.stack([row_names[i[real]], column_names[j[real]]])
