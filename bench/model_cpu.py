"""One step of a 512-px region at the published size on a CPU: seconds, peak memory and error against the baseline.

Usage: ``python bench/model_cpu.py [--threads N] [--repeats N]``. The baseline is ``plain_baseline`` in float32, run
once; the network runs in float32 and bfloat16. Each runs in a process of its own, the network after a small region for
which it lays out its weights (its memory includes them). On a machine that is busy with other work, compare processor
seconds at one thread: threads that wait for each other make wall-clock times meaningless there. No speed-up is printed
for a result that is wrong.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from plain_baseline import PlainNetwork
from torch import Tensor

from teramind.model.config import BIN_SIZE, ModelConfig
from teramind.model.network import TeraMind

SIDE = 512  # px
# Largest deviation from the baseline in units of its standard deviation that counts as the same result.
ERRORS = {"float32": 1e-4, "bfloat16": 0.25}


def network(dtype: torch.dtype) -> TeraMind:
    """The published size with random weights that keep activations at their scale."""
    with torch.device("meta"):
        net = TeraMind(ModelConfig())
    net.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            values = torch.randn(weight.shape, generator=generator)
            is_norm = weight.numel() == max(weight.shape) and weight.ndim in (1, 4)
            weight.copy_(1 + 0.1 * values if is_norm else values / weight[0].numel() ** 0.5)
    return net.eval()


def region(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random image with its halo, a timestep and counts."""
    config = ModelConfig()
    side += config.patch_size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.stains, config.slices, side, side, generator=generator)
    rate = torch.full((1, config.genes, config.gene_slices, side // BIN_SIZE, side // BIN_SIZE), 0.7)
    return x, torch.tensor([603]), torch.poisson(rate, generator=generator)


@torch.no_grad()
def measure(what: str, dtype: str, file: Path, repeats: int) -> None:
    """Run one variant; times and memory go to stdout as JSON, the result to a file."""
    net = network(getattr(torch, dtype))
    run = net if what == "teramind" else PlainNetwork(net.config, net.state_dict()).step
    if what == "teramind":
        net.give_up_weights()  # as the engine does
        run(*region(64))
    inputs = region(SIDE)
    wall, processor = [], []
    for _ in range(repeats if what == "teramind" else 1):
        begin = time.perf_counter(), time.process_time()
        eps = run(*inputs)
        wall.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    torch.save(eps.float(), file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"wall": wall, "processor": processor, "peak_gb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="of the network; the baseline runs once")
    parser.add_argument("--variant", nargs=3, metavar=("WHAT", "DTYPE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        what, dtype, file = arguments.variant
        measure(what, dtype, Path(file), arguments.repeats)
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, {SIDE} px, one step, published size")
    print(
        f"{'':20} {'best s':>8} {'median s':>9} {'ratio':>6} "
        f"{'best processor s':>17} {'ratio':>6} {'peak GB':>8} {'error':>9}"
    )
    baseline: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for what, dtype in (("baseline", "float32"), ("teramind", "float32"), ("teramind", "bfloat16")):
            file = Path(folder) / f"{what}-{dtype}.pt"
            command = [sys.executable, __file__, "--threads", str(arguments.threads)]
            command += ["--repeats", str(arguments.repeats)]
            done = subprocess.run([*command, "--variant", what, dtype, file], check=True, stdout=subprocess.PIPE)
            result = json.loads(done.stdout.splitlines()[-1])
            wall, processor = min(result["wall"]), min(result["processor"])
            eps = torch.load(file)
            if what == "baseline":
                baseline, expected = {"wall": wall, "processor": processor}, eps
            error = ((eps - expected).abs().max() / expected.std()).item()
            right = error <= ERRORS[dtype]
            ratios = [
                f"{baseline[key] / best:.1f}" if right else "wrong"
                for key, best in (("wall", wall), ("processor", processor))
            ]
            print(
                f"{what + ' ' + dtype:20} {wall:8.2f} {statistics.median(result['wall']):9.2f} {ratios[0]:>6} "
                f"{processor:17.2f} {ratios[1]:>6} {result['peak_gb']:8.2f} {error:9.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
