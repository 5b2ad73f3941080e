"""The regression of the paper, against scipy, and how it is summed over parts."""

import math

import numpy as np
import pytest
from scipy.stats import linregress

from teramind.interaction.image import MapImage
from teramind.interaction.maps import MapSource, write_maps
from teramind.interaction.statistics import (
    UNIFORM,
    JointHistogram,
    RegressionSums,
    coarsened,
    pathway_statistics,
    regression_points,
)

ASKED = ["Slc17a6", "Slc17a7", "Aqp4"]


def test_sums_of_parts_give_the_line_of_all():
    generator = np.random.default_rng(0)
    x = generator.gamma(2, 1, 1001)
    y = 0.7 * x + generator.normal(0, 0.4, 1001) + 5
    parts = [RegressionSums(), RegressionSums()]
    parts[0].update(x[:300], y[:300])
    parts[1].update(x[300:800], y[300:800])
    parts[0].update(x[800:], y[800:])
    line, expected = (parts[0] + parts[1]).regression(), linregress(x, y)
    assert (line.slope, line.intercept, line.r) == pytest.approx((expected.slope, expected.intercept, expected.rvalue))
    assert line.n == 1001


@pytest.mark.parametrize("x", [[], [1.5], [0.3, 0.3, 0.3]])
def test_no_line_through_too_few_points(x):
    sums = RegressionSums()
    sums.update(np.array(x), np.arange(len(x)) / 1.0)
    line = sums.regression()
    assert math.isnan(line.slope)
    assert math.isnan(line.r)
    assert line.n == len(x)


def test_points_are_means_of_squares_where_all_genes_are():
    generator = np.random.default_rng(1)
    attention = generator.gamma(1, 0.01, (13, 10)).astype(np.float32)
    expression = generator.poisson(0.15, (2, 13, 10)).astype(np.float32)
    points = regression_points(attention, expression, 229)
    expected = []
    for row in range(3):
        for column in range(2):
            square = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            first, second = expression[0][square].mean(), expression[1][square].mean()
            if first > 0 and second > 0:
                expected.append([229 * attention[square].mean() + 1, first + 1, second + 1, 2 * (first + second) + 1])
    assert 0 < len(expected) < 6
    found = np.stack([points.attention, *points.expression, points.uniform], axis=1)
    np.testing.assert_allclose(found, np.log2(expected), rtol=1e-6)


def test_the_histogram_keeps_every_point():
    histogram = JointHistogram()
    histogram.update(np.array([0, 0.5, 0.5, 99]), np.array([0, 1.25, 1.25, 3]))
    x, y, counts = histogram.points()
    step = JointHistogram.MOST / JointHistogram.CELLS
    assert counts.tolist() == [1, 2, 1]
    np.testing.assert_allclose(x, [step / 2, 0.5 + step / 2, 16 - step / 2])
    np.testing.assert_allclose(y, [step / 2, 1.25 + step / 2, 3 + step / 2])


@pytest.mark.parametrize("reach", [0.4, 1.7, 3.1, 7.9, 15.9])
def test_bars_have_no_gaps_of_their_own(reach):
    """Points everywhere make bars of nearly one height, whatever the range."""
    histogram = JointHistogram()
    points = np.linspace(0.05, reach, 300_001)
    histogram.update(points, points[::-1])
    x, y, weights = histogram.points()
    for axis, values in ((0, x), (1, y)):
        edges = histogram.edges(axis, 60, 8)
        cells = edges * (JointHistogram.CELLS / JointHistogram.MOST)
        assert np.array_equal(cells, np.round(cells))
        assert 8 <= len(edges) - 1 <= 60
        bars, _ = np.histogram(values, edges, weights=weights)
        assert bars.sum() == weights.sum()
        inner = bars[np.flatnonzero(bars)[1:-1]]
        assert inner.max() <= 1.01 * inner.min()
        assert (np.diff(np.flatnonzero(bars)) == 1).all()


def test_statistics_of_maps_are_those_of_their_planes(tmp_path, atlas_path, checkpoint_path, monkeypatch):
    monkeypatch.setattr("teramind.interaction.statistics._BAND", 8)
    source = MapSource(atlas_path, checkpoint_path, ASKED, slices="1:3")
    write_maps(source, tmp_path / "maps.ome.zarr")
    maps = MapImage(tmp_path / "maps.ome.zarr")
    statistics = pathway_statistics(maps)
    together = []
    for z in range(2):
        attention = maps.read("window", z)
        expression = np.stack([maps.read("expression", z, gene=gene) for gene in ASKED])
        assert np.allclose(attention, sum(maps.read("window", z, gene=gene) for gene in ASKED))
        points = regression_points(attention, expression, len(source.panel))
        together.append(points)
        for number, gene in enumerate(ASKED):
            expected = linregress(points.expression[number], points.attention)
            assert statistics.of_slice(z)[gene].slope == pytest.approx(expected.slope)
    everything = linregress(
        np.concatenate([points.uniform for points in together]),
        np.concatenate([points.attention for points in together]),
    )
    assert statistics.overall()[UNIFORM].r == pytest.approx(everything.rvalue)
    rows = statistics.rows()
    assert [row["slice"] for row in rows] == [""] * 4 + [1] * 4 + [2] * 4
    assert sum(row["n"] for row in rows[4:]) == sum(row["n"] for row in rows[:4]) > 0


def test_uniform_attention_gives_the_uniform_map():
    """So the row of that name has r = 1 where expression explains all."""
    counts = np.random.default_rng(2).poisson(1.0, (3, 24, 16)).astype(np.float32)
    attention = np.broadcast_to(3 * counts.sum(axis=0) / 50, counts.shape[1:])  # K rows of 1/G each
    points = regression_points(attention, counts, 50)
    np.testing.assert_allclose(points.attention, points.uniform, rtol=1e-6)


def test_coarsened_leaves_the_ends_out():
    plane = np.arange(9 * 6, dtype=np.float64).reshape(9, 6)
    assert coarsened(plane).tolist() == [[plane[:4, :4].mean()], [plane[4:8, :4].mean()]]
