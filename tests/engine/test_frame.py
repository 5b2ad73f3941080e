import pytest

from teramind import InputError, ModelConfig
from teramind.engine.frame import Frame, Window, as_rectangle, as_slices, windows
from teramind.engine.plan import Rectangle

PUBLISHED = ModelConfig()


@pytest.mark.parametrize("roi", ["100:200,300:450", (100, 200, 300, 450), " 100:200, 300:450 "])
def test_a_region_is_text_or_numbers(roi):
    assert as_rectangle(roi, 1000, 1000) == Rectangle(100, 200, 300, 450)


@pytest.mark.parametrize("roi", ["100:200", "200:100,0:5", "0:5,0:1001", "a:b,c:d", (1, 2, 3), "-5:10,0:10"])
def test_a_region_that_cannot_be(roi):
    with pytest.raises(InputError):
        as_rectangle(roi, 1000, 1000)


def test_slices():
    assert as_slices("1:3", 5) == as_slices((1, 3), 5) == (1, 3)
    with pytest.raises(InputError, match="0:5"):
        as_slices("2:6", 5)


def test_a_region_grows_to_the_patch_grid_and_the_atlas_to_whole_patches():
    frame = Frame.of(1000, 700, 64, Rectangle(100, 200, 600, 700))
    assert frame.plane == Rectangle(0, 1024, 0, 704)
    assert frame.target == Rectangle(64, 256, 576, 704)
    assert frame.output == Rectangle(64, 256, 576, 700)
    assert frame.bounds == frame.plane
    assert Frame.of(1000, 700, 64, Rectangle(100, 200, 600, 700), "constant").bounds == frame.target


def test_unknown_border():
    with pytest.raises(InputError, match="'mirror'"):
        Frame.of(64, 64, 64, None, "mirror")


@pytest.mark.parametrize(
    ("gene_slices", "slices", "wanted", "expected", "made"),
    [
        (1, 3, None, [(0, 0), (1, 1), (2, 2)], (0, 3)),
        (4, 4, None, [(-1, 0), (1, 2)], (0, 4)),
        (4, 7, None, [(-1, 0), (1, 2), (3, 4), (5, 6)], (0, 7)),  # the last window is incomplete
        (4, 50, (3, 5), [(1, 2), (3, 4)], (3, 5)),  # windows stay anchored at slice 0
        (8, 50, None, [(4 * k - 1, 4 * k + 1) for k in range(12)], (1, 49)),
        (8, 7, None, [(-1, 1), (3, 5)], (1, 6)),
        (8, 7, (0, 2), [(-1, 1)], (1, 2)),  # slice 0 cannot be made
        (16, 50, None, [(8 * k - 3, 8 * k + 1) for k in range(6)], (1, 49)),
    ],
)
def test_windows(gene_slices, slices, wanted, expected, made):
    config = ModelConfig(gene_slices=gene_slices)
    assert windows(config, slices, wanted) == ([Window(*window) for window in expected], made)


def test_slices_that_no_window_makes():
    config = ModelConfig(gene_slices=8)
    with pytest.raises(InputError, match="cannot make the outer two"):
        windows(config, 2, None)
    with pytest.raises(InputError, match="it makes 1:6"):
        windows(config, 7, (0, 1))
