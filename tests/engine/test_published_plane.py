"""A plane of the published size: what is made before the first unit takes little time and memory."""

import time
import tracemalloc

import pytest
import torch
from scipy.sparse import csr_array

from teramind import ModelConfig, TeraMind, save_checkpoint
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.engine.job import Job
from teramind.engine.sizes import StateSizes
from teramind.generate import run_options

SHAPE = (73216, 105984)
GENES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def large_atlas(tmp_path_factory):
    """Two slices of 73,216 x 105,984 px without a transcript but one."""
    path = tmp_path_factory.mktemp("large") / "atlas.zarr"
    columns, rows = SHAPE[1] // 16, SHAPE[0] // 16
    with AtlasWriter(
        path, genes=GENES, stains=["DAPI", "PolyT"], slice_z=[0, 10], shape=SHAPE, pixel_size=0.108, scaling=None,
        provenance={},
    ) as writer:  # fmt: skip
        for z in range(2):
            for row in range(0, rows, STRIP_BINS):
                shape = min(STRIP_BINS, rows - row) * columns, len(GENES)
                counts = csr_array(shape, dtype="u2")
                if (z, row) == (0, 20 * STRIP_BINS):
                    counts = csr_array(([1], ([columns // 2], [0])), shape=shape, dtype="u2")
                writer.append_counts(z, counts)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Patches of the published size; what it weighs does not matter here."""
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    torch.manual_seed(0)
    config = ModelConfig(genes=3, base_channels=4, channel_mult=(1, 1, 1, 1), res_blocks=1, embed_channels=64)
    save_checkpoint(path, TeraMind(config), genes=GENES)
    return path


@pytest.mark.parametrize("skip_below", [None, 1])
def test_setting_up_is_quick_and_small(large_atlas, network, tmp_path, skip_below):
    tracemalloc.start()
    start = time.perf_counter()
    job = Job(large_atlas, network, tmp_path / "x.ome.zarr", run_options(skip_below=skip_below, tile=1024))
    setup = job.setup()
    plan = setup.plan(completed=None)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (plan.rows, plan.columns) == (72, 104)
    assert plan.remaining == (72 * 104 * 15 if skip_below is None else 3 * 2 * 15)
    assert peak < 100 * 2**20  # a plane of a byte a pixel is 7.8 GB, of its bins 30 MB
    assert seconds < 20

    sizes = StateSizes.of(plan, 4, 2)
    assert (sizes.line, sizes.band) == (72, 72 * 16)
    assert 9e9 < sizes.band * sizes.tile < 18e9
    assert sizes.snapshot < 18e9


def test_the_first_units_read_noise_alone(large_atlas, network, tmp_path):
    setup = Job(large_atlas, network, tmp_path / "x.ome.zarr", run_options(tile=1024)).setup()
    plan = setup.plan(completed=None)
    units = [plan.claim()[0] for _ in range(3)]
    assert [unit[1:] for unit in units] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]  # along the shorter side
    genes = setup.genes(plan=plan, windows=setup.place.windows)
    assert genes.read(units[0]).shape == (3, 0)  # there is no transcript
    assert not any(piece.version for piece in plan.input_pieces(units[1]))


def test_the_output_is_made_without_its_voxels(large_atlas, network, tmp_path):
    setup = Job(large_atlas, network, tmp_path / "x.ome.zarr", run_options(tile=1024)).setup()
    tracemalloc.start()
    writer = setup.create_output(setup.identity, False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.abort()
    assert peak < 20 * 2**20
    assert sum(entry.stat().st_size for entry in writer.path.rglob("*") if entry.is_file()) < 100_000
