"""A phantom is a function of seed and position: no window, extent or order of asking changes it."""

import tracemalloc

import numpy as np
import pytest

from teramind.atlas.layout import ceil_div
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom import phantom as phantom_module
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import LARGEST_NORMAL
from teramind.atlas.phantom.transcripts import PROCESS_SCATTER, SCATTER
from teramind.errors import InputError

# y0, y1, x0, x1 within 64:664, 16:552: across tiles of 256 px, a single pixel, an odd shape, one within a tile.
INNER = [(240, 301, 247, 264), (511, 512, 511, 512), (277, 640, 30, 61), (64, 80, 16, 32)]
OUTER = (64, 664, 16, 552)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("pixel_size", [0.108, 0.4, 0.5])
def test_a_window_is_the_crop_of_a_larger_one(pixel_size):
    large = Phantom(seed=7, size=(700, 600), slices=2, pixel_size=pixel_size)
    image = large.image_window(1, 2, *OUTER)
    x, y, gene = large.transcripts(1, *OUTER)
    cells = large.cells(1, *OUTER)
    assert len(gene) > 500
    assert len(cells) > 8
    for y0, y1, x0, x1 in INNER:
        alone = Phantom(seed=7, size=(1 << 20, 1 << 19), slices=9, pixel_size=pixel_size)
        crop = image[:, :, y0 - 64 : y1 - 64, x0 - 16 : x1 - 16]
        np.testing.assert_array_equal(alone.image_window(1, 2, y0, y1, x0, x1), crop)
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        for found, expected in zip(alone.transcripts(1, y0, y1, x0, x1), (x, y, gene), strict=True):
            np.testing.assert_array_equal(found, expected[inside])
        inside = (cells["x"] >= x0) & (cells["x"] < x1) & (cells["y"] >= y0) & (cells["y"] < y1)
        np.testing.assert_array_equal(alone.cells(1, y0, y1, x0, x1), cells[inside])


@pytest.mark.usefixtures("small_tiles")
def test_tiles_leave_no_seam(scene):
    """What is made in smaller tiles is the same, but for the last bits of what float32 holds."""
    other = Phantom(seed=7, size=1 << 18, slices=3)
    window = (4608, 5632, 4352, 5376)
    difference = other.image_window(1, 2, *window)[:, 0].astype(int) - scene.image
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3
    np.testing.assert_array_equal(np.sort(other.cells(1, *window)["id"]), np.sort(scene.cells["id"]))


def test_a_map_of_regions_takes_little_more_than_its_labels():
    """A whole slice is asked for at once; the fields behind it, many times as large, are made in strips."""
    brain = Phantom(seed=7, size=(16_384, 8_192), slices=1)
    tracemalloc.start()
    labels = brain.region_window(0, 1, 0, 16_384, 0, 8_192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * labels.nbytes  # 15 times as much at once


@pytest.mark.usefixtures("small_tiles")
def test_maps_of_bins_are_crops_too():
    large = Phantom(seed=7, size=1 << 18, slices=3)
    outer, inner = (4608, 5392, 4352, 5056), (5104, 5136, 4368, 5040)
    part = np.s_[:, 31:33, 1:43]
    np.testing.assert_array_equal(large.region_window(1, 3, *inner), large.region_window(1, 3, *outer)[part])
    for pair in (("Th", "Nr4a2"), ("Cldn5", "Aqp4"), ("Slc17a6", "Slc17a7")):
        whole = large.interaction_window(pair, 1, 3, *outer)
        assert whole.any()
        np.testing.assert_array_equal(large.interaction_window(pair, 1, 3, *inner), whole[part])


@pytest.mark.usefixtures("small_tiles")
def test_slices_are_made_alone_and_their_number_does_not_matter():
    window = (200, 297, 100, 331)
    many, few = Phantom(seed=2, size=400, slices=5), Phantom(seed=2, size=400, slices=3)
    images = many.image_window(0, 5, *window)
    np.testing.assert_array_equal(few.image_window(2, 3, *window), images[:, 2:3])
    assert (np.diff(images.astype(int), axis=1) != 0).any(axis=(0, 2, 3)).all()


def test_the_physical_place_decides_not_the_pixel():
    """The same tissue at two pixel sizes: the same cells, and the same transcripts up to float32."""
    fine, coarse = Phantom(seed=4, size=2048, pixel_size=0.2), Phantom(seed=4, size=1024, pixel_size=0.4)
    cells = [brain.cells(2, 0, brain.shape[1], 0, brain.shape[2]) for brain in (fine, coarse)]
    orders = [np.argsort(rows["id"]) for rows in cells]
    assert len(cells[0]) == len(cells[1]) > 300
    for name, scale in (("id", 1), ("type", 1), ("x", 0.5), ("nucleus_major", 0.5), ("angle", 1)):
        a, b = (rows[name][order] for rows, order in zip(cells, orders, strict=True))
        np.testing.assert_allclose(a * np.float64(scale), b, rtol=1e-5, atol=1e-3)
    x, _, gene = fine.transcripts(2, 0, 2048, 0, 2048)
    other_x, _, other_gene = coarse.transcripts(2, 0, 1024, 0, 1024)
    np.testing.assert_array_equal(np.bincount(gene), np.bincount(other_gene))
    np.testing.assert_allclose(np.sort(x) / 2, np.sort(other_x), atol=1e-3)


@pytest.mark.usefixtures("small_tiles")
def test_nothing_lies_outside_the_size():
    brain = Phantom(seed=7, size=(100, 150), slices=2)
    image = brain.image_window(-1, 3, -20, 130, -7, 170)
    assert image.shape == (2, 4, 150, 177)
    assert image[:, 1:3, 20:120, 7:157].any()
    image[:, 1:3, 20:120, 7:157] = 0
    assert not image.any()
    x, y, _ = brain.transcripts(1, -50, 500, -50, 500)
    assert len(x)
    assert x.min() >= 0
    assert x.max() < 150
    assert y.max() < 100
    assert [len(column) for column in brain.transcripts(2, 0, 100, 0, 100)] == [0, 0, 0]
    assert len(brain.cells(-1, 0, 100, 0, 100)) == 0
    labels = brain.region_window(-1, 2, -16, 128, -16, 176)
    assert labels.shape == (3, 9, 12)
    assert labels[1:, 1:8, 1:11].any()
    labels[1:, 1 : 1 + ceil_div(100, 16), 1 : 1 + ceil_div(150, 16)] = 0
    assert not labels.any()


def test_no_cell_reaches_further_than_is_looked_for():
    spread = LOOKS["soma"].max() * LARGEST_NORMAL
    assert spread * max(SCATTER, PROCESS_SCATTER) < phantom_module.REACH
    assert spread * SCATTER + phantom_module.SECTION / 2 < phantom_module.DEPTH_REACH
    assert LOOKS["apical"].max() + 3 < phantom_module.REACH


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"morphology_seed": 2**60}, "morphology seed"),
        ({"size": 0}, "height"),
        ({"size": (10, -3)}, "width"),
        ({"slices": 0}, "slices"),
        ({"pixel_size": 5.0}, "pixel of 5.0 um"),
        ({"pixel_size": float("nan")}, "pixel of nan um"),
        ({"z_step": 0.0}, "0.0 um apart"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, words):
    with pytest.raises(InputError, match=words):
        Phantom(**changed)


def test_windows_that_make_no_sense_are_refused():
    brain = Phantom(size=100)
    with pytest.raises(InputError, match="end lies before"):
        brain.image_window(0, 1, 50, 40, 0, 10)
    with pytest.raises(InputError, match="16 px"):
        brain.region_window(0, 1, 0, 17, 0, 16)
    with pytest.raises(InputError, match="16 px"):
        brain.interaction_window(("Th", "Nr4a2"), 0, 1, 0, 16, 8, 16)
    with pytest.raises(InputError, match="Th and Aqp4 do not interact"):
        brain.interaction_window(("Th", "Aqp4"), 0, 1, 0, 16, 0, 16)
