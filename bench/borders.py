"""Where seams come from: a network's error on the outermost pixels of decoder patches and further in.

    python bench/borders.py ATLAS [CHECKPOINT]

At each timestep, of squares of the atlas at known noise: the error of the image that the prediction implies, in its
standard deviations' unit (-1..1), ring by ring from the patch's border; and the share of the noise that the prediction
holds there (1 where all of it is found).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from teramind import Atlas, load_checkpoint
from teramind.demo import CHECKPOINT
from teramind.diffusion.schedule import alphas_cumprod

TIMESTEPS = (20, 67, 133, 300, 500)
PATCHES, SQUARES = 5, 3
RINGS = {"outermost": 0, "second": 1, "third": 2, "ninth": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    arguments = parser.parse_args()
    net, _ = load_checkpoint(arguments.checkpoint)
    image, genes = squares(Atlas.open(arguments.atlas), net.config)
    size = net.config.patch_size
    along = torch.minimum(torch.arange(size), torch.arange(size - 1, -1, -1))
    ring = torch.minimum(along[:, None], along).repeat(PATCHES - 1, PATCHES - 1)
    print(f"{'t':>4} {'ring':<10} {'error':>7} {'noise found':>12}")
    for t in TIMESTEPS:
        error, noise, found = predicted(net, image, genes, t)
        for name, number in RINGS.items():
            here = ring == number
            share = (found[..., here] * noise[..., here]).mean() / (noise[..., here] ** 2).mean()
            print(f"{t:>4} {name:<10} {error[..., here].square().mean().sqrt():7.4f} {share:12.3f}")


def squares(atlas: Atlas, config) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S, Z, h, w) pixels scaled to -1..1 and (B, G, Zg, h/16, w/16) counts of squares along the diagonal."""
    side = PATCHES * config.patch_size
    _, height, width = atlas.shape
    starts = [(np.array([height, width]) - side) * step // SQUARES // 16 * 16 for step in range(1, SQUARES + 1)]
    margin = (config.gene_slices - config.slices) // 2
    images, genes = [], []
    for y, x in starts:
        images.append(atlas.image_window(margin, margin + config.slices, y, y + side, x, x + side))
        genes.append(atlas.gene_window(0, config.gene_slices, y, y + side, x, x + side))
    pixels = torch.from_numpy(np.stack(images)).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(genes).astype(np.float32))


@torch.no_grad()
def predicted(net, image: torch.Tensor, genes: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Error of the implied image, true and predicted noise, without the margin of half a patch."""
    abar = float(alphas_cumprod()[t])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(t))
    found = net(abar**0.5 * image + (1 - abar) ** 0.5 * noise, torch.full((len(image),), t), genes)
    margin = net.config.patch_size // 2
    noise = noise[..., margin:-margin, margin:-margin]
    return (found - noise) * ((1 - abar) / abar) ** 0.5, noise, found


if __name__ == "__main__":
    main()
