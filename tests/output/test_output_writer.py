"""The generator's output, opened with the viewers' own readers."""

from __future__ import annotations

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models.v05
import pytest
import zarr
from napari_ome_zarr import napari_get_reader

from teramind.errors import InputError
from teramind.ngff.colors import stain_colors
from teramind.output.ome_zarr import OutputWriter, output_attributes

SHAPE = (2, 3, 1301, 1037)
DESCRIPTION = {
    "shape": SHAPE,
    "pixel_size": (1.5, 0.108, 0.108),
    "translation": (4.5, 110.592, 55.296),
    "stains": ["DAPI", "PolyT"],
    "parameters": {"seed": 0, "roi": (1024, 2325, 512, 1549), "checkpoint": {"sha256": "12ab"}},
}


def pixels(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "tissue.ome.zarr"
    with OutputWriter(path, **DESCRIPTION) as writer:
        for y in range(0, SHAPE[2], 512):
            writer.write_block(0, y, 0, pixels()[:, :, y : y + 512])
    return path


def test_ome_zarr_py_reads_it(finished):
    ome_zarr_models.v05.Image.from_zarr(zarr.open_group(finished, mode="r"))
    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(finished))()
    assert [data.shape for data in node.data] == [SHAPE, (2, 3, 651, 519)]
    np.testing.assert_array_equal(np.asarray(node.data[0]), pixels())
    assert node.metadata["channel_names"] == ["DAPI", "PolyT"]
    assert node.metadata["contrast_limits"] == [[0, 255], [0, 255]]
    scale, translation = node.metadata["coordinateTransformations"][0]  # napari's reader leaves the second one out
    assert scale["scale"] == [1, 1.5, 0.108, 0.108]
    assert translation["translation"] == [0, 4.5, 110.592, 55.296]


def test_napari_shows_names_colours_limits_and_size(finished):
    reader = napari_get_reader(str(finished))
    ((data, metadata, kind),) = reader(str(finished))
    assert kind == "image"
    assert [name.split(": ")[-1] for name in metadata["name"]] == ["DAPI", "PolyT"]  # newer ones prefix the image's
    assert metadata["contrast_limits"] == [[0, 255], [0, 255]]
    assert metadata["visible"] == [True, True]
    (_, dapi), (_, polyt) = (colormap.colors for colormap in metadata["colormap"])
    np.testing.assert_allclose(dapi[:3], [0x28 / 255, 0x60 / 255, 1], atol=1e-6)
    np.testing.assert_allclose(polyt[:3], [1, 0xD4 / 255, 0], atol=1e-6)
    np.testing.assert_allclose(metadata["scale"], (1.5, 0.108, 0.108))
    assert [str(unit) for unit in metadata["units"]] == ["micrometer"] * 3
    np.testing.assert_array_equal(np.moveaxis(np.asarray(data[0]), metadata["channel_axis"], 0), pixels())


def test_parameters_and_completeness_are_in_the_metadata(tmp_path, finished):
    about = output_attributes(finished)
    assert about["complete"] is True
    assert about["parameters"] == {"seed": 0, "roi": [1024, 2325, 512, 1549], "checkpoint": {"sha256": "12ab"}}
    writer = OutputWriter(tmp_path / "new.ome.zarr", **DESCRIPTION)
    assert output_attributes(tmp_path / "new.ome.zarr")["complete"] is False
    with pytest.raises(RuntimeError, match="neither written nor skipped"):
        writer.close()
    assert output_attributes(tmp_path / "new.ome.zarr")["complete"] is False


def test_an_error_leaves_it_unfinished(tmp_path):
    with pytest.raises(ValueError, match="outside"), OutputWriter(tmp_path / "a.ome.zarr", **DESCRIPTION) as writer:
        writer.skip(0, 0, 0, (*SHAPE[1:3], SHAPE[3] + 1))
    assert output_attributes(tmp_path / "a.ome.zarr")["complete"] is False


def test_unfinished_output_resumes_and_a_finished_one_does_not(tmp_path, finished):
    path = tmp_path / "a.ome.zarr"
    writer = OutputWriter(path, **DESCRIPTION)
    writer.write_block(0, 0, 0, pixels()[:, :, :500])
    pending = writer.pending()
    writer.abort()
    with OutputWriter.resume(path, pending) as writer:
        writer.write_block(0, 500, 0, pixels()[:, :, 500:])
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["0"][:], pixels())
    assert output_attributes(path)["complete"] is True
    with pytest.raises(InputError, match="is complete"):
        OutputWriter.resume(finished, pending)


def test_only_our_own_output_is_overwritten(tmp_path):
    path = tmp_path / "a.ome.zarr"
    with OutputWriter(path, **DESCRIPTION) as writer:
        writer.write_block(0, 0, 0, pixels())
    with pytest.raises(InputError, match="exists already"):
        OutputWriter(path, **DESCRIPTION)
    with OutputWriter(path, **DESCRIPTION, overwrite=True) as writer:
        writer.skip(0, 0, 0, SHAPE[1:])
    assert not zarr.open_group(path, mode="r")["0"][:].any()

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"dear")
    zarr.open_group(tmp_path / "foreign.zarr", mode="w-", attributes={"teramind": {"kind": "atlas"}})
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="u1")
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr/zarr.json").write_text("{")
    for name in ("photos", "foreign.zarr", "array.zarr", "file.txt", "broken.zarr"):
        with pytest.raises(InputError, match=rf"{name} is not a generated image of teramind's"):
            OutputWriter(tmp_path / name, **DESCRIPTION, overwrite=True)
        assert (tmp_path / name).exists()
    assert (tmp_path / "photos/holiday.jpg").read_bytes() == b"dear"


def test_nothing_appears_when_the_description_is_wrong(tmp_path):
    for wrong, message in (
        ({"parameters": {"x": {1, 2}}}, "cannot be kept"),
        ({"parameters": {"x": float("nan")}}, "cannot be kept"),
        ({"stains": ["DAPI"]}, "1 channels"),
    ):
        with pytest.raises(InputError, match=message):
            OutputWriter(tmp_path / "a.ome.zarr", **{**DESCRIPTION, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_stains_have_fixed_colours():
    assert stain_colors(["DAPI", "PolyT"]) == ["2860FF", "FFD400"]
    assert stain_colors(["polyt", "Cellbound2", "dapi"]) == ["FFD400", "FF2D95", "2860FF"]
    assert len(set(stain_colors([f"stain{number}" for number in range(6)]))) == 6
    assert len(stain_colors(["x"] * 9)) == 9
