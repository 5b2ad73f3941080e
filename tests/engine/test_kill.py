"""SIGKILL at any moment: the real scheduler, store, snapshots and writer around a toy in the network's place."""

import random

import numpy as np
import pytest

from teramind.engine.plan import Rectangle
from teramind.engine.session import carry_out


def test_a_region_is_the_crop_and_workers_change_nothing(tmp_path, toy, toy_voxels):
    """The toy shows what a network's rounding would hide: bit for bit."""
    path = tmp_path / "image.ome.zarr"
    carry_out(toy.setup(path, roi=Rectangle(10, 30, 20, 50), workers=4), path, resume=False, overwrite=False)
    assert np.array_equal(toy.voxels(path), toy_voxels[:, :, 8:32, 16:56])


def test_against_the_whole_plane_at_once(toy, toy_voxels):
    """Without tiles, plan or store: the toy on the padded plane."""
    for z, window in enumerate((0, 0, 1)):
        start = toy.windows[window].image_start
        state = toy.noise(start, Rectangle(0, 64, 0, 96))[None]
        y, x = np.arange(-4, 68)[:, None], np.arange(-4, 100)
        hashed = ((y * 7919 + x * 104729 + start * 1299709) % 1009)[None, None, None].astype(np.uint16)
        for step in range(toy.steps):
            padded = np.pad(state, ((0, 0), (0, 0), (0, 0), (4, 4), (4, 4)), constant_values=-1)
            state = toy.denoiser()(padded, hashed, step, [""])
        assert np.array_equal(toy_voxels[0, z], state[0, 0, 0, : toy.height, : toy.width])


@pytest.mark.parametrize("kills", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spilled", [False, True])
def test_killed_at_random_moments_it_ends_with_the_same_voxels(tmp_path, toy, toy_voxels, kills, spilled):
    random.seed(kills)
    options = {"seconds": 0.0005, "snapshot_seconds": 0.01, "workers": 2}
    if spilled:
        options["memory"] = 107_000  # what the rims may take, and four tiles
    killed = outputs = 0
    while killed < kills:
        path = tmp_path / f"{outputs}.ome.zarr"
        while not toy.run_and_kill(path, random.uniform(0, 0.3), **options):
            killed += 1
        assert toy.complete(path)
        assert np.array_equal(toy.voxels(path), toy_voxels)
        assert sorted(entry.name for entry in path.iterdir()) == [
            "0",
            "preview.png",
            "teramind-report.json",
            "zarr.json",
        ]
        outputs += 1
    assert outputs > 0
