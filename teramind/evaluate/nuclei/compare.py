"""Found nuclei against the true ones, slice by slice: number, size, place, intensity."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from teramind.evaluate.nuclei.matching import Matches, f1_of
from teramind.evaluate.nuclei.table import Nuclei

_Column = npt.NDArray[np.float64]


def area_distance(truth: _Column, found: _Column) -> float:
    """First Wasserstein distance of two samples of nuclear areas, in their unit; NaN if one is empty."""
    return float(wasserstein_distance(truth, found)) if len(truth) and len(found) else float("nan")


class NucleiSums:
    """What is kept of the nuclei of all slices; memory does not grow with their number.

    Args:
        pixel_area: of the pixels that were segmented, um^2: areas are whole multiples of it.
    """

    def __init__(self, pixel_area: float) -> None:
        self._pixel_area = pixel_area
        self._slices: dict[int, npt.NDArray[np.int64]] = {}
        self._regions: defaultdict[int, npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, dtype=np.int64))
        self._areas = [np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)]
        self._region_areas: list[defaultdict[int, npt.NDArray[np.int64]]] = [
            defaultdict(lambda: np.zeros(1, dtype=np.int64)) for _ in range(2)
        ]
        self._matched = np.zeros(6)  # n, sums of truth, found, truth^2, found^2, truth * found

    def update(
        self,
        z: int,
        truth: Nuclei,
        found: Nuclei,
        matches: Matches,
        regions: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    ) -> None:
        """Take a slice.

        Args:
            z: the slice.
            truth: its true nuclei.
            found: those found.
            matches: pairs of them.
            regions: label of the region of each true and each found nucleus.
        """
        self._slices[z] = np.array([len(truth), len(found), 2 * len(matches.truth)])
        for which, nuclei in enumerate((truth, found)):
            self._areas[which] = _added(self._areas[which], self._in_pixels(nuclei.area))
        a, b = truth.intensity[matches.truth], found.intensity[matches.found]
        self._matched += [len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b]
        if regions is not None:
            self._update_regions((truth, found), (matches.truth, matches.found), regions)

    def _update_regions(
        self,
        nuclei: tuple[Nuclei, Nuclei],
        paired: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        regions: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    ) -> None:
        for which in range(2):
            for region in np.unique(regions[which]).tolist():
                inside = regions[which] == region
                self._regions[region][which] += inside.sum()
                self._regions[region][2] += inside[paired[which]].sum()
                areas = self._in_pixels(nuclei[which].area[inside])
                self._region_areas[which][region] = _added(self._region_areas[which][region], areas)

    def _in_pixels(self, area: _Column) -> npt.NDArray[np.int64]:
        return np.bincount(np.rint(area / self._pixel_area).astype(np.int64))

    @property
    def true_count(self) -> int:
        """True nuclei."""
        return int(self._total()[0])

    @property
    def count(self) -> int:
        """Nuclei found."""
        return int(self._total()[1])

    @property
    def f1(self) -> float:
        """Of the matches of all slices together."""
        return f1_of(self._total()[2], self._total()[:2].sum())

    @property
    def precision(self) -> float:
        """Share of the nuclei found that are in a pair."""
        return f1_of(self._total()[2] / 2, self.count)

    @property
    def recall(self) -> float:
        """Share of the true nuclei that are in a pair."""
        return f1_of(self._total()[2] / 2, self.true_count)

    @property
    def area_distance(self) -> float:
        """Wasserstein distance of the nuclear areas, um^2."""
        return self._distance(*self._areas)

    def median_area(self, which: int = 1) -> float:
        """Median nuclear area, um^2, of the true nuclei (0) or of those found (1)."""
        return self._median(self._areas[which])

    def area_shares(self, which: int, edges: _Column) -> _Column:
        """Share of nuclei, of the true (0) or of those found (1), with an area between each two edges, um^2."""
        areas = np.arange(len(self._areas[which])) * self._pixel_area
        counts = np.histogram(areas, edges, weights=self._areas[which])[0]
        return np.asarray(counts / max(1, self._areas[which].sum()))

    @property
    def intensities(self) -> dict[str, float]:
        """Of matched nuclei: mean of the true and of the found ones, grey levels, and their correlation."""
        n, a, b, aa, bb, ab = self._matched
        if n < 2:
            return {"truth": float("nan"), "found": float("nan"), "correlation": float("nan")}
        spread = (aa - a * a / n) * (bb - b * b / n)
        correlation = (ab - a * b / n) / np.sqrt(spread) if spread > 0 else float("nan")
        return {"truth": float(a / n), "found": float(b / n), "correlation": float(correlation)}

    def slice_figures(self) -> dict[int, dict[str, float]]:
        """Slice -> true and found nuclei and F1."""
        return {
            z: {"true_nuclei": int(true), "nuclei": int(found), "f1": f1_of(int(paired), int(true + found))}
            for z, (true, found, paired) in sorted(self._slices.items())
        }

    def region_figures(self) -> dict[int, dict[str, float]]:
        """Label of the region -> true and found nuclei, F1, and distance of the areas, um^2."""
        figures = {}
        for region, (true, found, paired) in sorted(self._regions.items()):
            areas = [self._region_areas[which][region] for which in range(2)]
            figures[region] = {
                "true_nuclei": int(true),
                "nuclei": int(found),
                "f1": f1_of(int(paired), int(true + found)),
                "true_median_area": self._median(areas[0]),
                "median_area": self._median(areas[1]),
                "area_distance": self._distance(*areas),
            }
        return figures

    def _total(self) -> npt.NDArray[np.int64]:
        return np.sum(list(self._slices.values()), axis=0) if self._slices else np.zeros(3, dtype=np.int64)

    def _median(self, areas: npt.NDArray[np.int64]) -> float:
        if not areas.sum():
            return float("nan")
        return float(np.searchsorted(areas.cumsum(), areas.sum() / 2) * self._pixel_area)

    def _distance(self, truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
        if not truth.sum() or not found.sum():
            return float("nan")
        u, v = (np.arange(len(areas)) * self._pixel_area for areas in (truth, found))
        return float(wasserstein_distance(u, v, truth, found))


def _added(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum of two counts of which one may reach further."""
    length = max(len(first), len(second))
    return np.pad(first, (0, length - len(first))) + np.pad(second, (0, length - len(second)))
