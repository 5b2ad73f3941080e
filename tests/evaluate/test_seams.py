import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from teramind.errors import InputError
from teramind.evaluate.metrics import Grid, SeamSums, network_grids, seam_score
from teramind.evaluate.metrics.seams import naively_stitched

TILE, PATCH = 128, 64


def field(seed, shape=(2, 515, 389), blur=3.0):
    """Grey levels without seams; as rough as nuclei are."""
    return 128 + 200 * gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, blur, blur))


@pytest.mark.parametrize("blur", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("grid", network_grids(PATCH, TILE), ids=lambda grid: grid.name)
def test_a_seamless_field_scores_one(grid, blur):
    result = seam_score(field(1, blur=blur), grid)
    assert abs(result.score - 1) < 3.5 * result.error  # of 12 scores, 3.5 errors are exceeded once in 200 runs
    assert result.error < 0.1


def test_the_error_is_the_spread_of_the_score():
    grid = network_grids(PATCH, TILE)[1]
    results = [seam_score(field(seed, (1, 512, 512)), grid) for seed in range(30)]
    spread = np.std([result.score for result in results], ddof=1)
    # The spread of 30 values is known to 13 %, and a jackknife error over four blocks to some 40 %, of which the mean.
    assert 0.6 < np.mean([result.error for result in results]) / spread < 1.6


def test_steps_on_a_ramp_have_their_ratio():
    """A gradient of 1 everywhere, and of 5 across the lines."""
    x = np.arange(200)
    ramp = x + 4 * ((x - 7) // 16)
    image = np.broadcast_to(ramp, (30, 200)) + 0.0
    grid = Grid("steps", 16, 7, 4)
    assert seam_score(image, grid).score == pytest.approx(5)
    assert seam_score(image.T, grid).score == pytest.approx(5)
    assert seam_score(image, Grid("beside", 16, 3, 4)).score == pytest.approx(1 / 3)
    shifted = seam_score(image, Grid("steps", 16, 0, 4), origin=(0, 9))
    assert shifted.score == pytest.approx(5)


@pytest.mark.parametrize("other", [None, 2])
def test_naive_stitching_shows(other):
    image = field(1)
    grid = network_grids(PATCH, TILE)[0]
    stitched = naively_stitched(image, TILE, None if other is None else field(other), origin=(64, 128))
    result = seam_score(stitched, grid, origin=(64, 128))
    assert result.score > 2
    assert result.score - 1 > 10 * result.error
    between = seam_score(stitched, network_grids(PATCH, TILE)[2], origin=(64, 128))
    assert abs(between.score - 1) < 4 * between.error


def test_a_faint_seam_on_one_grid_is_found_there_alone():
    image = field(3, (4, 768, 768))
    rows = np.arange(768) // PATCH % 2
    stepped = image + 2.5 * rows[:, None]
    decoder, encoder = (seam_score(stepped, grid) for grid in network_grids(PATCH, TILE)[1:3])
    assert decoder.score - 1 > 4 * decoder.error
    assert abs(encoder.score - 1) < 3 * encoder.error


@pytest.mark.parametrize("side", [96, 200])
def test_windows_in_any_order_are_the_whole(side):
    image, margin = field(4), 40
    h, w = image.shape[1:]
    for grid in network_grids(PATCH, TILE):
        sums = [SeamSums(grid, image.size) for _ in range(2)]
        corners = [(z, y, x) for z in range(2) for y in range(0, h, side) for x in range(0, w, side)]
        for number, (z, y, x) in enumerate(reversed(corners)):
            core = y, min(y + side, h), x, min(x + side, w)
            top, left = max(0, y - margin), max(0, x - margin)
            window = image[z, top : core[1] + margin, left : core[3] + margin]
            sums[number % 2].update(window, z=z, origin=(top, left), core=core)
        sums[0].merge(sums[1])
        whole, parts = seam_score(image, grid), sums[0].compute()
        assert parts.score == pytest.approx(whole.score)
        assert parts.error == pytest.approx(whole.error)


def test_where_there_is_no_border_there_is_no_score():
    grid = network_grids(PATCH, TILE)[0]
    assert np.isnan(seam_score(field(0)[:, :100, :100], grid).score)
    assert np.isnan(seam_score(np.zeros((300, 300)), grid).score)
    with pytest.raises(InputError, match="cannot be joined"):
        SeamSums(grid, 100).merge(SeamSums(network_grids(PATCH, TILE)[1], 100))
    with pytest.raises(InputError, match="16 px cannot be compared"):
        Grid("nothing", 16, 0, 16)
