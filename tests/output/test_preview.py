"""Previews and panels, looked at as arrays."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from PIL import Image, ImageFont

from teramind.errors import InputError
from teramind.ngff import Channel, MultiscaleWriter, create_multiscale
from teramind.output.preview import (
    color_labels,
    composite,
    draw_scale_bar,
    preview,
    save_preview,
    scale_bar_length,
    side_by_side,
)

CHANNELS = [Channel("DAPI", "0000FF", window_start=10, window_end=110), Channel("PolyT", "FFD400")]


def image(folder, shape=(2, 3, 301, 517), chunk=32):
    """Quadrants of constant values, one slice brighter than the one before."""
    pixels = np.zeros(shape, np.uint8)
    half_y, half_x = shape[2] // 2, shape[3] // 2
    for z in range(shape[1]):
        pixels[0, z, :half_y, :half_x] = 60 + z
        pixels[1, z, half_y:, half_x:] = 100 + z
    group = create_multiscale(
        folder / "a.zarr", shape=shape, pixel_size=(1.5, 0.1, 0.1), channels=CHANNELS, name="a", chunk=chunk, shard=64
    )
    with MultiscaleWriter(group) as writer:
        writer.write_block(0, 0, 0, pixels)
    return folder / "a.zarr"


def test_composite_adds_the_channels_in_their_colours():
    channels = np.array([[[0, 255, 255]], [[255, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(
        composite(channels, ["2860FF", "FFD400"]), [[[255, 0xD4, 0], [0x28, 0x60, 255], [255, 255, 255]]]
    )
    windowed = composite(np.array([[[9, 60, 110, 200]]], np.uint8), ["FF0000"], [(10, 110)])
    np.testing.assert_array_equal(windowed[..., 0], [[0, 128, 255, 255]])
    assert not windowed[..., 1:].any()


@pytest.mark.parametrize(
    ("max_side", "size"), [(517, (517, 301)), (300, (259, 151)), (259, (259, 151)), (100, (65, 38))]
)
def test_preview_fits_and_shows_the_slice_with_its_windows(tmp_path, max_side, size):
    picture = preview(image(tmp_path), z=2, max_side=max_side, scale_bar=False)
    assert picture.size == size
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[2, 2], [0, 0, round(0.52 * 255)])
    np.testing.assert_array_equal(pixels[-3, -3], [102, round(102 * 0xD4 / 255), 0])
    assert not pixels[2, -3].any()


def test_preview_reads_the_coarsest_level_that_is_fine_enough(tmp_path):
    path = image(tmp_path)
    for level in (0, 1, 3):  # 517, 259 and 65 px wide; broken, so that reading them would fail
        for file in (path / str(level) / "c").rglob("*"):
            if file.is_file():
                file.write_bytes(b"broken")
    assert preview(path, z=1, max_side=129).size == (130 // 2, 76 // 2)
    assert preview(path, z=1, max_side=130).size == (130, 76)
    with pytest.raises(ValueError, match="checksum"):  # of a shard of level 1
        preview(path, z=1, max_side=131)


def test_saved_preview_has_a_bar_of_the_labelled_length(tmp_path):
    save_preview(tmp_path / "a.png", image(tmp_path), max_side=517)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    bar = (pixels[-14] == 255).all(axis=-1)  # white all over
    assert bar.sum() == pytest.approx(10 / 0.1, abs=1)  # 51.7 um wide: the bar is 10 um
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("width", "length"), [(51.7, 10), (80, 20), (200, 50), (199.9, 20), (4, 1), (7000, 1000), (0.5, 0.1)]
)
def test_scale_bar_is_the_largest_round_length_up_to_a_quarter(width, length):
    assert scale_bar_length(width) == pytest.approx(length)


def test_scale_bar_works_with_pillows_own_font(monkeypatch):
    truetype = ImageFont.truetype

    def without_system_fonts(font, *arguments, **options):
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return truetype(font, *arguments, **options)

    monkeypatch.setattr(ImageFont, "truetype", without_system_fonts)
    picture = Image.new("RGB", (300, 100))
    draw_scale_bar(picture, 0.1)
    assert (np.asarray(picture) == 255).all(axis=-1).sum() > 50


def test_labels_have_colours_of_their_own_wherever_they_are():
    labels = np.array([[0, 1, 2], [3, 1000, 1]])
    colored = color_labels(labels)
    assert not colored[0, 0].any()
    np.testing.assert_array_equal(colored[0, 1], colored[1, 2])
    assert len(np.unique(colored.reshape(-1, 3), axis=0)) == 5
    np.testing.assert_array_equal(color_labels(labels[1:, 1:2])[0, 0], colored[1, 1])


def test_panels_stand_side_by_side_under_their_titles():
    truth = np.full((51, 101, 3), (200, 10, 10), np.uint8)
    sheet = np.asarray(side_by_side({"truth": truth, "grey": truth[..., 0]}, pixel_size_um=0.5, max_side=200))
    head = sheet.shape[0] - 51
    assert sheet.shape[1] == 101 * 2 + 2
    np.testing.assert_array_equal(sheet[head:, :101], truth)
    assert (sheet[head : head + 20, 103:] == 200).all()
    assert (sheet[:head, :101] < 128).any()
    with pytest.raises(InputError, match=r"'b' \(51, 100\)"):
        side_by_side({"a": truth, "b": truth[:, :100]}, pixel_size_um=0.5)
    with pytest.raises(InputError, match="none"):
        side_by_side({}, pixel_size_um=0.5)


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(InputError, match="slice 3"):
        preview(image(tmp_path), z=3)
    with pytest.raises(InputError, match="not an OME-Zarr"):
        preview(zarr.create_group(tmp_path / "b.zarr"))
