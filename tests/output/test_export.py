"""Exports, read back with the libraries of the programs they are for."""

from __future__ import annotations

import numpy as np
import ome_types
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models.v04
import pytest
import tifffile
import zarr

from teramind.cli import main
from teramind.errors import InputError
from teramind.ngff import Channel, create_multiscale, open_levels
from teramind.output import ome_tiff
from teramind.output.export import export_ngff, export_ome_tiff
from teramind.output.ome_zarr import OutputWriter
from teramind.ranges import parse_ranges

SHAPE = (2, 3, 2501, 1237)


def truth():
    """Smooth and noisy by turns, a third of it empty."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, SHAPE, dtype=np.uint8)
    pixels[:, :, 1100:1900, :600] = 0
    return pixels


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tissue.ome.zarr"
    with OutputWriter(
        path,
        shape=SHAPE,
        pixel_size=(1.5, 0.108, 0.11),
        translation=(3, 10, 20),
        stains=["DAPI", "PolyT"],
        parameters={"seed": 7},
    ) as writer:
        writer.write_block(0, 0, 0, truth())
    return path


@pytest.fixture
def smaller_pyramid(monkeypatch):
    """Three sub-resolutions in the files, in bands that do not divide the image."""
    monkeypatch.setattr(ome_tiff, "SMALLEST", 256)
    monkeypatch.setattr(ome_tiff, "BAND", 512)


def test_ngff_04_is_read_by_ome_zarr_py(tmp_path, image):
    assert main(["export", str(image), str(tmp_path / "old.zarr"), "--ngff", "0.4"]) == 0
    ome_zarr_models.v04.Image.from_zarr(zarr.open_group(tmp_path / "old.zarr", mode="r"))
    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(tmp_path / "old.zarr"))()
    np.testing.assert_array_equal(np.asarray(node.data[0]), truth())
    for mine, old in zip(open_levels(zarr.open_group(image, mode="r")), node.data, strict=True):
        np.testing.assert_array_equal(np.asarray(old), mine[:])
    assert node.metadata["channel_names"] == ["DAPI", "PolyT"]
    group = zarr.open_group(tmp_path / "old.zarr", mode="r", zarr_format=2)
    assert group.attrs["teramind"]["parameters"] == {"seed": 7}
    assert "ome" not in group.attrs
    assert (tmp_path / "old.zarr/0/1/2/0/1").is_file()  # "/" between the chunk's numbers


def test_a_part_keeps_its_place(tmp_path, image):
    export_ngff(image, tmp_path / "part.zarr", roi="1001:2500,3:1034", slices="1:2")
    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(tmp_path / "part.zarr"))()
    np.testing.assert_array_equal(np.asarray(node.data[0]), truth()[:, 1:2, 1001:2500, 3:1034])
    scale, translation = node.metadata["coordinateTransformations"][0]
    np.testing.assert_allclose(scale["scale"], [1, 1.5, 0.108, 0.11])
    np.testing.assert_allclose(translation["translation"], [0, 4.5, 10 + 1001 * 0.108, 20 + 3 * 0.11])


def check_tiff(path, image, z, region):
    """Pixels of all levels equal those of the OME-Zarr image."""
    (y0, y1), (x0, x1) = region
    levels = open_levels(zarr.open_group(image, mode="r"))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        (series,) = tiff.series
        assert series.axes == "CYX"
        for number, level in enumerate(series.levels):
            factor = 2**number
            expected = levels[number][:, z, y0 // factor : -(-y1 // factor), x0 // factor : -(-x1 // factor)]
            np.testing.assert_array_equal(level.asarray(), expected)
            page = level.pages[0]
            assert (page.tilewidth, page.tilelength) == (512, 512)
            assert page.compression.name == "ADOBE_DEFLATE"
            assert page.tags["ResolutionUnit"].value == 3  # centimetre
            numerator, denominator = page.tags["XResolution"].value
            np.testing.assert_allclose(1e4 * denominator / numerator, 0.11 * factor, rtol=1e-6)  # rational numbers
        assert len(series.pages[0].subifds or ()) == len(series.levels) - 1
        return len(series.levels)


@pytest.mark.usefixtures("smaller_pyramid")
def test_ome_tiff_of_each_slice_with_sub_resolutions(tmp_path, image):
    assert main(["export", str(image), str(tmp_path / "slices"), "--ome-tiff"]) == 0
    assert sorted(path.name for path in (tmp_path / "slices").iterdir()) == [f"z00{z}.ome.tif" for z in range(3)]
    for z in range(3):
        path = tmp_path / f"slices/z00{z}.ome.tif"
        assert check_tiff(path, image, z, ((0, SHAPE[2]), (0, SHAPE[3]))) == 3
        described = ome_types.from_tiff(path)
        pixels = described.images[0].pixels
        assert (pixels.size_c, pixels.size_z, pixels.size_y, pixels.size_x) == (2, 1, *SHAPE[2:])
        assert [channel.name for channel in pixels.channels] == ["DAPI", "PolyT"]
        assert [channel.color.as_rgb_tuple() for channel in pixels.channels] == [(0x28, 0x60, 255), (255, 0xD4, 0)]
        assert (pixels.physical_size_x, pixels.physical_size_y, pixels.physical_size_z) == (0.11, 0.108, 1.5)
        assert pixels.physical_size_x_unit.value == "µm"
        assert [plane.position_z for plane in pixels.planes] == [3 + 1.5 * z] * 2
        assert '"seed": 7' in described.images[0].description


@pytest.mark.usefixtures("smaller_pyramid")
def test_ome_tiff_of_a_region_is_enlarged_to_its_coarsest_pixels(tmp_path, image, caplog):
    caplog.set_level("INFO")
    (path,) = export_ome_tiff(image, tmp_path / "part.ome.tif", roi="1001:1999,3:1235", slices="2:3")
    assert "1000:2000,0:1236" in caplog.text
    assert check_tiff(path, image, 2, ((1000, 2000), (0, 1236))) == 3
    (plane, _) = ome_types.from_tiff(path).images[0].pixels.planes
    np.testing.assert_allclose((plane.position_x, plane.position_y), (20, 10 + 1000 * 0.108))


@pytest.mark.usefixtures("smaller_pyramid")
def test_enlarging_may_add_a_level(tmp_path, image):
    """511 px from 3 on have two levels; enlarged to 2:514 they are 512, and 513 px from 3 on earn three."""
    (path,) = export_ome_tiff(image, tmp_path / "a.ome.tif", roi="3:514,7:9", slices="1:2")
    assert check_tiff(path, image, 1, ((2, 514), (6, 10))) == 2
    (path,) = export_ome_tiff(image, tmp_path / "b.ome.tif", roi="3:515,7:9", slices="1:2")
    assert check_tiff(path, image, 1, ((0, 516), (4, 12))) == 3


def test_small_image_is_one_level(tmp_path, image):
    (path,) = export_ome_tiff(image, tmp_path / "part.ome.tif", roi="17:30,5:106", slices="0:1")
    assert check_tiff(path, image, 0, ((17, 30), (5, 106))) == 1


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("a.tif", {"slices": "0:1"}, r"does not end in \.ome\.tif"),
        ("a.ome.tif", {}, "3 slices are wanted"),
        ("there.ome.tif", {"slices": "0:1"}, "exists already"),
        ("a", {"roi": "0:2502,0:5"}, "outside 0:2501"),
        ("a", {"slices": "2:4"}, "outside 0:3"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path, image, target, options, message):
    (tmp_path / "there.ome.tif").write_bytes(b"dear")
    with pytest.raises(InputError, match=message):
        export_ome_tiff(image, tmp_path / target, **options)
    assert (tmp_path / "there.ome.tif").read_bytes() == b"dear"
    assert len(list(tmp_path.iterdir())) == 1


def test_wrong_images_are_refused(tmp_path, image):
    zarr.create_group(tmp_path / "group.zarr")
    (tmp_path / "file").write_text("text")
    for name in ("group.zarr", "file", "absent"):
        with pytest.raises(InputError, match="not an OME-Zarr image"):
            export_ngff(tmp_path / name, tmp_path / "target")
    OutputWriter(
        tmp_path / "new.ome.zarr", shape=SHAPE, pixel_size=(1, 1, 1), translation=(0, 0, 0), stains="AB", parameters={}
    ).abort()
    with pytest.raises(InputError, match="not finished"):
        export_ngff(tmp_path / "new.ome.zarr", tmp_path / "target")
    place = {"shape": (1, 1, 9, 9), "pixel_size": (1, 1, 1)}
    foreign = create_multiscale(tmp_path / "foreign.zarr", **place, channels=[Channel("A")], name="foreign")
    del foreign["0"]
    foreign.create_array("0", shape=(1, 1, 9, 9), dtype="uint16")
    with pytest.raises(InputError, match="uint16"):
        export_ngff(tmp_path / "foreign.zarr", tmp_path / "target")
    (tmp_path / "target").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_ngff(image, tmp_path / "target")


@pytest.mark.parametrize("kind", [["--ome-tiff", "--slices", "0:1"], ["--ngff", "0.4"]], ids=["tiff", "ngff"])
def test_a_failed_write_leaves_nothing(tmp_path, image, capsys, small_files_only, kind):
    with small_files_only(300_000):
        assert main(["export", str(image), str(tmp_path / "out.ome.tif"), *kind]) == 2
    assert list(tmp_path.iterdir()) == []
    assert f"File too large: '{tmp_path}/out.ome.tif" in capsys.readouterr().err


def test_ranges():
    assert parse_ranges("0:5, 7:9", {"y": 5, "x": 10}) == [(0, 5), (7, 9)]
    for text in ("0:5", "0:5,1:2,3:4", "a:b,1:2", "-1:5,1:2", "", "0:5,:3"):
        with pytest.raises(InputError, match="does not read as y0:y1,x0:x1"):
            parse_ranges(text, {"y": 5, "x": 10})
    for text in ("0:6,0:1", "3:3,0:1", "4:3,0:1"):
        with pytest.raises(InputError, match="along y is empty or reaches outside 0:5"):
            parse_ranges(text, {"y": 5, "x": 10})
