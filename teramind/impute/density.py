"""How many cells are where: a density in space, interpolated between the measured slices."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.planes import Plane, Positions
from teramind.impute.regions import Mask
from teramind.impute.sections import Section, find_sections

PIXEL = 0.025  # mm, of the grids
BANDWIDTH = 0.05  # mm: standard deviation of the smoothing
TISSUE_LEVEL = 0.2  # of the median density at cells: less is outside of the tissue
GAP = 0.16  # mm: narrower gaps between cells are tissue


class TissueDensity:
    """Cells per mm3 from slices cut across one axis.

    A slice of thickness h shows all cells of h mm: its cells per mm2 divided by h are cells per mm3. Between two slices
    the density is interpolated linearly; beyond the outer ones it stays for half of the distance to their neighbour.

    Args:
        cells: measured cells with sections. Where slices were cut across several axes, those of the axis with most
            sections are used.
        thickness: of the slices, mm.

    Raises:
        InputError: no sections, or a thickness that is not positive.
    """

    def __init__(self, cells: Cells, thickness: float) -> None:
        if not 0 < thickness < np.inf:
            raise InputError(f"the thickness of a section is {thickness} mm; it has to be > 0")
        self.sections = _main_axis(find_sections(cells))
        self.axis = self.sections[0].axis
        self.within = [axis for axis in range(3) if axis != self.axis]
        self.points = [cells.positions[section.rows] for section in self.sections]
        flat = [points[:, self.within] for points in self.points]
        self.offsets = np.array([section.offset for section in self.sections])
        margin = 4 * BANDWIDTH
        self.low = np.min([points.min(axis=0) for points in flat], axis=0) - margin
        shape = np.ceil((np.max([points.max(axis=0) for points in flat], axis=0) + margin - self.low) / PIXEL)
        size = (int(shape[0]), int(shape[1]))
        self.thickness = thickness
        self.counts = np.stack([_counted(points, self.low, size) for points in flat])
        self.grids = np.stack([_smoothed(counts) for counts in self.counts]) / (PIXEL**2 * thickness)
        self.ends = self._ends()
        at_cells = [self._in_section(index, points) for index, points in enumerate(flat)]
        self.tissue = TISSUE_LEVEL * float(np.median(np.concatenate(at_cells)))

    def at(self, positions: Positions) -> NDArray[np.float64]:
        """(n,) cells per mm3 at positions (n, 3)."""
        within = positions[:, self.within]
        before, weight = self._between(positions[:, self.axis])
        density = np.zeros(len(positions))
        for index in range(len(self.offsets)):
            for rows, part in ((before == index, 1 - weight), (before + 1 == index, weight)):
                rows = rows & (part > 0)
                if rows.any():
                    density[rows] += part[rows] * self._in_section(index, within[rows])
        return density

    def inside(self, positions: Positions) -> NDArray[np.bool_]:
        """(n,) which positions (n, 3) lie in the tissue."""
        return self.at(positions) > self.tissue

    def on_plane(self, plane: Plane, low: Positions, high: Positions) -> tuple[NDArray[np.float64], Positions]:
        """Density at the centres of square pixels of a plane.

        Args:
            plane: which.
            low: lower corner (2,) of the box to cover, in the plane's coordinates.
            high: upper corner.

        Returns:
            (rows, columns) cells per mm3, and the centres (rows * columns, 2).
        """
        axes = [
            np.arange(start + PIXEL / 2, max(stop, start + PIXEL), PIXEL) for start, stop in zip(low, high, strict=True)
        ]
        centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        return self.at(plane.lift(centres)).reshape(len(axes[0]), len(axes[1])), centres

    def plane_bounds(self, plane: Plane) -> tuple[Positions, Positions]:
        """Corners (2,) of a box in the plane that holds all tissue in it."""
        reach = self.ends
        corners = np.empty((8, 3))
        for index in range(8):
            bits = [(index >> bit) & 1 for bit in range(3)]
            within = np.where(bits[:2], self.low + np.array(self.grids.shape[1:]) * PIXEL, self.low)
            corners[index, self.within] = within
            corners[index, self.axis] = reach[bits[2]]
        flat = plane.flatten(corners)
        return flat.min(axis=0), flat.max(axis=0)

    def expected_cells(self, plane: Plane, thickness: float) -> float:
        """Cells to expect in a slab around a plane, from the slices on either side.

        Args:
            plane: the middle of the slab.
            thickness: of the slab, mm.

        Raises:
            InputError: no tissue there.
        """
        if not 0 < thickness < np.inf:
            raise InputError(f"the slab's thickness is {thickness} mm; it has to be > 0")
        density, _ = self.on_plane(plane, *self.plane_bounds(plane))
        per_mm3 = float(density[density > self.tissue].sum())
        if per_mm3 == 0:
            raise InputError("the plane lies outside the tissue: no measured slice near it has cells there")
        return per_mm3 * PIXEL**2 * thickness

    def of_sections(self, chosen: NDArray[np.bool_]) -> TissueDensity:
        """The density as these of the sections tell it; the tissue ends where it did along the axis."""
        found = copy.copy(self)
        found.sections = [section for section, taken in zip(self.sections, chosen, strict=True) if taken]
        found.points = [points for points, taken in zip(self.points, chosen, strict=True) if taken]
        found.offsets, found.counts, found.grids = self.offsets[chosen], self.counts[chosen], self.grids[chosen]
        return found

    def without(self, left_out: Sequence[NDArray[np.bool_]]) -> TissueDensity:
        """The density without some cells: for each section which of its points. The tissue ends where it did."""
        found = copy.copy(self)
        kept = zip(self.points, left_out, strict=True)
        found.points = [points[~dropped] for points, dropped in kept]
        size = (self.counts.shape[1], self.counts.shape[2])
        found.counts = np.stack([_counted(points[:, self.within], self.low, size) for points in found.points])
        found.grids = np.stack([_smoothed(counts) for counts in found.counts]) / (PIXEL**2 * self.thickness)
        return found

    def unsmoothed(self) -> TissueDensity:
        """The density of the bare counts: noisy at a place, without blur in a sum over places."""
        found = copy.copy(self)
        found.grids = self.counts / (PIXEL**2 * self.thickness)
        return found

    def depth(self, positions: Positions) -> NDArray[np.float64]:
        """(n,) how far positions (n, 3) lie within the tissue, mm, negative outside.

        The outline of a slice encloses its cells and the gaps between them; between slices the distance to it is
        interpolated, so that the outline moves evenly from one to the next.
        """
        found = copy.copy(self)
        found.grids = np.stack([_depth(counts > 0, GAP / 2) for counts in self.counts])
        return found.at(positions)

    def tissue_mask(self, plane: Plane) -> Mask:
        """Where the tissue is in a plane, from the measured slices."""
        low, high = self.plane_bounds(plane)
        density, _ = self.on_plane(plane, low, high)
        inside = density > self.tissue
        if not inside.any():
            raise InputError("the plane lies outside the tissue: no measured slice near it has cells there")
        return Mask(inside, (float(low[0]), float(low[1])), PIXEL)

    def _between(self, offset: Positions) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The slice before each offset, and the weight of the one after it; before = -2 where there is no tissue."""
        low, high = self.ends
        clipped = offset.clip(self.offsets[0], self.offsets[-1])
        before = np.searchsorted(self.offsets, clipped, side="right") - 1
        before = before.clip(0, max(0, len(self.offsets) - 2))
        after = self.offsets[np.minimum(before + 1, len(self.offsets) - 1)]
        gap = after - self.offsets[before]
        weight = np.divide(clipped - self.offsets[before], gap, out=np.zeros(len(offset)), where=gap > 0)
        outside = (offset < low) | (offset > high)
        return np.where(outside, -2, before), weight

    def _ends(self) -> tuple[float, float]:
        """Where the tissue ends along the axis."""
        gaps = np.diff(self.offsets)
        first, last = (gaps[0] / 2, gaps[-1] / 2) if len(gaps) else (BANDWIDTH, BANDWIDTH)
        return float(self.offsets[0] - first), float(self.offsets[-1] + last)

    def _in_section(self, index: int, points: Positions) -> NDArray[np.float64]:
        coordinates = ((points - self.low) / PIXEL - 0.5).T
        return np.asarray(map_coordinates(self.grids[index], coordinates, order=1, mode="constant"))


def _main_axis(sections: list[Section]) -> list[Section]:
    """Sections across the axis that most of them were cut across."""
    axes = [section.axis for section in sections]
    main = max(set(axes), key=lambda axis: (axes.count(axis), axis))
    return [section for section in sections if section.axis == main]


def _counted(points: Positions, low: Positions, size: tuple[int, int]) -> NDArray[np.uint16]:
    """Cells in each pixel of the grid."""
    index = ((points - low) / PIXEL).astype(np.int64)
    counts = np.bincount(index[:, 0] * size[1] + index[:, 1], minlength=size[0] * size[1])
    return counts.reshape(size).astype(np.uint16)


def _smoothed(counts: NDArray[np.uint16]) -> NDArray[np.float64]:
    return np.asarray(gaussian_filter(counts.astype(np.float64), BANDWIDTH / PIXEL, mode="constant"))


def _depth(occupied: NDArray[np.bool_], reach: float) -> NDArray[np.float64]:
    """Distance of pixels to the edge of what is occupied, mm, gaps of less than twice ``reach`` mm closed."""
    padded = np.pad(occupied, int(np.ceil(2 * reach / PIXEL)) + 1)
    near = distance_transform_edt(~padded) * PIXEL <= reach
    tissue = distance_transform_edt(near) * PIXEL > reach
    depth = PIXEL * (distance_transform_edt(tissue) - distance_transform_edt(~tissue) - np.where(tissue, 0.5, -0.5))
    rim = (len(padded) - len(occupied)) // 2
    return np.asarray(depth[rim:-rim, rim:-rim])
