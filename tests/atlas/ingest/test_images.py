from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
import tifffile

from teramind.atlas.affine import Affine
from teramind.atlas.intensity import IntensityScale, measured_scale
from teramind.atlas.resample import sample
from teramind.atlas.tiff import TiffPlane
from teramind.errors import InputError

HEIGHT, WIDTH = 301, 203

LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "one row a strip": {"rowsperstrip": 1},
    "big-endian strips": {"rowsperstrip": 7, "byteorder": ">"},
    "compressed strips": {"rowsperstrip": 7, "compression": "zlib"},
    "predicted strips": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (64, 32)},
    "big-endian tiles": {"tile": (64, 32), "byteorder": ">"},
    "compressed tiles": {"tile": (64, 32), "compression": "zlib", "predictor": True},
    "JPEG-2000 tiles": {"tile": (64, 64), "compression": "jpeg2000"},
    "BigTIFF": {"tile": (64, 64), "bigtiff": True},
}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return (2000 + 900 * np.sin(x / 17) + 700 * np.cos(y / 23 + x / 61)).astype(np.uint16)


def written(path, array, **options) -> TiffPlane:
    tifffile.imwrite(path, array, **options)
    return TiffPlane(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_is_the_crop_of_the_plane(tmp_path, pixels, layout):
    plane = written(tmp_path / "a.tif", pixels, **LAYOUTS[layout])
    assert plane.shape == (HEIGHT, WIDTH)
    padded = np.zeros((HEIGHT + 80, WIDTH + 80), dtype=np.uint16)
    padded[40:-40, 40:-40] = pixels
    for y0, y1, x0, x1 in [(0, HEIGHT, 0, WIDTH), (63, 66, 31, 97), (300, 301, 202, 203), (-40, 9, 190, 243)]:
        np.testing.assert_array_equal(plane.read(y0, y1, x0, x1), padded[y0 + 40 : y1 + 40, x0 + 40 : x1 + 40])
    assert not plane.read(HEIGHT, HEIGHT + 3, 0, 5).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_hold_every_pixel_once(tmp_path, pixels, layout):
    plane = written(tmp_path / "a.tif", pixels, **LAYOUTS[layout])
    histogram = sum(np.bincount(block.ravel(), minlength=65536) for block in plane.blocks())
    np.testing.assert_array_equal(histogram, np.bincount(pixels.ravel(), minlength=65536))


def test_a_page_of_several_is_read(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([pixels, pixels // 2, pixels // 3]), photometric="minisblack")
    np.testing.assert_array_equal(TiffPlane(path, 1).read(0, HEIGHT, 0, WIDTH), pixels // 2)
    with pytest.raises(InputError, match="no page 3"):
        TiffPlane(path, 3)


@pytest.mark.parametrize("shape", [(50_001, 75_003), (4096, 4096)], ids=["7.5 GB in one strip", "34 MB in tiles"])
def test_a_window_of_a_large_plane_costs_the_window(tmp_path, shape):
    path = tmp_path / "large.tif"
    if shape[0] > 10_000:  # takes no room on the disk: only the directory of the file is written
        tifffile.memmap(path, shape=shape, dtype=np.uint16, bigtiff=True)
    else:
        tifffile.imwrite(path, np.zeros(shape, np.uint16), tile=(256, 256), compression="zlib")
    tracemalloc.start()
    try:
        window = TiffPlane(path).read(2001, 2513, 1007, 1519)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert window.shape == (512, 512)
    assert peak < 4e6  # half a MB of pixels, and tiles being decoded


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_when_opened(tmp_path, pixels, layout, kept):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **LAYOUTS[layout])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"a\.tif"):
        TiffPlane(path)


@pytest.mark.parametrize("layout", ["compressed tiles", "compressed strips", "JPEG-2000 tiles"])
def test_a_garbled_tile_is_an_error_that_names_the_file(tmp_path, pixels, layout):
    path = tmp_path / "a.tif"
    plane = written(path, pixels, **LAYOUTS[layout])
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif cannot be decoded"):
        plane.read(0, HEIGHT, 0, WIDTH)


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros((9, 9), np.float32), "float32"), (np.zeros((9, 9, 3), np.uint8), r"\(9, 9, 3\)")],
    ids=["float", "colour"],
)
def test_other_kinds_of_image_are_refused(tmp_path, array, words):
    with pytest.raises(InputError, match=words):
        written(tmp_path / "a.tif", array)


def test_what_is_no_tiff_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_text("this is a text")
    with pytest.raises(InputError, match=r"a\.tif is not a whole TIFF"):
        TiffPlane(path)
    with pytest.raises(InputError, match=r"there is no image .*b\.tif"):
        TiffPlane(tmp_path / "b.tif")


def test_a_whole_shift_keeps_the_pixels(tmp_path, pixels):
    plane = written(tmp_path / "a.tif", pixels, tile=(64, 64))
    window = sample(plane, Affine.translation(-7, 12), 5, 20, (50, 60))
    assert window.dtype == np.uint16
    np.testing.assert_array_equal(window, pixels[17:67, 13:73])


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.96, -0.28, 20.3137], [0.28, 0.96, -11.7193], [0, 0, 1]],
        [[-0.508, 0, 200.2], [0, 0.508, 3.1], [0, 0, 1]],
        [[1.9, 0.2, -30.0173], [-0.3, 2.1, 10.0291], [0, 0, 1]],
        [[1, 0, 0.5], [0, 1, 0.25], [0, 0, 1]],
    ],
    ids=["turned", "mirrored and finer", "sheared and coarser", "part of a pixel"],
)
def test_pulls_what_whole_plane_interpolation_gives_wherever_windows_are_cut(tmp_path, matrix):
    image = smooth(HEIGHT, WIDTH)
    plane = written(tmp_path / "a.tif", image, tile=(64, 64))
    to_image = Affine(np.array(matrix, dtype=np.float64))
    shape = (170, 190)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image_x, image_y = to_image.apply(x, y)
    expected = scipy.ndimage.map_coordinates(
        image.astype(np.float64), [image_y - 0.5, image_x - 0.5], order=1, mode="nearest"
    )
    expected[(image_y < 0) | (image_y >= HEIGHT) | (image_x < 0) | (image_x >= WIDTH)] = 0
    whole = sample(plane, to_image, 0, 0, shape)
    # float32 of values up to 4000 is exact to 2.4e-4
    np.testing.assert_allclose(whole, expected, atol=1e-3)
    parts = np.block(
        [
            [sample(plane, to_image, 0, 0, (67, 91)), sample(plane, to_image, 0, 91, (67, 99))],
            [sample(plane, to_image, 67, 0, (103, 91)), sample(plane, to_image, 67, 91, (103, 99))],
        ]
    )
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_the_frame_beyond_the_image_is_zero(tmp_path):
    plane = written(tmp_path / "a.tif", np.full((20, 30), 7, np.uint16))
    turned = Affine(np.array([[0.8, -0.6, 500], [0.6, 0.8, 0], [0, 0, 1]]))
    assert not sample(plane, turned, 0, 0, (40, 50)).any()


def test_measured_percentiles_leave_out_the_empty_border(tmp_path):
    rng = np.random.default_rng(1)
    arrays = [rng.gamma(3, 900, (HEIGHT, WIDTH)).astype(np.uint16) + 1 for _ in range(3)]
    for array in arrays:
        array[:, :120] = 0  # most of a mosaic may be border
    planes = [written(tmp_path / f"{index}.tif", array, tile=(64, 64)) for index, array in enumerate(arrays)]
    told: list[int] = []
    scale = measured_scale(planes, (0.1, 99.9), told.append)
    light = np.concatenate([array[array > 0] for array in arrays])
    expected = np.percentile(light, (0.1, 99.9), method="inverted_cdf")
    assert (scale.low, scale.high) == tuple(expected)
    assert sum(told) == 3


def test_8_bit_images_are_taken_as_they_are(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scale = measured_scale([written(tmp_path / "a.tif", levels)], (0.1, 99.9), lambda _: None)
    assert (scale.low, scale.high) == (0, 255)
    np.testing.assert_array_equal(scale.apply(levels), levels)


def test_an_image_without_light_stays_black(tmp_path):
    black = np.zeros((9, 9), np.uint16)
    scale = measured_scale([written(tmp_path / "a.tif", black)], (0.1, 99.9), lambda _: None)
    assert not scale.apply(black).any()


def test_images_of_two_types_are_refused(tmp_path):
    planes = [written(tmp_path / f"{kind}.tif", np.ones((9, 9), kind)) for kind in ("uint16", "uint8")]
    with pytest.raises(InputError, match="one type"):
        measured_scale(planes, (0.1, 99.9), lambda _: None)


def test_scaling_rounds_and_clips_and_does_not_depend_on_the_type():
    scale = IntensityScale(100, 610)
    raw = np.array([[0, 99, 100, 101, 102, 355, 608, 610, 611, 65535]], dtype=np.uint16)
    expected = np.clip(np.rint((raw.astype(float) - 100) / 2), 0, 255)
    np.testing.assert_array_equal(scale.apply(raw), expected)
    np.testing.assert_array_equal(scale.apply(raw.astype(np.float32)), expected)


@pytest.mark.parametrize("limits", [(5, 5), (9, 2), (0, float("nan")), (float("-inf"), 3)])
def test_an_empty_range_is_refused(limits):
    with pytest.raises(InputError, match="empty"):
        IntensityScale(*limits)
