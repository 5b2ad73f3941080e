"""How much of an image can be read from the gene levels of a network that was not trained, by how it starts.

    python bench/gene_probe.py ATLAS.zarr

A linear regression from the finest gene level (and its positive part) at a pixel to the pixel, fitted on two thirds of
some windows; its correlation with the pixels of the others. What a start mixes up here, training has to sort out first.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from teramind import Atlas, ModelConfig, TeraMind
from teramind.train import initialize

SIDE, WINDOWS, EVERY = 128, 24, 2
KEY_LENGTHS = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0)


@torch.no_grad()
def probe(atlas, patch_size, start):
    torch.manual_seed(0)
    net = TeraMind(ModelConfig(patch_size=patch_size, genes=len(atlas.genes), stains=len(atlas.stains)))
    start(net)
    levels, pixels = zip(*windows(atlas, net, np.random.default_rng(0)), strict=True)
    x, y = np.concatenate(levels, axis=1), np.concatenate(pixels, axis=1)
    x = np.concatenate([x, np.maximum(x, 0), np.ones((1, x.shape[1]))])
    fitted = x.shape[1] * 2 // 3
    weights = np.linalg.solve(x[:, :fitted] @ x[:, :fitted].T + np.eye(len(x)), x[:, :fitted] @ y[:, :fitted].T)
    return [np.corrcoef(*pair)[0, 1] for pair in zip(weights.T @ x[:, fitted:], y[:, fitted:], strict=True)]


def windows(atlas, net, random):
    slices, height, width = atlas.shape
    patches = SIDE // net.config.patch_size
    for _ in range(WINDOWS):
        y, x = (int(random.integers(0, (size - SIDE) // 16)) * 16 for size in (height, width))
        z = net.config.slices * int(random.integers(0, slices // net.config.slices))
        box = (y, y + SIDE, x, x + SIDE)
        genes = torch.from_numpy(atlas.gene_window(z - 1, z + 3, *box).astype(np.float32))[None]
        level = net.gene_pyramid(genes)[3].unflatten(0, (patches, patches))  # (n, n, C, Z, P, P)
        level = level.permute(2, 3, 0, 4, 1, 5).reshape(level.shape[2], -1, SIDE, SIDE)
        image = atlas.image_window(z, z + net.config.slices, *box) / 127.5 - 1
        yield [values[..., ::EVERY, ::EVERY].reshape(len(values), -1) for values in (level.numpy(), image)]


def with_keys(length):
    def start(net):
        initialize.KEY_LENGTH = length
        initialize.listen_to_genes(net)

    return start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("atlas", type=Path)
    atlas = Atlas.open(parser.parse_args().atlas)
    starts = {"fresh": lambda _: None} | {f"fast, keys {length}": with_keys(length) for length in KEY_LENGTHS}
    print("patch  start            " + "  ".join(f"{stain:>8}" for stain in atlas.stains))
    for patch_size in (32, 64):
        for name, start in starts.items():
            found = probe(atlas, patch_size, start)
            print(f"{patch_size:5}  {name:16} " + "  ".join(f"{value:8.3f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
