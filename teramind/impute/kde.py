"""Gaussian kernel density of cells, in logarithms: far from all cells it is small, never zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 22
"""Distances in memory at a time: 16 MB in float32."""


def log_density(points: Tensor, cells: Tensor, bandwidth: float) -> Tensor:
    """Logarithm of ``mean_i exp(-|x - x_i|^2 / (2 h^2))``, which is not normalised by the volume of the kernel.

    Args:
        points: (m, d).
        cells: (n, d), n > 0.
        bandwidth: h, in the unit of the positions.

    Returns:
        (m,).
    """
    return torch.cat([_exponents(part, cells, bandwidth).logsumexp(1) for part in _parts(points, cells)]) - math.log(
        len(cells)
    )


def log_density_gradient(points: Tensor, cells: Tensor, bandwidth: float) -> Tensor:
    """Gradient of ``log_density`` at the points: ``(sum_i softmax_i x_i - x) / h^2``, exact and finite everywhere.

    Arguments are those of ``log_density``.

    Returns:
        (m, d), in 1 / unit of the positions.
    """
    means = [_exponents(part, cells, bandwidth).softmax(1) @ cells for part in _parts(points, cells)]
    return (torch.cat(means) - points) / bandwidth**2


def _exponents(points: Tensor, cells: Tensor, bandwidth: float) -> Tensor:
    """(m, n) exponents of the kernels."""
    return torch.cdist(points, cells, compute_mode="donot_use_mm_for_euclid_dist").square() * (-0.5 / bandwidth**2)


def _parts(points: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    return points.split(max(1, PAIRS_AT_ONCE // len(cells)))
