"""The engine on a GPU, where there is one."""

import numpy as np
import pytest
import torch
import zarr

from teramind import generate
from teramind.engine.transfer import Transfers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def level0(path):
    return np.asarray(zarr.open_group(path, mode="r")["0"])


def test_float32_on_a_gpu_is_that_of_the_cpu(tmp_path, atlas_path, checkpoint_path):
    images = {}
    for device in ("cpu", "cuda"):
        report = generate(
            atlas_path, checkpoint_path, tmp_path / f"{device}.ome.zarr", steps=4, tile=64, device=device,
            dtype="float32",
        )  # fmt: skip
        images[device] = level0(tmp_path / f"{device}.ome.zarr").astype(int)
    assert np.abs(images["cpu"] - images["cuda"]).max() <= 1
    assert report.peak_device_bytes["cuda:0"] > 0


def test_runs_on_a_gpu_repeat_bit_for_bit(tmp_path, atlas_path, checkpoint_path):
    for name in ("a", "b"):
        generate(atlas_path, checkpoint_path, tmp_path / name, steps=4, tile=64, device="cuda", memory="60M")
    assert np.array_equal(level0(tmp_path / "a"), level0(tmp_path / "b"))


def test_every_gpu_makes_the_same(tmp_path, atlas_path, checkpoint_path):
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    for name, device in (("one", devices[-1]), ("all", ",".join(devices))):
        generate(atlas_path, checkpoint_path, tmp_path / name, steps=4, tile=64, device=device)
    assert np.array_equal(level0(tmp_path / "one"), level0(tmp_path / "all"))


def test_transfers_bring_back_what_was_sent():
    transfers = Transfers(torch.device("cuda", 0))
    arrays = [np.random.default_rng(number).standard_normal((3, 511, 513)).astype(np.float16) for number in range(20)]
    staged = [transfers.send(array) for array in arrays]
    for array, sent in zip(arrays, staged, strict=True):
        (tensor,) = transfers.arrived(sent)
        back = transfers.fetch(transfers.computed(tensor * 2))
        assert np.array_equal(back, array * 2)
