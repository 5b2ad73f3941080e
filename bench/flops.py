"""Operations of one step: GFLOP per 256-px tile and z-window, counted by torch over the real network.

Usage: ``python bench/flops.py``. The network runs at its published size (two stains, four gene slices) on the meta
device, which computes nothing, along a GPU's path of inference; a multiply and an add count as two. The baseline is
``plain_baseline``, whose tiles are 256 px whatever the region.
"""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch
from plain_baseline import TILE, PlainNetwork
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teramind.model.config import BIN_SIZE, ModelConfig
from teramind.model.network import TeraMind
from teramind.model.policy import POLICIES

TILES = (256, 512, 1024, 2048)


def region(config: ModelConfig, tile: int, device: str = "meta") -> tuple[Tensor, Tensor, Tensor]:
    """Image, timestep and genes of one tile with its halo, uninitialised."""
    side = tile + config.patch_size
    x = torch.empty(1, config.stains, config.slices, side, side, device=device)
    genes = torch.empty(1, config.genes, config.gene_slices, side // BIN_SIZE, side // BIN_SIZE, device=device)
    return x, torch.zeros(1, dtype=torch.long, device=device), genes


@torch.no_grad()
def count(net: TeraMind, tile: int, *, paired: bool = False) -> float:
    """GFLOP of one step per 256-px tile, at tiles of ``tile`` px; slices ``paired``, as on a CPU, or folded."""
    policies = {"meta": replace(POLICIES["cuda"], pairs_slices=paired)}
    with FlopCounterMode(display=False) as counter, mock.patch.dict(POLICIES, policies):
        net(*region(net.config, tile))
    return counter.get_total_flops() / 1e9 / (tile / TILE) ** 2


@torch.no_grad()
def count_baseline(net: TeraMind) -> float:
    """GFLOP of one step of the baseline per 256-px tile."""
    with FlopCounterMode(display=False) as counter:
        PlainNetwork(net.config, net.state_dict()).predict(*region(net.config, TILE))
    return counter.get_total_flops() / 1e9


def main() -> None:
    with torch.device("meta"):
        net = TeraMind(ModelConfig()).eval()
    baseline = count_baseline(net)
    print(f"{'tile px':>8} {'folded':>8} {'of baseline':>12} {'in pairs':>9} {'of baseline':>12}")
    print(f"{'baseline':>8} {baseline:8,.0f} {1:12.3f}")
    for tile in TILES:
        folded, paired = count(net, tile), count(net, tile, paired=True)
        print(
            f"{tile:>8} {folded:8,.0f} {folded / baseline:12.3f} {paired:9,.0f} {paired / baseline:12.3f}", flush=True
        )


if __name__ == "__main__":
    main()
