"""Crops a second: what training takes of a small network, and what loading them takes.

    OMP_NUM_THREADS=1 python bench/train.py [--shipped]

One thread, in seconds of its CPU time, best of several: other load on the machine counts little. The network has 8
channels (x1, x2, x4, x4), one residual block, 60 genes, one slice; a step is 8 crops, backward pass, clipping and AdamW
included. A crop is its region of 2 x 2 encoder patches.

With --shipped, instead: a step of the network that comes with the package, as bench/train_phantom.py trains it, in
float32, in bfloat16, and compiled; compiling takes minutes before.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from train_phantom import MODEL, TRAINING

from teramind import Atlas, ModelConfig, TeraMind
from teramind.atlas.phantom import Phantom
from teramind.atlas.writer import AtlasWriter
from teramind.engine.panel import match_genes
from teramind.train.crops import Crops, Stream, areas_of
from teramind.train.initialize import start_fast
from teramind.train.loading import share
from teramind.train.objective import Objective, loss_weights
from teramind.train.optimizer import make_optimizer
from teramind.train.volumes import MemoryVolume, StoredVolume

GENES, STAINS, BATCH, SIDE = 60, ("DAPI", "PolyT"), 8, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=(32, 64))
    parser.add_argument("--shipped", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.shipped:
        measure_shipped(arguments.repeats)
        return
    print(f"{'P':>4} {'what':<34} {'crops/s':>9} {'of the step':>12}")
    with tempfile.TemporaryDirectory() as folder:
        atlas = write_atlas(Path(folder) / "atlas.zarr")
        for patch_size in arguments.patch_sizes:
            config = ModelConfig(
                patch_size=patch_size, genes=GENES, gene_slices=1, base_channels=8, channel_mult=(1, 2, 4, 4),
                res_blocks=1, embed_channels=64, dropout=0.0,
            )  # fmt: skip
            measure(atlas, config, arguments.repeats)


def measure(atlas: Atlas, config: ModelConfig, repeats: int) -> None:
    panel = match_genes(atlas.genes, GENES, atlas.genes)
    step_seconds = {}
    for paths in ("both", "boundary"):
        area, _ = areas_of(MemoryVolume(atlas, panel), atlas.shape, config)
        make = share(Crops([area], config, 0, Stream.TRAINING), BATCH, 1, 0, 1)
        step_seconds[paths] = best(stepper(config, paths, make), repeats)
        print_row(config, f"step, {paths} path{'s' if paths == 'both' else ''}", step_seconds[paths], None)
    for name, kind in (("from memory", MemoryVolume), ("from the store", StoredVolume)):
        area, _ = areas_of(kind(atlas, panel), atlas.shape, config)
        load = share(Crops([area], config, 0, Stream.TRAINING), BATCH, 1, 0, 1)
        numbers = iter(range(10**6))
        print_row(config, f"loading, {name}", best(lambda: load(next(numbers)), 4 * repeats), step_seconds["boundary"])  # noqa: B023


def measure_shipped(repeats: int) -> None:
    """Forms of a step of the shipped network."""
    batch, side = TRAINING["batch"], TRAINING["region"] * MODEL["patch_size"]
    config = ModelConfig(genes=len(Phantom().genes), stains=len(STAINS), **MODEL)
    generator = np.random.default_rng(0)
    crops = (
        generator.integers(0, 256, (batch, config.stains, config.slices, side, side), np.uint8),
        np.ones((batch, 1, 1, side, side), np.bool_),
        generator.poisson(0.3, (batch, config.genes, config.gene_slices, side // 16, side // 16)).astype(np.uint16),
        np.linspace(0, 999, batch, dtype=np.int64),
        generator.standard_normal((batch, config.stains, config.slices, side, side), np.float32),
    )
    first = None
    for name, dtype, compiled in (
        ("float32", None, False),
        ("bfloat16", torch.bfloat16, False),
        ("bfloat16, compiled", torch.bfloat16, True),
    ):
        seconds = best(stepper(config, "boundary", lambda _: crops, dtype, compiled), repeats)
        first = first or seconds
        print(f"{name:<20} {batch / seconds:6.2f} crops/s  x{first / seconds:.2f}", flush=True)


def stepper(
    config: ModelConfig,
    paths: str,
    make: Callable[[int], tuple[np.ndarray, ...]],
    dtype: torch.dtype | None = None,
    compiled: bool = False,
) -> Callable[[], None]:
    """One step of the optimiser on one batch."""
    torch.manual_seed(0)
    net = TeraMind(config).train()
    start_fast(net)
    if compiled:
        net.compile(dynamic=False)
    objective = Objective(net, loss_weights("velocity"), paths)
    optimizer = make_optimizer("adamw", net.parameters(), 1e-3, (0.9, 0.99), 0.0)
    batch = [torch.from_numpy(values) for values in make(0)]

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss, _ = objective(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def best(run: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of the process, after one run that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def print_row(config: ModelConfig, what: str, seconds: float, step: float | None) -> None:
    part = "" if step is None else f"{seconds / step:12.1%}"
    print(f"{config.patch_size:>4} {what:<34} {BATCH / seconds:>9.1f} {part}", flush=True)


def write_atlas(path: Path) -> Atlas:
    """Random images and counts: the worst for the store's codecs."""
    generator = np.random.default_rng(0)
    metadata = {"slice_z": [0.0], "pixel_size": 0.4, "scaling": dict.fromkeys(STAINS, (0.0, 255.0)), "provenance": {}}
    with AtlasWriter(
        path, genes=[f"gene{n}" for n in range(GENES)], stains=list(STAINS), shape=(SIDE, SIDE), **metadata
    ) as writer:
        for _ in range(0, SIDE // 16, 64):
            counts = generator.poisson(0.05, (64 * SIDE // 16, GENES)).astype(np.uint16)
            writer.append_counts(0, csr_array(counts))
        for stain in range(len(STAINS)):
            writer.write_image(0, stain, 0, 0, generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
    return Atlas.open(path)


if __name__ == "__main__":
    main()
