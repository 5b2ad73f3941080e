"""Cells between the measured slices: each slice, spread towards its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teramind.impute.planes import Positions
from teramind.impute.sections import Section

LONE_GAP = 0.1  # mm: how far from its neighbour a slice without any is taken to be


class BetweenSlices:
    """Draws cells moved off their slices, so that the tissue between the slices is filled as densely as they are.

    A cell moves along its slice's normal, at most to the next slice, with a density that falls linearly with the way:
    between two slices both are seen, each with the weight of its proximity. Beyond the outer slices the tissue goes on
    unchanged for half of the distance to their neighbour. A cell of slices far apart stands for more tissue, and is
    drawn more often.

    Args:
        positions: (n, 3) of cells in slices; those in none of ``sections`` are never drawn.
        sections: the slices, ordered by axis and offset.

    Attributes:
        axis: (n,) the axis across which each cell's slice was cut.
    """

    def __init__(self, positions: Positions, sections: Sequence[Section]) -> None:
        self.positions = positions
        self.axis = np.zeros(len(positions), dtype=np.intp)
        self.gap = np.zeros((len(positions), 2))  # mm to the next slice, towards smaller and greater coordinates
        self.outer = np.zeros((len(positions), 2), dtype=bool)
        for index, section in enumerate(sections):
            gaps = [0.0, 0.0]
            for side, other in ((0, index - 1), (1, index + 1)):
                if 0 <= other < len(sections) and sections[other].axis == section.axis:
                    gaps[side] = abs(sections[other].offset - section.offset)
            self.axis[section.rows] = section.axis
            self.outer[section.rows] = [gap == 0 for gap in gaps]
            self.gap[section.rows] = [gap or max(gaps) or LONE_GAP for gap in gaps]
        self.steps = self.gap.sum(axis=1).cumsum()

    def draw(self, uniform: NDArray[np.float64]) -> tuple[NDArray[np.intp], Positions]:
        """Rows (k,) of cells and where they were moved (k, 3), from uniform draws (k, 3) in 0 .. 1."""
        rows = np.searchsorted(self.steps, uniform[:, 0] * self.steps[-1], side="right").clip(max=len(self.steps) - 1)
        side = (uniform[:, 1] * self.gap[rows].sum(axis=1) >= self.gap[rows, 0]).astype(np.intp)
        way = np.where(self.outer[rows, side], uniform[:, 2] / 2, 1 - np.sqrt(uniform[:, 2])) * self.gap[rows, side]
        moved = self.positions[rows].copy()
        moved[np.arange(len(rows)), self.axis[rows]] += np.where(side == 1, way, -way)
        return rows, moved
