"""Maps of a phantom, whose genes are known to interact where it says: from the transcripts to the score."""

import numpy as np
import pytest
import torch

from teramind import ModelConfig, TeraMind, save_checkpoint
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.atlas.phantom.genes import GENES, PATHWAYS
from teramind.evaluate import shuffle_genes
from teramind.interaction.image import MapImage
from teramind.interaction.maps import MapSource, write_maps
from teramind.interaction.truth import auroc

SIDE, SLICES = 512, 4
PAIR = PATHWAYS["DOPA"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Attention close to uniform: what is found comes from the form of a map."""
    torch.manual_seed(0)
    net = TeraMind(ModelConfig(genes=len(GENES), base_channels=4, embed_channels=16, res_blocks=1))
    path = tmp_path_factory.mktemp("untrained") / "net.safetensors"
    save_checkpoint(path, net, genes=GENES)
    return path


def attention(atlas, checkpoint, path):
    write_maps(MapSource(atlas, checkpoint, PAIR), path, progress=False)
    maps = MapImage(path)
    return np.stack([maps.read("window", z) for z in range(SLICES)])


def test_maps_find_where_genes_interact_and_shuffled_genes_do_not(tmp_path, untrained):
    phantom = Phantom(12, SIDE, SLICES, 0.3)
    truth = phantom.interaction_window(PAIR, 0, SLICES, 0, SIDE, 0, SIDE)
    assert 0.02 < truth.mean() < 0.5
    atlas = build_phantom(phantom, tmp_path / "phantom.zarr")
    assert auroc(attention(atlas, untrained, tmp_path / "maps.ome.zarr"), truth) > 0.8
    elsewhere = shuffle_genes(atlas, seed=0, block=16)
    assert auroc(attention(elsewhere, untrained, tmp_path / "shuffled.ome.zarr"), truth) == pytest.approx(0.5, abs=0.05)
