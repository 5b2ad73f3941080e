"""Atlases whose image is a function of their genes, and networks that learn within seconds."""

import atlases
import numpy as np
import pytest

from teramind.train.options import Options

GENES = ["a", "b", "c"]
MODEL = {
    "patch_size": 32, "gene_slices": 1, "base_channels": 6, "channel_mult": (1, 1, 1, 1), "res_blocks": 1,
    "embed_channels": 16, "dropout": 0.0,
}  # fmt: skip


def make_atlas(path, slices=3, height=150, width=230, genes=GENES, stains=("DAPI", "PolyT"), seed=0, **changed):
    """Stain s of a bin is 40 times the count of gene s in it, so that image and genes can be compared."""
    generator = np.random.default_rng(seed)
    rows, columns = -(-height // 16), -(-width // 16)
    counts = generator.integers(0, 6, (slices, rows, columns, len(genes))).astype(np.uint16)
    metadata = {
        "genes": list(genes), "stains": list(stains), "slice_z": [10.0 * z for z in range(slices)],
        "shape": (height, width), "pixel_size": 0.4, "scaling": dict.fromkeys(stains, (0.0, 255.0)), "provenance": {},
    }  # fmt: skip
    pixels = (40 * counts).astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return atlases.write_atlas(path, counts, np.moveaxis(pixels, -1, 0)[: len(stains)], **metadata | changed)


@pytest.fixture(scope="session")
def write_atlas():
    return make_atlas


@pytest.fixture(scope="session")
def atlas_path(tmp_path_factory):
    return make_atlas(tmp_path_factory.mktemp("atlas") / "atlas.zarr")


@pytest.fixture(scope="session")
def model():
    return MODEL


@pytest.fixture(scope="session")
def options():
    """Quick ones, with others over them."""

    def make(**changed):
        quick = {"steps": 4, "batch": 2, "lr": 1e-3, "init": "fast", "loss": "velocity", "log_every": 1}
        return Options(**quick | changed)

    return make
