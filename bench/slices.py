"""Three forms of a 3x3x3 convolution over 2, 4 or 8 slices: conv3d, slices folded into channels, slices in pairs.

    python bench/slices.py [--device cuda] [--dtype bfloat16] [--threads 2]

Times are the best of several, forms alternating in one run; each is shown as a ratio to conv3d, more is faster. The
multiplications are counted in units of one 2D convolution of one slice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from teramind.model.layers import Conv, convolve_folded, convolve_slices

SHAPES = ((64, 64, 64), (128, 128, 32), (256, 256, 16))  # inputs, outputs, px on a side, as at the published size
SLICES = (2, 4, 8)
PATCHES = {"cpu": 3, "cuda": 64}
FORMS: dict[str, Callable[[Conv, Tensor], Tensor]] = {
    "conv3d": lambda layer, x: convolve_slices(x, layer),
    "folded": lambda layer, x: convolve_folded(x, layer),
    "in pairs": lambda layer, x: layer._convolve_pairs(x, None),
}
MULTIPLICATIONS: dict[str, Callable[[int], int]] = {
    "conv3d": lambda z: 3 * z,  # taps beyond the window multiply zeros
    "folded": lambda z: z * z,
    "in pairs": lambda z: 3 * z // 2 + 2 * (z // 2 - 1),
}


@torch.no_grad()
def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    counts = {z: {form: count(z) for form, count in MULTIPLICATIONS.items()} for z in SLICES}
    print(f"{'slices':>6} {'channels':>10} {'px':>4}" + "".join(f"{form:>24}" for form in FORMS))
    for slices in SLICES:
        for inputs, outputs, side in SHAPES:
            layer = Conv(inputs, outputs, 3, 3).to(device, dtype).eval()
            x = torch.randn(PATCHES[device.type], side, side, slices, inputs, device=device).to(dtype)
            seconds = best(layer, x, arguments.repeats)
            cells = [
                f"{1e3 * seconds[form]:9.1f} ms x{seconds['conv3d'] / seconds[form]:4.2f} ({counts[slices][form]:>2})"
                for form in FORMS
            ]
            print(f"{slices:>6} {inputs:>4} -> {outputs:>3} {side:>4}" + "".join(f"{cell:>24}" for cell in cells))


def best(layer: Conv, x: Tensor, repeats: int) -> dict[str, float]:
    """Least seconds of each form, which all give the same."""
    expected = FORMS["conv3d"](layer, x).float()
    for form, run in FORMS.items():
        error = (run(layer, x).float() - expected).norm() / expected.norm()
        if not error < (1e-5 if x.dtype == torch.float32 else 2e-2):
            raise SystemExit(f"{form} is off by {error:.1e}")
    seconds = dict.fromkeys(FORMS, float("inf"))
    for _ in range(repeats):
        for form, run in FORMS.items():
            synchronize(x)
            start = time.perf_counter()
            run(layer, x)
            synchronize(x)
            seconds[form] = min(seconds[form], time.perf_counter() - start)
    return seconds


def synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
