"""What ``teramind interact`` writes, and that it is a thin cover of the function."""

import argparse
import csv
import inspect
import re

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pytest
import zarr
from napari_ome_zarr import napari_get_reader

from teramind import InputError, generate, save_checkpoint
from teramind.cli import main
from teramind.interaction.image import MapImage
from teramind.interaction.interact import add_arguments, interact
from teramind.interaction.statistics import pathway_statistics
from teramind.interaction.underlay import Underlay
from teramind.ngff import image_translation


def test_names_and_defaults_are_those_of_the_function():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    of_command = vars(parser.parse_args(["ATLAS", "--output", "OUT", "--checkpoint", "NET"]))
    of_function = {name: value.default for name, value in inspect.signature(interact).parameters.items()}
    assert of_command == of_function | {"atlas": "ATLAS", "output": "OUT", "checkpoint": "NET"}
    described = inspect.getdoc(interact)
    assert all(action.help and f"    {action.dest}: " in described for action in parser._actions[1:])


GENES = ["Slc17a6", "Slc17a7", "Th", "Nr4a2", "Aqp4"]


@pytest.fixture(scope="module")
def imaged_atlas(tmp_path_factory, make_atlas, counts):
    """With images as bright as Slc17a7 is expressed, in squares of a bin."""
    bins = np.kron(counts[..., 1], np.ones((16, 16)))[:, :230, :150]
    image = np.stack([np.minimum(60 * bins, 255), np.zeros_like(bins)]).astype(np.uint8)
    return make_atlas(tmp_path_factory.mktemp("imaged") / "atlas.zarr", counts, image=image)


def test_a_page_with_all_in_it(tmp_path, imaged_atlas, checkpoint_path, capsys):
    out = tmp_path / "glut"
    words = [
        "interact",
        str(imaged_atlas),
        "--checkpoint",
        str(checkpoint_path),
        "--pathway",
        "GLUT",
        "--output",
        str(out),
        "--shown-slices",
        "2",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "uniform attention" in said
    assert re.search(r"450 bins in .* a second\); the published brain, 1,515,571,200 bins, would take .* h", said)
    page = (out / "interaction.html").read_text()
    assert "co-expression alone scores high" in page
    assert "The mean of a square stands in place of the resize" in page
    assert "smoothed by a Gaussian of 1 pixel" in page
    assert "vesicular" in page
    assert page.count("data:image/png;base64,") == 1 + 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert {path.name for path in (out / "figures").iterdir()} == {"regression.png", "slice_000.png", "slice_002.png"}
    with (out / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    assert {row["gene"] for row in rows} == {"Slc17a6", "Slc17a7", "uniform attention"}
    (out / "figures/slice_mine.png").write_bytes(b"")
    assert main([*words, "--overwrite", "--slices", "1:3", "--shown-slices", "1"]) == 0
    capsys.readouterr()
    names = {"regression.png", "slice_001.png", "slice_mine.png"}
    assert {path.name for path in (out / "figures").iterdir()} == names
    assert main([*words, "--resume", "--slices", "1:3", "--shown-slices", "0"]) == 0
    assert "bins in" not in capsys.readouterr().out
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_partners_are_kept_and_have_a_file_of_any_name(tmp_path, make_atlas, make_network, counts):
    genes = ["H2-K1/D1", "Slc17a7", "Th", "Nr4a2", "Aqp4"]
    atlas = make_atlas(tmp_path / "atlas.zarr", counts, genes=genes)
    save_checkpoint(tmp_path / "net.safetensors", make_network(), genes=genes)
    asked = {"top_partners": "H2-K1/D1", "permutations": 20, "progress": False}
    made = interact(atlas, tmp_path / "net.safetensors", tmp_path / "out", **asked)
    assert made.partners_file == tmp_path / "out/partners_H2-K1%2FD1.csv"
    made.partners_file.write_text("mine")
    with pytest.raises(InputError, match="exists already; --overwrite replaces it"):
        interact(atlas, tmp_path / "net.safetensors", tmp_path / "out", **asked)
    assert made.partners_file.read_text() == "mine"
    interact(atlas, tmp_path / "net.safetensors", tmp_path / "out", **asked, overwrite=True)
    assert made.partners_file.read_text() != "mine"


def test_genes_that_are_nowhere_together(tmp_path, make_atlas, counts, checkpoint_path):
    apart = counts.copy()
    apart[:, :8, :, 2], apart[:, 8:, :, 3] = 0, 0
    atlas = make_atlas(tmp_path / "atlas.zarr", apart)
    made = interact(atlas, checkpoint_path, tmp_path / "out", ["Th", "Nr4a2"])
    assert made.statistics.overall()["Th"].n == 0
    assert "In no slice are all genes expressed in one place" in made.page.read_text()


def test_a_page_of_many_genes_says_which_it_draws(tmp_path, atlas_path, checkpoint_path, counts, monkeypatch):
    monkeypatch.setattr("teramind.interaction.interact.pathway_statistics", lambda maps: pathway_statistics(maps, 2))
    asked = ["Slc17a6", "Aqp4", "Slc17a7"]
    made = interact(atlas_path, checkpoint_path, tmp_path / "out", asked, shown_slices=1)
    totals = dict(zip(GENES, counts.sum(axis=(0, 1, 2)), strict=True))
    most = sorted(asked, key=lambda gene: totals[gene])[1:]
    assert set(made.statistics.histograms) == set(most)
    page = made.page.read_text()
    assert page.count("The figures show 2 of 3 genes, those with most transcripts") == 2
    assert {row["gene"] for row in made.statistics.rows()} == {*asked, "uniform attention"}


def test_the_underlay_lies_under_the_map(tmp_path, imaged_atlas, checkpoint_path, make_atlas, counts):
    interact(imaged_atlas, checkpoint_path, tmp_path / "out", ["Slc17a7"], roi="64:200,32:150", slices="1:3")
    maps = MapImage(tmp_path / "out/maps.ome.zarr")
    from teramind import Atlas

    under = Underlay.of_atlas(Atlas.open(imaged_atlas), "dapi")
    plane = under.read(maps.first_slice + 1, maps.corner, maps.bin_size, maps.shape[1:])
    expected = np.minimum(60 * counts[2, 4:, 2:, 1], 255) / 255
    expected = expected[: plane.shape[0], : plane.shape[1]]
    # The last bins of 230 x 150 px are cut.
    np.testing.assert_allclose(plane[:-1, :-1], expected[:-1, :-1], atol=2 / 255)
    assert under.read(99, maps.corner, maps.bin_size, (3, 3)) is None
    assert Underlay.of_atlas(Atlas.open(make_atlas(tmp_path / "bare.zarr", counts))) is None


def test_options_that_cannot_be_end_the_command(tmp_path, imaged_atlas, atlas_path, checkpoint_path, capsys):
    for atlas, option, sentence in (
        (imaged_atlas, ["--nuclear-stain", "DAPPI"], "no image of the stain DAPPI: it has DAPI, PolyT"),
        (atlas_path, ["--nuclear-stain", "DAPI"], "no image of the stain DAPI: it has no images"),
        (imaged_atlas, ["--shown-slices", "-3"], "shown_slices is -3, but has to be an integer from 0"),
    ):
        words = ["interact", str(atlas), "--checkpoint", str(checkpoint_path), "--pathway", "GLUT"]
        assert main([*words, "--output", str(tmp_path / "out"), *option]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_maps_lie_on_the_generated_image(tmp_path, imaged_atlas, checkpoint_path):
    """The corner of the first bin is that of the first pixel, and the image serves as underlay."""
    options = {"roi": "64:128,32:64", "slices": "0:2"}
    image = tmp_path / "image.ome.zarr"
    generate(imaged_atlas, checkpoint_path, image, **options, steps=2, tile=64, border="constant", progress=False)
    interact(imaged_atlas, checkpoint_path, tmp_path / "out", ["Th"], **options, image=image)
    _, y, x = image_translation(zarr.open_group(image, mode="r"))
    corner = MapImage(tmp_path / "out/maps.ome.zarr").corner
    assert corner == pytest.approx((y - 0.1, x - 0.1))
    # At every level, as another library reads them: the outer corners of the first and of the last pixel, um.
    frames = set()
    for path in (image, tmp_path / "out/maps.ome.zarr"):
        [node] = ome_zarr.reader.Reader(ome_zarr.io.parse_url(path))()
        for data, (scaled, moved) in zip(node.data, node.metadata["coordinateTransformations"], strict=True):
            scale, translation = np.array(scaled["scale"])[1:], np.array(moved["translation"])[1:]
            corner = translation[1:] - scale[1:] / 2
            end = corner + scale[1:] * data.shape[2:]
            frames.add(tuple(np.round([translation[0], *corner, *end], 6)))
    assert len(frames) == 1
    # napari's reader takes the scale alone.
    shown = [napari_get_reader(str(path))(str(path))[0][1] for path in (image, tmp_path / "out/maps.ome.zarr")]
    np.testing.assert_allclose(shown[1]["scale"], np.multiply(shown[0]["scale"], (1, 16, 16)))
    with pytest.raises(InputError, match="has no stain Cellbound2"):
        interact(imaged_atlas, checkpoint_path, tmp_path / "other", ["Th"], image=image, nuclear_stain="Cellbound2")
    assert not (tmp_path / "other").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, imaged_atlas, checkpoint_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="mine is there and no folder"):
        interact(imaged_atlas, checkpoint_path, tmp_path / "mine", ["Th"])
    assert (tmp_path / "mine").read_text() == "mine"
