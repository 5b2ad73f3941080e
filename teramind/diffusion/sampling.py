"""Sampling one z-window that fits in memory; the streaming engine is for what does not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from teramind.diffusion.schedule import DDIMSchedule
from teramind.errors import InputError
from teramind.model.config import BIN_SIZE
from teramind.model.network import TeraMind

OUTSIDE = -1.0  # the image beyond the region, at every step


@torch.no_grad()
def sample(
    net: TeraMind,
    genes: Tensor | NDArray[np.generic],
    *,
    noise: Tensor | NDArray[np.float32],
    steps: int = 15,
    tile: int = 256,
) -> Tensor:
    """Generate a region from its transcripts by DDIM, float32 in and between the steps.

    Args:
        net: the network; runs on its device in its type.
        genes: (G, Zg, (H+P)/16, (W+P)/16) counts, with the context of half a patch on each side.
        noise: (S, Z, H, W) standard normals, the state before the first step. H and W are multiples of P.
        steps: DDIM steps.
        tile: px that go through the network at once; does not influence the result.

    Returns:
        (S, Z, H, W) float32 in -1..1, on the network's device.
    """
    size = net.config.patch_size
    if tile < size or tile % size:
        raise InputError(f"the tile is {tile} px; it has to be a multiple of the patch size {size}")
    schedule = DDIMSchedule(steps)
    device = next(net.parameters()).device
    counts = torch.as_tensor(np.asarray(genes) if isinstance(genes, np.ndarray) else genes).to(device, torch.float32)
    state = torch.as_tensor(noise).to(device, torch.float32)
    for i, timestep in enumerate(schedule.timesteps):
        padded = F.pad(state, (size // 2,) * 4, value=OUTSIDE)
        t = torch.tensor([timestep], device=device)
        updated = torch.empty_like(state)
        for y, x, height, width in tiles(state.shape[2], state.shape[3], tile):
            region = padded[None, :, :, y : y + height + size, x : x + width + size]
            bins = counts[
                None,
                :,
                :,
                y // BIN_SIZE : (y + height + size) // BIN_SIZE,
                x // BIN_SIZE : (x + width + size) // BIN_SIZE,
            ]
            eps = net(region, t, bins)[0].float()
            before = state[:, :, y : y + height, x : x + width]
            updated[:, :, y : y + height, x : x + width] = schedule.step(before, eps, i)
        state = updated
    return state


def tiles(height: int, width: int, tile: int) -> Iterator[tuple[int, int, int, int]]:
    """(y, x, height, width) of the tiles of a plane, row-major; those at the far edges may be smaller."""
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            yield y, x, min(tile, height - y), min(tile, width - x)
