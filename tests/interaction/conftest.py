"""An atlas with odd sides, and small networks in place of trained ones."""

import atlases
import numpy as np
import pytest
import torch

from teramind import ModelConfig, TeraMind, save_checkpoint

GENES = ["Slc17a6", "Slc17a7", "Th", "Nr4a2", "Aqp4"]
HEIGHT, WIDTH, SLICES = 230, 150, 3
PIXEL_SIZE = 0.2


def write_atlas(path, counts, height=HEIGHT, width=WIDTH, genes=GENES, regions=None, image=None, pixel_size=PIXEL_SIZE):
    """``counts`` (slices, bins y, bins x, genes)."""
    stains = [] if image is None else ["DAPI", "PolyT"]
    return atlases.write_atlas(
        path, counts, image, regions, genes=genes, stains=stains, slice_z=[10.0 + 5 * z for z in range(len(counts))],
        shape=(height, width), pixel_size=pixel_size, scaling=dict.fromkeys(stains, (0, 255)) if stains else None,
        provenance={},
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_atlas():
    return write_atlas


@pytest.fixture(scope="session")
def counts():
    """(slices, bins y, bins x, genes); the right third is empty, Th is rare."""
    generator = np.random.default_rng(5)
    rates = np.array([0.5, 0.8, 0.02, 0.1, 0.4])
    counts = generator.poisson(rates, (SLICES, -(-HEIGHT // 16), -(-WIDTH // 16), len(GENES)))
    counts[:, :, 7:] = 0
    return counts


@pytest.fixture(scope="session")
def atlas_path(tmp_path_factory, counts):
    return write_atlas(tmp_path_factory.mktemp("atlas") / "atlas.zarr", counts)


def small_network(seed=0, **changes):
    torch.manual_seed(seed)
    config = {
        "patch_size": 32, "genes": len(GENES), "base_channels": 4, "channel_mult": (1, 1, 1, 1), "res_blocks": 1,
        "embed_channels": 16,
    } | changes  # fmt: skip
    net = TeraMind(ModelConfig(**config))
    with torch.no_grad():
        for weight in net.parameters():  # attention far from uniform, and no block that starts as its skip
            weight.copy_(torch.randn_like(weight) * (0.6 if weight.ndim > 1 else 0.3))
    return net.eval()


@pytest.fixture(scope="session")
def make_network():
    return small_network


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_checkpoint(path, small_network(), genes=GENES, stains=["DAPI", "PolyT"], pixel_size=PIXEL_SIZE)
    return path
