"""Arrays computed with the authors' code (tests/data/README.md), for tests and for what is measured on a GPU."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from teramind.model.config import ModelConfig
from teramind.model.network import TeraMind

DATA = Path(__file__).parents[1] / "data"


class Fixture:
    """The arrays of one file, and a network filled with the weights that they were computed with."""

    def __init__(self, name):
        with np.load(DATA / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files if key != "config"}
            self.description = json.loads(bytes(arrays["config"]))
        names = ("patch_size", "genes", "gene_slices", "stains", "base_channels", "embed_channels")
        self.config = ModelConfig(**{key: self.description[key] for key in names})

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[key])

    def state_dict(self):
        return {
            name: torch.from_numpy(fixture_weight(name, shape, self.description["weight_seed"]))
            for name, shape in self.description["state_dict"]
        }

    def network(self):
        net = TeraMind(self.config)
        net.load_upstream_state_dict(self.state_dict())
        return net.eval()


def fixture_weight(name, shape, seed):
    z = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), seed])).standard_normal(
        shape, dtype=np.float32
    )
    if len(shape) == 1 and name.endswith("bias"):
        return 0.02 * z
    if len(shape) == 1 or (len(shape) == 4 and shape[0] == 1):
        return 1 + 0.1 * z
    return z / np.float32(np.sqrt(np.prod(shape[1:])))


def relative_error(actual, expected):
    """Largest deviation in units of the expected array's standard deviation."""
    return ((actual - expected).abs().max() / expected.std()).item()
