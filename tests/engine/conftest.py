"""A small atlas, and a small network fitted to it: its voxels stay off the clip, so that differences show."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from teramind.atlas.writer import AtlasWriter

GENES = ["a", "b", "c"]
STAINS = ["DAPI", "PolyT"]
HEIGHT, WIDTH = 150, 230
STRIP_BINS = 64


def make_atlas(path, slices=3, height=HEIGHT, width=WIDTH, density=0.3, seed=0, overwrite=False):
    """Poisson counts, none in the right third of the plane; each stain is the blurred density of a gene."""
    generator = np.random.default_rng(seed)
    bins = -(-height // 16), -(-width // 16)
    slice_z = [10.0 * z for z in range(slices)]
    with AtlasWriter(
        path, genes=GENES, stains=STAINS, slice_z=slice_z, shape=(height, width), pixel_size=0.108,
        scaling=dict.fromkeys(STAINS, (0, 255)), provenance={}, overwrite=overwrite,
    ) as writer:  # fmt: skip
        for z in range(slices):
            counts = generator.poisson(density, (*bins, len(GENES))).astype(np.uint16)
            counts[:, bins[1] * 2 // 3 :] = 0
            for row in range(0, bins[0], STRIP_BINS):
                writer.append_counts(z, csr_array(counts[row : row + STRIP_BINS].reshape(-1, len(GENES))))
            for stain in range(len(STAINS)):
                blurred = gaussian_filter(np.kron(counts[..., stain], np.ones((16, 16))), 6)[:height, :width]
                pixels = (40 + 150 * blurred.clip(0, 1.4)).astype(np.uint8)
                for y in range(0, height, 4096):
                    for x in range(0, width, 4096):
                        writer.write_image(z, stain, y, x, pixels[y : y + 4096, x : x + 4096])
    return path


@pytest.fixture(scope="session")
def write_atlas():
    return make_atlas


@pytest.fixture(scope="session")
def atlas_path(tmp_path_factory):
    return make_atlas(tmp_path_factory.mktemp("atlas") / "atlas.zarr")


@pytest.fixture(scope="session")
def checkpoint_path():
    """Made as tests/data/README.md says."""
    return Path(__file__).parents[1] / "data" / "small.safetensors"
