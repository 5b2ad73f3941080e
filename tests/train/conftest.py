"""Atlases whose image is a function of their genes, and networks that learn within seconds."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from teramind.atlas.writer import AtlasWriter
from teramind.train.options import Options

GENES = ["a", "b", "c"]
MODEL = {
    "patch_size": 32, "gene_slices": 1, "base_channels": 6, "channel_mult": (1, 1, 1, 1), "res_blocks": 1,
    "embed_channels": 16, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_atlas(path, slices=3, height=150, width=230, genes=GENES, stains=("DAPI", "PolyT"), seed=0, **changed):
    """Stain s of a bin is 40 times the count of gene s in it, so that image and genes can be compared."""
    generator = np.random.default_rng(seed)
    rows, columns = -(-height // 16), -(-width // 16)
    counts = generator.integers(0, 6, (slices, rows, columns, len(genes))).astype(np.uint16)
    metadata = {
        "genes": list(genes), "stains": list(stains), "slice_z": [10.0 * z for z in range(slices)],
        "shape": (height, width), "pixel_size": 0.4, "scaling": dict.fromkeys(stains, (0.0, 255.0)), "provenance": {},
    }  # fmt: skip
    with AtlasWriter(path, **metadata | changed) as writer:
        for z in range(slices):
            for row in range(0, rows, 64):
                writer.append_counts(z, csr_array(counts[z, row : row + 64].reshape(-1, len(genes))))
            for stain in range(len(stains)):
                pixels = np.kron(counts[z, :, :, stain] * 40, np.ones((16, 16)))[:height, :width].astype(np.uint8)
                writer.write_image(z, stain, 0, 0, pixels)
    return path


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
