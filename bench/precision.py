"""Error of bfloat16 and float16 against float32 at the published size, transcript counts up to 100.

Usage: ``python bench/precision.py [--threads N]``, some minutes on a CPU. Weights and activations are in the half type,
as ``generate --dtype`` runs them: one patch (2 x 2 encoder patches) of a random network. Slices are folded, as on a
GPU, and for bfloat16 in pairs too, as on a CPU. Errors of the predicted noise are in units of its standard deviation.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from unittest import mock

import torch
from model_cpu import network
from torch import Tensor

from teramind.model.config import BIN_SIZE
from teramind.model.network import TeraMind
from teramind.model.policy import POLICIES

VARIANTS = (("bfloat16", "folded"), ("bfloat16", "paired"), ("float16", "folded"))
TIMESTEPS = (938, 603, 67)
EXPONENTS = {5: 3, 100: 8}  # of a uniform variable that make counts up to so many, 45 % of them above zero


def region(net: TeraMind, most: int) -> tuple[Tensor, Tensor]:
    """A noisy image and counts."""
    config, generator = net.config, torch.Generator().manual_seed(1)
    side = 2 * config.patch_size
    x = torch.randn(1, config.stains, config.slices, side, side, generator=generator)
    bins = side // BIN_SIZE
    uniform = torch.rand(1, config.genes, config.gene_slices, bins, bins, generator=generator)
    return x, ((most + 1) * uniform ** EXPONENTS[most]).floor()


def predict(net: TeraMind, form: str, most: int, t: int) -> Tensor:
    policy = replace(POLICIES["cpu"], pairs_slices=form == "paired")
    x, counts = region(net, most)
    with mock.patch.dict(POLICIES, cpu=policy), torch.no_grad():
        return net(x, torch.tensor([t]), counts).float()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    exact = network(torch.float32)
    cases = [(most, t) for most in EXPONENTS for t in TIMESTEPS]
    expected = {case: predict(exact, "folded", *case) for case in cases}
    print(f"torch {torch.__version__}, published size, {exact.config.patch_size} x {exact.config.patch_size} px")
    print(f"{'':10} {'slices':7} {'counts to':>9} {'t':>4} {'RMS':>8} {'99.9 %':>8} {'largest':>8}")
    for dtype, form in VARIANTS:
        net = copy.deepcopy(exact).to(getattr(torch, dtype))
        for most, t in cases:
            error = (predict(net, form, most, t) - expected[most, t]).abs() / expected[most, t].std()
            rms, most_of = error.square().mean().sqrt(), error.flatten().quantile(0.999)
            print(f"{dtype:10} {form:7} {most:9} {t:4} {rms:8.1e} {most_of:8.1e} {error.max():8.1e}", flush=True)


if __name__ == "__main__":
    main()
