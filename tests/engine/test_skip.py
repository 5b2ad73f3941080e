"""Tiles without tissue: what is left empty, and that no transcript loses a voxel."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import zarr
from scipy.sparse import csr_array

from teramind import generate
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.engine.frame import Window
from teramind.engine.plan import Rectangle
from teramind.engine.session import carry_out
from teramind.engine.tissue import empty_tiles
from teramind.errors import ComputationError
from teramind.model.network import TeraMind

SHAPE = (450, 500)
STEPS, PATCH, TILE = 2, 32, 64
OPTIONS = {"steps": STEPS, "tile": TILE}


@pytest.fixture(scope="module")
def sparse_atlas(tmp_path_factory):
    """Two slices with a handful of transcripts in two places, one of them in a single slice."""
    path = tmp_path_factory.mktemp("atlas") / "sparse.zarr"
    bins = -(-SHAPE[0] // 16), -(-SHAPE[1] // 16)
    counts = np.zeros((2, *bins, 3), np.uint16)
    counts[:, 2:6, 3:8] = np.random.default_rng(0).poisson(1.0, (2, 4, 5, 3))
    counts[1, 25, 28, 2] = 1
    with AtlasWriter(
        path, genes=["a", "b", "c"], stains=["DAPI", "PolyT"], slice_z=[0, 10], shape=SHAPE, pixel_size=0.108,
        scaling=None, provenance={},
    ) as writer:  # fmt: skip
        for z in range(2):
            for row in range(0, bins[0], STRIP_BINS):
                writer.append_counts(z, csr_array(counts[z, row : row + STRIP_BINS].reshape(-1, 3)))
    return path, counts


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sparse_atlas, checkpoint_path):
    path = tmp_path_factory.mktemp("runs")
    reports = {}
    for below in (None, 1, 3):
        name = path / f"{below}.ome.zarr"
        reports[below] = generate(sparse_atlas[0], checkpoint_path, name, skip_below=below, **OPTIONS)
    return {below: (np.asarray(zarr.open_group(path / f"{below}.ome.zarr", mode="r")["0"]), reports[below])
            for below in reports}  # fmt: skip


def test_every_bin_with_a_transcript_keeps_its_voxels(runs, sparse_atlas):
    """Bit for bit those of the run that skips nothing."""
    full, skipped = runs[None][0], runs[1][0]
    for z, row, column in np.argwhere(sparse_atlas[1].sum(axis=3)):
        place = (slice(None), z, slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        assert np.array_equal(skipped[place], full[place])
    assert full.any(axis=0).mean() > 0.9


def test_what_is_skipped_is_black_and_counted(runs):
    """A single transcript keeps its tile with a threshold of 1, and not with 3."""
    _, everything = runs[None]
    assert (everything.skipped_tiles, everything.filled_fraction) == (0, 1.0)
    for below in (1, 3):
        voxels, report = runs[below]
        rows, columns = -(-SHAPE[0] // TILE), -(-SHAPE[1] // TILE)
        empty = [
            (row, column)
            for row in range(rows)
            for column in range(columns)
            if not voxels[..., row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE].any()
        ]
        assert len(empty) == report.skipped_tiles > 0
        area = sum(
            (min(SHAPE[0], (row + 1) * TILE) - row * TILE) * (min(SHAPE[1], (column + 1) * TILE) - column * TILE)
            for row, column in empty
        )
        assert report.filled_fraction == pytest.approx(1 - area / (SHAPE[0] * SHAPE[1]))
    single = (slice(None), 1, slice(400, 416), slice(448, 464))
    assert runs[1][0][single].any()
    assert not runs[3][0][single].any()
    assert runs[1][1].summary().endswith("of the voxels filled")


def test_nothing_but_empty_tiles(tmp_path, sparse_atlas, checkpoint_path):
    report = generate(sparse_atlas[0], checkpoint_path, tmp_path / "x.ome.zarr", skip_below=10**9, **OPTIONS)
    assert (report.units, report.filled_fraction) == (0, 0.0)
    assert not np.asarray(zarr.open_group(tmp_path / "x.ome.zarr", mode="r")["0"]).any()


def test_a_run_that_skips_is_gone_on_with(tmp_path, monkeypatch, runs, sparse_atlas, checkpoint_path):
    """The skipped tiles are in the first snapshot."""
    path = tmp_path / "x.ome.zarr"
    forward, left = TeraMind.forward, iter(range(6))

    def failing(self, *arguments):
        if next(left, None) is None:
            raise RuntimeError("enough")
        return forward(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TeraMind, "forward", failing)
        with pytest.raises(ComputationError):
            generate(sparse_atlas[0], checkpoint_path, path, skip_below=1, **OPTIONS)
    report = generate(sparse_atlas[0], checkpoint_path, path, skip_below=1, resume=True, **OPTIONS)
    voxels, uninterrupted = runs[1]
    assert np.array_equal(np.asarray(zarr.open_group(path, mode="r")["0"]), voxels)
    assert report.units == uninterrupted.units
    assert report.skipped_tiles == uninterrupted.skipped_tiles
    assert report.filled_fraction == uninterrupted.filled_fraction


class OneTranscript:
    """Counts of one bin."""

    def __init__(self, z, y, x):
        self.place = z, y // 16, x // 16

    def count_window(self, z0, z1, y0, y1, x0, x1):
        counts = np.zeros((z1 - z0, (y1 - y0) // 16, (x1 - x0) // 16), np.uint32)
        z, row, column = self.place[0] - z0, self.place[1] - y0 // 16, self.place[2] - x0 // 16
        if 0 <= z < counts.shape[0] and 0 <= row < counts.shape[1] and 0 <= column < counts.shape[2]:
            counts[z, row, column] = 1
        return counts


def test_the_reach_of_a_transcript():
    """steps * patch px around it, and every window that has its slice among its genes."""
    plane = Rectangle(0, 640, 0, 960)
    windows = [Window(-1, 0), Window(1, 2), Window(3, 4)]
    empty = empty_tiles(
        OneTranscript(2, 300, 500), plane, windows, 4, tile=TILE, patch=PATCH, steps=STEPS, below=1,
    )  # fmt: skip
    assert empty.shape == (3, 10, 15)
    for row, column in np.ndindex(10, 15):
        y, x = row * TILE, column * TILE
        near = y - 64 <= 300 < y + TILE + 64 and x - 64 <= 500 < x + TILE + 64
        # reach is counted in whole patches, from the tile's side
        assert empty[0, row, column] == (not near)
        assert empty[1, row, column] == (not near)
    assert empty[2].all()


def test_the_toy_skips_too(tmp_path, toy, toy_voxels):
    """With a halo of -1 instead: only what the skipped tile reaches differs."""
    path = tmp_path / "x.ome.zarr"
    setup = toy.setup(path)
    skip = np.zeros((2, 4, 6), bool)
    skip[:, 0, 5] = True
    setup = replace(setup, skip=skip, plan=partial(setup.plan, skip=skip))
    carry_out(setup, path, resume=False, overwrite=False)
    voxels = toy.voxels(path)
    assert not voxels[:, :, :16, 80:].any()
    assert np.array_equal(voxels[..., :70], toy_voxels[..., :70])
