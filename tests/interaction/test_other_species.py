"""An atlas whose genes have other names, on the whole way to images and maps."""

import numpy as np
import pytest
import zarr

from teramind import InputError, generate
from teramind.interaction.interact import interact
from teramind.interaction.perturb import perturb
from teramind.output.ome_zarr import output_attributes

FEW = {"roi": "0:64,0:64", "slices": "0:2", "steps": 1, "border": "constant", "progress": False}
TABLE = "mouse,human\nSlc17a6,SLC17A6\nSlc17a7,SLC17A7\nTh,TH\nNr4a2,NR4A2\nElse,ELSE\n"


@pytest.fixture(scope="module")
def atlases(tmp_path_factory, make_atlas, counts):
    """The same counts by other names, in another order, with a gene more; Aqp4 has no partner, and no reads."""
    folder = tmp_path_factory.mktemp("species")
    counts = counts.copy()
    counts[..., 4] = 0
    make_atlas(folder / "mouse.zarr", counts)
    other = np.concatenate([counts[..., :4][..., ::-1], np.ones_like(counts[..., :1])], axis=-1)
    make_atlas(folder / "human.zarr", other, genes=["NR4A2", "TH", "SLC17A7", "SLC17A6", "XIST"])
    (folder / "orthologs.csv").write_text(TABLE)
    return folder


def voxels(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


def test_the_image_is_that_of_the_same_counts(tmp_path, atlases, checkpoint_path):
    generate(atlases / "mouse.zarr", checkpoint_path, tmp_path / "mouse.ome.zarr", **FEW)
    human = tmp_path / "human.ome.zarr"
    with pytest.raises(InputError, match="none of the network's 5 genes"):
        generate(atlases / "human.zarr", checkpoint_path, human, missing_genes="zero", **FEW)
    generate(atlases / "human.zarr", checkpoint_path, human, map_genes=atlases / "orthologs.csv", **FEW)
    assert np.array_equal(voxels(human), voxels(tmp_path / "mouse.ome.zarr"))
    assert output_attributes(human)["parameters"]["map_genes"]["Th"] == "TH"


def test_a_table_without_heads_maps_as_well(tmp_path, atlases, checkpoint_path):
    table = tmp_path / "orthologs.csv"
    table.write_text(TABLE.partition("\n")[2])
    human = tmp_path / "human.ome.zarr"
    generate(atlases / "human.zarr", checkpoint_path, human, map_genes=table, **FEW)
    assert output_attributes(human)["parameters"]["map_genes"]["Slc17a6"] == "SLC17A6"


def test_maps_are_asked_for_by_the_networks_names(tmp_path, atlases, checkpoint_path):
    for name, options in (("mouse", {}), ("human", {"map_genes": atlases / "orthologs.csv"})):
        interact(
            atlases / f"{name}.zarr", checkpoint_path, tmp_path / name, ["Th", "Slc17a7"], shown_slices=0, **options
        )
    assert np.array_equal(voxels(tmp_path / "mouse/maps.ome.zarr"), voxels(tmp_path / "human/maps.ome.zarr"))


@pytest.mark.parametrize("question", [{"genes": ["Th", "Aqp4"]}, {"top_partners": "Aqp4"}])
def test_genes_that_the_atlas_lacks_have_no_maps(tmp_path, atlases, checkpoint_path, question):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="the atlas lacks Aqp4, so there is nothing to map"):
        interact(atlases / "human.zarr", checkpoint_path, out, **question, map_genes=atlases / "orthologs.csv")
    assert not out.exists()


def test_a_change_is_named_as_in_the_atlas(tmp_path, atlases, checkpoint_path):
    options = {"map_genes": atlases / "orthologs.csv", "seeds": 1, "tile": 64, **FEW}
    with pytest.raises(InputError, match="does not read XIST"):
        perturb(atlases / "human.zarr", checkpoint_path, tmp_path / "out", ["XIST=0"], **options)
    perturb(atlases / "human.zarr", checkpoint_path, tmp_path / "out", ["SLC17A7=0"], **options)
    assert (voxels(tmp_path / "out/difference.ome.zarr") != 0).any()
