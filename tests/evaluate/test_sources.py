import numpy as np
import pytest

from teramind.atlas.store import Atlas
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.sources import AtlasImage, Extent, GeneratedImage, MeanImage, open_other
from teramind.ngff import Channel, MultiscaleWriter, create_multiscale


def test_a_region_lies_at_its_place(atlas, truth, tissue, tmp_path):
    part = truth[:, 1:, 64:192, 128:384]
    image = GeneratedImage(tissue.write_output(tmp_path / "part.ome.zarr", part, atlas, y0=64, x0=128, z0=1), atlas)
    assert image.extent == Extent((1, 2), Rectangle(64, 192, 128, 384))
    assert str(image.extent) == "slices 1:2, px 64:192,128:384"
    place = Rectangle(70, 91, 130, 383)
    there = AtlasImage(atlas, image.stains).read(1, place)
    np.testing.assert_array_equal(image.read(1, place), there)
    np.testing.assert_array_equal(there, truth[:, 1, 70:91, 130:383])


def test_stains_are_found_by_name(atlas, truth, tissue, tmp_path):
    path = tissue.write_output(tmp_path / "swapped.ome.zarr", truth[::-1], atlas, stains=["polyt", "Dapi"])
    image = GeneratedImage(path, atlas)
    image.select(["DAPI", "PolyT"])
    place = Rectangle(0, 30, 0, 40)
    np.testing.assert_array_equal(image.read(0, place), AtlasImage(atlas, ["DAPI", "PolyT"]).read(0, place))
    with pytest.raises(InputError, match="no stain GFP; it has polyt, Dapi"):
        image.select(["GFP"])


def test_an_image_of_anothers_is_placed_by_its_z(atlas, truth, tmp_path):
    create_multiscale(
        tmp_path / "other.ome.zarr", shape=(2, 1, *truth.shape[2:]), pixel_size=(7, 0.4, 0.4), translation=(15, 0, 0),
        channels=[Channel("DAPI"), Channel("PolyT")], name="other",
    )  # fmt: skip
    with MultiscaleWriter(tmp_path / "other.ome.zarr") as writer:
        writer.write_block(0, 0, 0, truth[:, 1:])
    image = GeneratedImage(tmp_path / "other.ome.zarr", atlas)
    assert image.extent.slices == (1, 2)
    assert image.parameters == {}


def test_windows_cover_every_pixel_once():
    extent = Extent((2, 4), Rectangle(16, 213, 32, 150))
    seen = np.zeros((4, 213, 150), int)
    for z, place in extent.windows(64):
        seen[z, place.y0 : place.y1, place.x0 : place.x1] += 1
    assert (seen[2:, 16:, 32:] == 1).all()
    assert seen.sum() == 2 * 197 * 118
    assert extent.padded(Rectangle(16, 80, 96, 150), 20) == Rectangle(16, 100, 76, 150)


def test_a_part_of_the_extent(atlas):
    extent = Extent((0, 2), Rectangle(64, 192, 0, 400))
    assert extent.within("0:128,100:300", "1:2", atlas) == Extent((1, 2), Rectangle(64, 128, 100, 300))
    with pytest.raises(InputError, match="outside the image, which has slices 0:2, px 64:192,0:400"):
        extent.within("0:64,0:400", None, atlas)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"finish": False}, "is not finished"),
        ({"pixel_size": 0.41}, r"pixels of 0\.41 um"),
        ({"y0": 0.5}, "between its pixels"),
        ({"y0": 64}, "which .* of 336 x 400 px does not"),
        ({"slice_z": [5.0, 18.0]}, "which are not slices of"),
        ({"slice_z": [15.0, 25.0]}, "which are not slices of"),
    ],
)
def test_what_does_not_lie_on_the_atlas_is_said(atlas, truth, tissue, tmp_path, changed, message):
    path = tissue.write_output(tmp_path / "a.ome.zarr", truth, atlas, **changed)
    with pytest.raises(InputError, match=message):
        GeneratedImage(path, atlas)


def test_what_is_no_image_is_said(atlas, tmp_path):
    with pytest.raises(InputError, match="is not an OME-Zarr image"):
        GeneratedImage(tmp_path / "absent", atlas)
    with pytest.raises(InputError, match="no multiscales metadata"):
        GeneratedImage(atlas.path, atlas)


def test_an_atlas_without_images_has_no_truth(scenes, tissue, tmp_path):
    empty = tissue.write_atlas(tmp_path / "genes.zarr", scenes, None, scaling=None, stains=[])
    with pytest.raises(InputError, match="has no images to compare with"):
        AtlasImage(empty, ["DAPI"])


def test_the_mean_is_rounded(atlas, truth, tissue, tmp_path):
    images = []
    for number in range(3):
        pixels = (truth // 2 + 10 * number).astype(np.uint8)
        images.append(GeneratedImage(tissue.write_output(tmp_path / f"{number}.ome.zarr", pixels, atlas), atlas))
    place = Rectangle(3, 50, 7, 60)
    expected = np.rint(np.mean([image.read(0, place) for image in images], axis=0))
    np.testing.assert_array_equal(MeanImage("mean", images).read(0, place), expected)


def test_a_ceiling_is_an_atlas_or_an_image_of_the_same_place(atlas, scenes, truth, tissue, tmp_path):
    stains = ["DAPI", "PolyT"]
    extent = Extent((0, 2), Rectangle(0, 336, 0, 400))
    whole = tissue.write_output(tmp_path / "whole.ome.zarr", truth, atlas)
    part = tissue.write_output(tmp_path / "part.ome.zarr", truth[:, :1], atlas)
    for path in (atlas.path, whole):
        image = open_other(path, atlas, stains, extent, "ceiling")
        assert image.name == "ceiling"
        np.testing.assert_array_equal(image.read(1, Rectangle(0, 9, 0, 9)), truth[:, 1, :9, :9])
    with pytest.raises(InputError, match=r"slices 0:2, .* are to be compared"):
        open_other(part, atlas, stains, extent, "ceiling")
    small = tissue.write_atlas(tmp_path / "small.zarr", scenes[:1], truth[:, :1])
    assert isinstance(small, Atlas)
    with pytest.raises(InputError, match="give another image of the same tissue"):
        open_other(small.path, atlas, stains, extent, "ceiling")
