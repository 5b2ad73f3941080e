"""Average ranks of many rows at once, and the correlations of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.floating[Any]]


def rank_rows(values: Real) -> NDArray[np.float64]:
    """Ranks 1 .. n within each row, ties sharing their mean rank, as ``scipy.stats.rankdata(values, axis=1)``.

    Args:
        values: (rows, n), finite.

    Returns:
        (rows, n).
    """
    rows, n = values.shape
    if not values.size:
        return np.zeros((rows, n))
    order = np.argsort(values, axis=1)
    by_rank = np.take_along_axis(values, order, axis=1)
    begins = np.ones((rows, n), dtype=bool)  # where in the sorted row a group of equal values begins
    np.not_equal(by_rank[:, 1:], by_rank[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=rows * n)
    shared = starts % n + (sizes + 1) / 2
    ranks = np.empty((rows, n))
    np.put_along_axis(ranks, order, np.repeat(shared, sizes).reshape(rows, n), axis=1)
    return ranks


def correlate_rows(a: Real, b: Real) -> NDArray[np.float64]:
    """Pearson correlation of each row of ``a`` with the same row of ``b``.

    Args:
        a: (rows, n).
        b: (rows, n).

    Returns:
        (rows,), NaN where a row is constant.
    """
    varies = (a != a[:, :1]).any(axis=1) & (b != b[:, :1]).any(axis=1)  # the mean of equal values may round
    a = a - a.mean(axis=1, keepdims=True, dtype=np.float64)
    b = b - b.mean(axis=1, keepdims=True, dtype=np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    correlations = np.full(len(norm), np.nan)
    np.divide(np.einsum("ij,ij->i", a, b), norm, out=correlations, where=varies & (norm > 0))
    return correlations.clip(-1, 1)
