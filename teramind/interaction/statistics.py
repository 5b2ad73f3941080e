"""The paper's regression of attention on expression, per gene, per slice and overall, in one pass over the maps.

Attention is that of the whole window, summed over the genes of the pathway: ``log2(G * a + 1)``. It is regressed on
``log2(expression + 1)`` of each gene, at a quarter of the maps' resolution (means of 4 x 4 bins), only where all genes
of the pathway are expressed. Source: Tera-MIND (arXiv 2503.01220v3), Fig. 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from teramind.atlas.layout import ceil_div
from teramind.interaction.image import MapImage, Plane

COARSENING = 4
"""Bins along the side of a square whose mean is one point of the regression."""
UNIFORM = "uniform attention"
"""Stands where a gene's name would: what the map would be if every gene attended to all alike."""

MOST_DRAWN = 8
"""Genes that figures show at most: as many colours can be told apart."""

# Means of 16 counts lie 0.09 apart at most on the logarithmic axis, a bar is 0.125 wide.
_BAR_CELLS = 4
_BAND = 512  # rows read at once
_Points = npt.NDArray[np.float64]


class Points(NamedTuple):
    """Squares where all genes are expressed.

    Attributes:
        attention: (n,) log2(G * a + 1).
        expression: (K, n) log2(counts + 1).
        uniform: (n,) what ``attention`` would be if attention were uniform: log2(K * sum of the counts + 1).
    """

    attention: _Points
    expression: _Points
    uniform: _Points


@dataclass(frozen=True)
class Regression:
    """A line through points, by least squares; NaN where there are too few points.

    Attributes:
        slope: of attention on expression.
        intercept: at expression 0.
        r: correlation.
        n: points.
    """

    slope: float
    intercept: float
    r: float
    n: int


@dataclass
class RegressionSums:
    """Sums from which a regression follows; those of parts can be added."""

    n: int = 0
    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))  # x, y, xx, xy, yy

    def update(self, x: _Points, y: _Points) -> None:
        """Take points (n,) each."""
        self.n += len(x)
        self.sums += [x.sum(), y.sum(), x @ x, x @ y, y @ y]

    def __add__(self, other: RegressionSums) -> RegressionSums:
        return RegressionSums(self.n + other.n, self.sums + other.sums)

    def regression(self) -> Regression:
        """The line."""
        x, y, xx, xy, yy = self.sums / max(1, self.n)
        spread, shared, height = xx - x * x, xy - x * y, yy - y * y
        # Rounding leaves a remainder where all points share a value.
        if self.n < 2 or spread <= 1e-12 * max(xx, 1):
            return Regression(float("nan"), float("nan"), float("nan"), self.n)
        slope = shared / spread
        r = shared / np.sqrt(spread * height) if height > 1e-12 * max(yy, 1) else float("nan")
        return Regression(float(slope), float(y - slope * x), float(r), self.n)


class JointHistogram:
    """Counts of points on a fixed grid, fine enough to draw hexagons from.

    Attributes:
        counts: (cells, cells), expression by attention.
    """

    MOST = 16.0  # log2; 65,535 transcripts a bin are the most that an atlas holds
    CELLS = 512

    def __init__(self) -> None:
        self.counts = np.zeros((self.CELLS, self.CELLS), np.int64)

    def update(self, x: _Points, y: _Points) -> None:
        """Take points (n,) each; those beyond the grid count for its last cells."""
        cells = [np.minimum((axis * (self.CELLS / self.MOST)).astype(np.int64), self.CELLS - 1) for axis in (x, y)]
        np.add.at(self.counts, tuple(cells), 1)

    def edges(self, axis: int, most: int, least: int = 1) -> _Points:
        """Edges of bars around the points along an axis, ``least`` to ``most`` of them.

        All lie on edges of cells, and a bar is an even number of cells wide: every bar, and every half of one, holds as
        many cells as the others, so that none is empty or high for their sake alone.

        Args:
            axis: 0 for expression, 1 for attention.
            most: bars at most.
            least: bars at least.
        """
        there = np.flatnonzero(self.counts.any(axis=1 - axis))
        first, end = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 1)
        cells = max(_BAR_CELLS, 2 * ceil_div(end - first, 2 * most))
        bars = max(least, ceil_div(end - first, cells))
        first = max(0, first - (bars * cells - (end - first)) // 2)
        return np.asarray((first + cells * np.arange(bars + 1)) * (self.MOST / self.CELLS))

    def points(self) -> tuple[_Points, _Points, npt.NDArray[np.int64]]:
        """Middles of the cells that hold points, and how many each holds."""
        x, y = np.nonzero(self.counts)
        step = self.MOST / self.CELLS
        return np.asarray((x + 0.5) * step), np.asarray((y + 0.5) * step), self.counts[x, y]


@dataclass
class PathwayStatistics:
    """Regressions of a pathway's attention.

    Attributes:
        genes: names.
        slices: for each slice of the maps, its number in the atlas and its place, um.
        sums: (slices, K + 1): for each gene, and last for what uniform attention would give.
        histograms: of the genes that are drawn, all slices together.
    """

    genes: list[str]
    slices: list[tuple[int, float]]
    sums: list[list[RegressionSums]]
    histograms: dict[str, JointHistogram]

    def of_slice(self, z: int) -> dict[str, Regression]:
        """Gene -> its regression in a slice; and ``UNIFORM``."""
        return {name: one.regression() for name, one in zip(self._names, self.sums[z], strict=True)}

    def overall(self) -> dict[str, Regression]:
        """Gene -> its regression over all slices; and ``UNIFORM``."""
        totals = [sum(column, RegressionSums()) for column in zip(*self.sums, strict=True)]
        return {name: one.regression() for name, one in zip(self._names, totals, strict=True)}

    def rows(self) -> list[dict[str, Any]]:
        """A table: slice (empty for all of them), z, gene, slope, intercept, r, n."""
        tables: list[tuple[Any, Any, dict[str, Regression]]] = [("", "", self.overall())]
        tables += [(number, z, self.of_slice(place)) for place, (number, z) in enumerate(self.slices)]
        return [
            {"slice": number, "z_um": z, "gene": gene, **vars(line)}
            for number, z, table in tables
            for gene, line in table.items()
        ]

    @property
    def _names(self) -> list[str]:
        return [*self.genes, UNIFORM]


def pathway_statistics(maps: MapImage, drawn: int = MOST_DRAWN) -> PathwayStatistics:
    """Regress attention on expression, in one pass over the maps, one band of a slice in memory.

    Args:
        maps: of a pathway.
        drawn: how many genes, those with most transcripts, get a histogram.
    """
    count = len(maps.genes)
    sums = [[RegressionSums() for _ in range(count + 1)] for _ in range(maps.shape[0])]
    histograms = {gene: JointHistogram() for gene in maps.most_expressed(drawn)}
    for z in range(maps.shape[0]):
        for points in _bands(maps, z):
            for gene, histogram in histograms.items():
                histogram.update(points.expression[maps.genes.index(gene)], points.attention)
            for total, x in zip(sums[z], (*points.expression, points.uniform), strict=True):
                total.update(x, points.attention)
    slices = [(maps.first_slice + number, z) for number, z in enumerate(maps.slice_z)]
    return PathwayStatistics(maps.genes, slices, sums, histograms)


def regression_points(attention: Plane, expression: Sequence[Plane], panel_size: int) -> Points:
    """The points that are regressed.

    Args:
        attention: (h, w) of the window, summed over the K genes.
        expression: K planes (h, w) of counts. They are taken twice, one after the other.
        panel_size: G.

    Returns:
        Means of 4 x 4 bins, logarithmic, where all genes are expressed; what is left over at the ends is left out.
    """
    coarse = coarsened(attention)
    everywhere = np.ones(coarse.shape, bool)
    for plane in expression:
        everywhere &= coarsened(plane) > 0
    there = np.stack([coarsened(plane)[everywhere] for plane in expression])  # (K, n)
    return Points(
        np.log2(panel_size * coarse[everywhere] + 1), np.log2(there + 1), np.log2(len(there) * there.sum(axis=0) + 1)
    )


def coarsened(plane: npt.NDArray[Any], factor: int = COARSENING) -> npt.NDArray[np.float64]:
    """Means of squares of a plane's bins; what is left over at the ends is left out."""
    height, width = (side // factor * factor for side in plane.shape)
    squares = plane[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float64))


class _Band(Sequence[Plane]):
    """The counts of every gene in some rows of a slice, each read when it is asked for."""

    def __init__(self, maps: MapImage, z: int, rows: slice) -> None:
        self._maps, self._z, self._rows = maps, z, rows

    def __len__(self) -> int:
        return len(self._maps.genes)

    def __getitem__(self, number: Any) -> Any:
        return self._maps.read("expression", self._z, gene=self._maps.genes[number], rows=self._rows)


def _bands(maps: MapImage, z: int) -> Iterator[Points]:
    for start in range(0, maps.shape[1], _BAND):
        rows = slice(start, start + _BAND)
        yield regression_points(maps.read("window", z, rows=rows), _Band(maps, z, rows), maps.panel_size)
