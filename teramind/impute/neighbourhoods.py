"""Sums over the cells around spots, for all radii in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from teramind.errors import InputError

SPOTS_AT_ONCE = 256
"""Spots of one piece of work. With 500 genes their sums (1 MB) and their cells' rows stay in a core's cache."""


Sums = NDArray[np.floating[Any]]


def nearby_pieces(spots: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Cut spots into pieces of neighbours, so that the rows around a piece are few and read many times.

    Returns:
        Indices of the spots of each piece; together each spot once.
    """
    if not len(spots):
        return []
    order = cKDTree(spots).indices  # a tree keeps what is close together in one leaf
    return np.array_split(order, -(-len(order) // SPOTS_AT_ONCE))


class Neighbourhoods:
    """Cells with values, to be summed around spots.

    Args:
        positions: (n, d) of the cells, d = 2 or 3.
        values: (n, columns) of the cells, sparse.
    """

    def __init__(self, positions: NDArray[np.float64], values: csr_array) -> None:
        self.positions = positions
        self.values = values
        self.tree = cKDTree(positions)
        self.dtype = _exact_type(values)

    def in_balls(self, spots: NDArray[np.float64], radii: Sequence[float]) -> Iterator[Sums]:
        """Sums over the closed balls around some spots.

        Args:
            spots: (m, d) centres.
            radii: ascending. A ball is what the one before holds and the ring between them, so that all radii together
                take the work of the largest.

        Yields:
            For each radius the sums (m, columns), the same array each time.
        """
        pairs = cKDTree(spots).sparse_distance_matrix(self.tree, radii[-1], output_type="ndarray")
        cells, member = np.unique(pairs["j"], return_inverse=True)
        rows = self.values[cells].astype(self.dtype, copy=False).toarray()
        # Members sorted by ring, then spot: each ring is then a stretch of them, and a sparse matrix as it stands.
        place = np.searchsorted(radii, pairs["v"], side="left") * len(spots) + pairs["i"]
        member = member[np.argsort(place, kind="stable")]
        held = np.bincount(place, minlength=len(radii) * len(spots))
        ends = np.concatenate([[0], np.cumsum(held)])
        sums: Sums = np.zeros((len(spots), self.values.shape[1]), dtype=self.dtype)
        ones = np.ones(len(member), dtype=self.dtype)
        for first in range(0, len(held), len(spots)):
            indptr = ends[first : first + len(spots) + 1]
            inside = member[indptr[0] : indptr[-1]]
            ring = csr_array((ones[: len(inside)], inside, indptr - indptr[0]), shape=(len(spots), len(cells)))
            sums += ring @ rows
            yield sums

    def of_nearest(self, spots: NDArray[np.float64], neighbours: int, skip: int) -> Sums:
        """Sums over the nearest cells of some spots.

        Args:
            spots: (m, d).
            neighbours: how many cells to sum.
            skip: nearest cells to leave out first: 1 where the spots are themselves among the cells.

        Returns:
            Sums (m, columns).

        Raises:
            InputError: there are fewer cells than that.
        """
        if neighbours + skip > len(self.positions):
            raise InputError(f"{neighbours} neighbours need {neighbours + skip} cells; there are {len(self.positions)}")
        nearest = self.tree.query(spots, neighbours + skip)[1].reshape(len(spots), -1)[:, skip:]
        indptr = np.arange(0, nearest.size + 1, neighbours)
        ones = np.ones(nearest.size)
        members = csr_array((ones, nearest.ravel(), indptr), shape=(len(spots), len(self.positions)))
        sums: Sums = (members @ self.values).toarray()
        return sums


def _exact_type(values: csr_array) -> type[np.float32] | type[np.float64]:
    """float32 for counts so small that any sum of them is exact in it, which halves the memory to go through."""
    whole = np.array_equal(values.data, np.rint(values.data))
    totals = np.bincount(values.indices, np.abs(values.data), minlength=1)
    return np.float32 if whole and totals.max() < 2**24 else np.float64
