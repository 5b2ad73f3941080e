"""Slices of a data set: which way they were cut, where they lie, and whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from teramind.errors import InputError
from teramind.impute.cells import Cells

AXES = ("ML", "DV", "AP")
LARGEST_MM = 100.0  # no brain of the frame is larger: such coordinates are in um or px
FLATTEST = 0.5  # a slice spreads at most this much along its normal, of what it spreads within its plane
LEAST_OVERLAP = 0.25  # of the smaller of two neighbouring slices' boxes
FEWEST_CELLS = 3


@dataclass(frozen=True)
class Section:
    """One slice.

    Attributes:
        name: as in the data.
        rows: its cells.
        axis: index (ML, DV, AP) of the axis it was cut across.
        offset: mean coordinate along that axis, mm.
        spread: standard deviation of its cells along that axis, mm.
    """

    name: str
    rows: NDArray[np.intp]
    axis: int
    offset: float
    spread: float = 0.0


def find_sections(cells: Cells) -> list[Section]:
    """The slices of some cells, ordered by axis and offset.

    Raises:
        InputError: the cells name no sections, or a section is no slice: it has too few cells or is not flat.
    """
    if cells.sections is None:
        raise InputError("these cells do not say which section each was measured in")
    found = []
    for name in np.unique(cells.sections).tolist():
        rows = np.flatnonzero(cells.sections == name)
        if len(rows) < FEWEST_CELLS:
            raise InputError(f"section {name!r} has {len(rows)} cells, which is no slice; remove it")
        spread = cells.positions[rows].std(axis=0)
        axis = int(np.argmin(spread))
        if spread[axis] > FLATTEST * np.delete(spread, axis).min():
            raise InputError(
                f"section {name!r} is not flat: its cells spread {spread[axis]:.2f} mm along {AXES[axis]};"
                " check that obsm holds positions in the common frame, and that sections have names of their own"
            )
        found.append(Section(name, rows, axis, float(cells.positions[rows, axis].mean()), float(spread[axis])))
    return sorted(found, key=lambda section: (section.axis, section.offset))


def check_alignment(cells: Cells, sections: Sequence[Section]) -> None:
    """Make sure that the slices lie in one frame, in mm.

    Raises:
        InputError: coordinates far beyond a brain's size, or neighbouring slices that hardly overlap.
    """
    largest = float(np.abs(cells.positions).max(initial=0))
    if largest > LARGEST_MM:
        raise InputError(f"a coordinate is {largest:,.0f}, too much for mm in the common frame; divide um by 1000")
    for before, after in pairwise(sections):
        if before.axis == after.axis and _overlap(cells, before, after) < LEAST_OVERLAP:
            raise InputError(
                f"sections {before.name!r} and {after.name!r} are neighbours along {AXES[before.axis]} and hardly"
                " overlap; register the slices to the common frame first"
            )


def _overlap(cells: Cells, a: Section, b: Section) -> float:
    """Common part of the boxes around most cells of two slices, of the smaller box."""
    low, high = np.empty((2, 2)), np.empty((2, 2))
    for index, section in enumerate((a, b)):
        within = np.delete(cells.positions[section.rows], section.axis, axis=1)
        low[index], high[index] = np.quantile(within, (0.05, 0.95), axis=0)
    common = np.clip(high.min(axis=0) - low.max(axis=0), 0, None).prod()
    return float(common / max((high - low).prod(axis=1).min(), np.finfo(float).tiny))
