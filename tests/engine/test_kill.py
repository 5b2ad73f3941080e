"""SIGKILL at any moment: the real scheduler, store, snapshots and writer around a toy in the network's place."""

import hashlib
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from teramind import generate
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
            state = toy.denoiser()((padded, hashed), step, [""])
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


def checksums(path):
    """Of every shard of every level."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "c" in file.relative_to(path).parts
    }


@pytest.fixture
def busy():
    """A process a CPU that does nothing but hinder others."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_real_run_killed_twenty_times_under_load(tmp_path, write_atlas, checkpoint_path):
    """The command itself; its shards are those of an uninterrupted run, byte for byte."""
    random.seed(0)
    atlas = write_atlas(tmp_path / "atlas.zarr", height=300, width=460)
    path, whole = tmp_path / "image.ome.zarr", tmp_path / "whole.ome.zarr"
    words = ["--checkpoint", checkpoint_path, "--steps", "8", "--tile", "64", "--snapshot-minutes", "0.005"]
    command = [sys.executable, "-m", "teramind.generate", atlas, path, *words, "--resume"]
    kills = 0
    while True:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while process.poll() is None and not path.with_name(f".{path.name}.lock").exists():
            time.sleep(0.01)
        if kills < 20:
            try:
                process.wait(random.uniform(0, 2))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
        if process.wait() == 0:
            break
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)  # the next one's tells that it has begun
    assert kills >= 10, "the run was too short"
    generate(atlas, checkpoint_path, whole, steps=8, tile=64)
    assert checksums(path) == checksums(whole)
    assert len(checksums(whole)) == 6
