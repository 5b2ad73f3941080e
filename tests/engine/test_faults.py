"""Faults: no room on a disk, values that are not numbers, no device memory, a device that is gone."""

import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import zarr

from teramind import InputError, generate
from teramind.engine.session import carry_out
from teramind.engine.snapshot import FOLDER, read_snapshot
from teramind.engine.transfer import Transfers
from teramind.errors import ComputationError
from teramind.model.network import TeraMind

OPTIONS = {"steps": 4, "tile": 64, "roi": "0:128,0:128", "slices": "0:2", "border": "constant"}


def level0(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB, and a function that fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk takes more rights than this process has")

    def fill():
        with (folder / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    try:
        yield folder, fill
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("full", "unit", "options", "named"),
    [
        ("output", 150, {}, r"bytes needed, .* free\).*/0/c/0/\d"),
        ("snapshot", 20, {}, r"bytes needed, .* free\).*snapshot-\d+\.zip"),
        ("scratch", 10, {"memory": 107_000}, r"bytes needed, .* free\).*scratch file"),
    ],
)
def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(
    tmp_path, toy, toy_voxels, small_disk, full, unit, options, named
):
    folder, fill = small_disk
    elsewhere = tmp_path / "image.ome.zarr"
    path = folder / "image.ome.zarr" if full != "scratch" else elsewhere
    scratch = folder / "scratch" if full == "scratch" else tmp_path / "scratch"

    def hook(number):
        if number == unit:
            fill()
            if full == "snapshot":  # it is taken at this signal
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)  # until it is seen: the units after this one would fill the disk with output

    setup = partial(toy.setup, path, seconds=0.001, scratch=scratch, **options)

    with pytest.raises(OSError, match="No space left on device") as error:
        carry_out(setup(hook=hook), path, resume=False, overwrite=False)
    assert str(error.value).count("\n") == 0
    assert re.search(named, str(error.value)), str(error.value)
    assert not toy.complete(path)
    assert read_snapshot(path).identity == setup().identity  # what was finished stays valid
    assert not [entry for entry in path.rglob("*") if entry.name.endswith(".partial")]
    (folder / "ballast").unlink()
    carry_out(setup(), path, resume=True, overwrite=False)
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_too_little_room_is_said_before_anything_is_written(toy, small_disk):
    folder, _ = small_disk
    (folder / "ballast").write_bytes(bytes(8_200_000))
    with pytest.raises(InputError, match=r"two snapshots and the scratch file of this run take up to .* make room for"):
        carry_out(toy.setup(folder / "image.ome.zarr"), folder / "image.ome.zarr", resume=False, overwrite=False)
    assert [entry.name for entry in folder.iterdir()] == ["ballast"]


# ---- device ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory, atlas_path, checkpoint_path):
    path = tmp_path_factory.mktemp("whole") / "image.ome.zarr"
    generate(atlas_path, checkpoint_path, path, **OPTIONS)
    return level0(path)


def spoil(monkeypatch, fault, calls=9):
    """Let the network's call number ``calls`` go wrong."""
    forward, left = TeraMind.forward, iter(range(calls))

    def spoilt(self, *arguments):
        if next(left, None) is None:
            return fault(forward(self, *arguments))
        return forward(self, *arguments)

    monkeypatch.setattr(TeraMind, "forward", spoilt)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_named_and_not_written(
    tmp_path, monkeypatch, atlas_path, checkpoint_path, whole, value
):
    def fault(eps):
        eps[0, 1, 0, 5, 7] = value
        return eps

    path = tmp_path / "image.ome.zarr"
    with monkeypatch.context() as patch:
        spoil(patch, fault)
        with pytest.raises(ComputationError, match=r"not finite at step \d .* in window 0, tile \(\d, \d\)") as error:
            generate(atlas_path, checkpoint_path, path, **OPTIONS)
    assert str(error.value).count("\n") == 0
    assert read_snapshot(path).completed.sum() == 9  # all before it
    generate(atlas_path, checkpoint_path, path, resume=True, **OPTIONS)
    assert np.array_equal(level0(path), whole)


def test_a_lost_device_ends_in_a_snapshot_and_a_message(tmp_path, monkeypatch, atlas_path, checkpoint_path, whole):
    def fault(_eps):
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")

    path = tmp_path / "image.ome.zarr"
    with monkeypatch.context() as patch:
        spoil(patch, fault)
        with pytest.raises(
            ComputationError, match=r"cpu failed at step .* \(CUDA error: .* failure\); see to"
        ) as error:
            generate(atlas_path, checkpoint_path, path, **OPTIONS)
    assert str(error.value).count("\n") == 0
    assert read_snapshot(path).completed.sum() == 9
    report = generate(atlas_path, checkpoint_path, path, resume=True, **OPTIONS)
    assert np.array_equal(level0(path), whole)
    assert report.sessions == 2


@pytest.mark.parametrize("way", ["send", "fetch"])
def test_a_device_lost_on_the_way_there_or_back(tmp_path, monkeypatch, atlas_path, checkpoint_path, whole, way):
    """Nothing has been stored of that unit, so a snapshot can be taken here too."""
    right, left = getattr(Transfers, way), iter(range(9))

    def failing(self, *arguments):
        if next(left, None) is None:
            raise RuntimeError("CUDA error: the launch timed out")
        return right(self, *arguments)

    path = tmp_path / "image.ome.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(Transfers, way, failing)
        with pytest.raises(
            ComputationError, match=r"cpu failed while a tile was .* \(CUDA error: the launch timed out\)"
        ):
            generate(atlas_path, checkpoint_path, path, **OPTIONS)
    assert 0 < read_snapshot(path).completed.sum() <= 9
    generate(atlas_path, checkpoint_path, path, resume=True, **OPTIONS)
    assert np.array_equal(level0(path), whole)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path, monkeypatch, atlas_path, checkpoint_path, whole, caplog):
    forward = TeraMind.forward
    batches = []

    def short(self, *arguments):
        batches.append(self.patch_batch(torch.device("cpu")))
        if batches[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return forward(self, *arguments)

    monkeypatch.setattr(TeraMind, "forward", short)
    path = tmp_path / "image.ome.zarr"
    generate(atlas_path, checkpoint_path, path, **OPTIONS)
    assert batches[0] > 1
    halved = list(dict.fromkeys(batches))
    assert halved == [batches[0] >> shift for shift in range(len(halved))]
    assert "cpu is out of memory: going on with 1 patches at a time" in caplog.text
    assert np.abs(level0(path).astype(int) - whole).max() <= 1  # other batches may round the last bit differently


def test_no_memory_for_one_patch(tmp_path, monkeypatch, atlas_path, checkpoint_path):
    def fault(_eps):
        raise torch.OutOfMemoryError("CUDA out of memory")

    spoil(monkeypatch, fault)
    with pytest.raises(ComputationError, match="cpu has not enough free memory for one patch"):
        generate(atlas_path, checkpoint_path, tmp_path / "image.ome.zarr", **OPTIONS)
    assert read_snapshot(tmp_path / "image.ome.zarr").completed.sum() == 9


def test_a_failure_with_several_workers_loses_nothing(tmp_path, toy, toy_voxels):
    """What the others had claimed is given back."""
    path = tmp_path / "image.ome.zarr"

    def hook(number):
        if number == 77:
            raise ComputationError("gone")

    with pytest.raises(ComputationError, match="gone"):
        carry_out(toy.setup(path, workers=3, seconds=0.001, hook=hook), path, resume=False, overwrite=False)
    assert len([*(path / FOLDER).glob("*.zip")]) == 2
    carry_out(toy.setup(path, workers=2), path, resume=True, overwrite=False)
    assert np.array_equal(toy.voxels(path), toy_voxels)


def test_a_failure_of_the_reader_is_raised_too(tmp_path, toy, toy_voxels):
    path = tmp_path / "image.ome.zarr"
    setup = toy.setup(path)
    genes = setup.genes

    class Failing(genes):
        left = 40

        def read(self, unit):
            type(self).left -= 1
            if not self.left:
                raise OSError(5, os.strerror(5), "atlas.zarr/counts")
            return super().read(unit)

    with pytest.raises(OSError, match=r"atlas\.zarr/counts"):
        carry_out(replace(setup, genes=Failing), path, resume=False, overwrite=False)
    carry_out(toy.setup(path), path, resume=True, overwrite=False)
    assert np.array_equal(toy.voxels(path), toy_voxels)
