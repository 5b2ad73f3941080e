"""The figures: that what there is can be seen."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.ndimage import label

from teramind.interaction import figures
from teramind.interaction.figures import GENE_COLORS, Shown, regression_figure, shown_slice, slice_figure
from teramind.interaction.image import MapImage
from teramind.interaction.maps import MapSource, write_maps
from teramind.interaction.statistics import (
    MOST_DRAWN,
    JointHistogram,
    PathwayStatistics,
    RegressionSums,
    pathway_statistics,
)


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_single_points_can_be_seen():
    """Each of five lone points away from the line makes a spot that is neither paper, nor ink, nor a marginal."""
    x, y = np.array([0.5, 1.0, 2.0, 3.0, 3.5]), np.array([3.0, 0.5, 2.5, 0.5, 3.0])
    histogram, sums = JointHistogram(), RegressionSums()
    histogram.update(x, y)
    sums.update(x, y)
    statistics = PathwayStatistics(["Th"], [(0, 0.0)], [[sums, sums]], {"Th": histogram})
    picture = opened(regression_figure(statistics))
    # The first gene is magenta: red above green. Below the upper marginal.
    spots, count = label((picture[..., 0] - picture[..., 1] > 40)[int(0.27 * len(picture)) :])
    assert count == 5
    assert min(np.bincount(spots.ravel())[1:]) > 5


def shown(shape, drawn=2, genes=2):
    generator = np.random.default_rng(3)
    expression = generator.gamma(1, 1, (drawn, *shape)).astype(np.float32)
    names = [f"gene{number}" for number in range(drawn)]
    return Shown("slice 0", names, genes, expression, expression.sum(axis=0), None, "", 4.8)


@pytest.mark.parametrize("largest", [1000, 16, 8, 3])
def test_attention_is_shown_where_it_is_regressed(tmp_path, make_atlas, checkpoint_path, monkeypatch, largest):
    """Genes that share squares of 4 x 4 bins but no bin, at whatever level a panel shows."""
    monkeypatch.setattr(figures, "LARGEST_PANEL", largest)
    monkeypatch.setattr(figures, "SMOOTHING", 0)
    counts = np.zeros((2, 16, 16, 5), int)
    counts[:, ::4, ::4, 2], counts[:, 1::4, 1::4, 3] = 3, 2
    counts[:, :4, 8:, 3] = 0  # two squares without the second gene
    atlas = make_atlas(tmp_path / "atlas.zarr", counts, 256, 256)
    write_maps(MapSource(atlas, checkpoint_path, ["Th", "Nr4a2"]), tmp_path / "maps.ome.zarr")
    maps = MapImage(tmp_path / "maps.ome.zarr")
    assert pathway_statistics(maps).of_slice(0)["Th"].n == 14
    drawn = shown_slice(maps, 0, None, maps.genes).attention
    side = max(1, 4 * len(drawn) // 16)  # of a square, as shown
    squares = drawn.reshape(len(drawn) // side, side, -1, side).any(axis=(1, 3))
    expected = np.ones((4, 4), bool)
    expected[0, 2:] = False
    cut = 4 // len(squares)
    assert np.array_equal(squares, expected.reshape(len(squares), cut, -1, cut).any(axis=(1, 3)))


@pytest.mark.parametrize("shape", [(32, 32), (900, 30), (30, 900)])
def test_a_slice_of_any_shape_fits_a_page(shape):
    """Panels that are no strip, and scale bars whose writing lies within them."""
    picture = opened(slice_figure(shown(shape, MOST_DRAWN, 70)))
    height, width = picture.shape[:2]
    assert 1400 < width < 1600
    assert 0.2 * width < height < 0.7 * width


def test_scale_bars_are_written_within_their_panels(monkeypatch):
    found = []
    monkeypatch.setattr(figures, "_png", lambda figure: found.append(figure) or b"")
    for side in (8, 13, 24, 32, 100, 997):  # bars of a quarter to a tenth of a panel
        slice_figure(shown((side, side)))
        renderer = FigureCanvasAgg(found[-1]).get_renderer()
        for panel in found[-1].axes[:3]:
            [label] = panel.texts
            inside, box = panel.get_window_extent(), label.get_window_extent(renderer)
            assert inside.x0 < box.x0
            assert box.x1 < inside.x1


def test_plots_of_many_genes_are_wrapped():
    histogram, sums = JointHistogram(), RegressionSums()
    points = np.random.default_rng(4).gamma(2, 1, (2, 500))
    histogram.update(*points)
    sums.update(*points)
    genes = [f"gene{number}" for number in range(70)]
    histograms = dict.fromkeys(genes[:MOST_DRAWN], histogram)
    picture = opened(regression_figure(PathwayStatistics(genes, [(0, 0.0)], [[sums] * 71], histograms)))
    assert picture.shape[0] < picture.shape[1] < 2000
    assert len(set(GENE_COLORS)) == len(GENE_COLORS) == MOST_DRAWN
