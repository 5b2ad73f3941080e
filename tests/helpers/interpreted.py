"""What runs in the process whose Triton interprets kernels: the network and the engine, on CPU tensors as on a GPU."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import zarr

from parity_data import Fixture
from teramind import generate
from teramind.kernels import launch
from teramind.model.policy import POLICIES

LARGER = 256  # blocks, of which the interpreter has that many fewer to go through


@contextmanager
def like_a_gpu():
    """Let the CPU go a GPU's way: its choices, its convolutions, and kernels, whose names are collected."""
    launched, start = set(), launch.start

    def note(kernel, grid, plan, **arguments):
        launched.add(kernel.fn.__name__.strip("_"))
        start(kernel, grid, plan, **arguments)

    tables = {
        operation: {column: replace(plan, elements=LARGER * plan.elements) for column, plan in columns.items()}
        for operation, columns in launch.TABLE.items()
    }
    with (
        mock.patch.dict(POLICIES, cpu=POLICIES["cuda"]),
        mock.patch.dict(launch.TABLE, tables),
        mock.patch.object(launch, "start", note),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        yield launched


def predict(name, t, rows, columns, patch_batch=None):
    """The prediction from the first encoder patches of a parity fixture, and the names of the kernels that made it."""
    torch.set_num_threads(1)
    fixture = Fixture(name)
    net = fixture.network()
    if patch_batch:
        net.limit_patch_batch(patch_batch)
    size, bins = net.config.patch_size, net.config.patch_bins
    x, genes = (
        fixture["x"][..., : rows * size, : columns * size],
        fixture["genes"][..., : rows * bins, : columns * bins],
    )
    with like_a_gpu() as launched, torch.no_grad():
        return net(x, torch.tensor([t]), genes), launched


def gene_attention(name):
    """The attention matrices for a parity fixture, and the names of the kernels that made them."""
    fixture = Fixture(name)
    with like_a_gpu() as launched, torch.no_grad():
        return fixture.network().gene_attention(fixture["genes"]), launched


def generated(atlas: Path, checkpoint: Path, output: Path, **options):
    """Level 0 of a generated image, and the names of the kernels that made it."""
    torch.set_num_threads(1)
    with like_a_gpu() as launched:
        generate(atlas, checkpoint, output, **options)
    return np.asarray(zarr.open_group(output, mode="r")["0"]), launched
