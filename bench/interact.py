"""Interaction maps: memory of the asked rows against whole matrices, throughput, and what a brain takes.

``python bench/interact.py [--genes 500] [--device cpu]``. Memory is the peak above the start of a fresh process (of the
device's allocator on a GPU), for as many patches at once as fill a batch; both forms see the same patches. For maps of
a whole atlas it is the peak of the process, with all that it imports.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from scipy.sparse import csr_array

from teramind import ModelConfig, TeraMind, save_checkpoint
from teramind.atlas.writer import AtlasWriter
from teramind.interaction.attention import attention_rows, interaction_maps
from teramind.interaction.image import MapImage
from teramind.interaction.maps import BRAIN_BINS, MapSource, write_maps
from teramind.interaction.statistics import pathway_statistics

ASKED = 2
PATCHES = 128  # at once, in the comparison of memory
TRANSCRIPTS = 1.5  # a bin, all genes together, as in tissue
SIDE = 520  # bins of the atlas that is streamed: a block and a bit
HEIGHTS = (520, 2080)  # bins of the atlases whose peak memory is measured
MANY = (2, 35, 70)  # genes that are asked for, in the comparison of peaks


def network(genes: int, device: str) -> TeraMind:
    """The published gene-gene block; the rest, which maps do not touch, is small."""
    torch.manual_seed(0)
    return TeraMind(ModelConfig(genes=genes, base_channels=4, embed_channels=16, res_blocks=1)).to(device).eval()


def counts(genes: int, rows: int, columns: int, read: float = 1.0) -> np.ndarray:
    """Poisson counts of a region in bins; the asked genes lie in a share of the patches."""
    generator = np.random.default_rng(0)
    region = generator.poisson(TRANSCRIPTS / genes, (genes, 4, rows, columns)).astype(np.uint16)
    live = generator.random((rows // 4, columns // 4)) < read
    region[:ASKED] = np.kron(live, np.ones((4, 4)))
    return region


def peak_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: what that says of a new process begins with the size of the one that started it.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def measure_memory(form: str, genes: int, device: str) -> int:
    """Peak of one form above the start, in this process."""
    net = network(genes, device)
    region = torch.from_numpy(counts(genes, 4, 4 * PATCHES).astype(np.float32))[None].to(device)
    patches = region.unflatten(-1, (PATCHES, 4))[0].permute(3, 0, 1, 2, 4).contiguous()
    asked = torch.arange(ASKED, device=device)
    with torch.no_grad():
        attention_rows(net, patches[:1], asked)  # what is set up once
        before = peak_bytes(device)
        if form == "whole":
            net.gene_attention(region)[:, :, :ASKED, :ASKED].clone()
        else:
            attention_rows(net, patches, asked)
    return peak_bytes(device) - before


def measure_stream_memory(folder: Path, genes: int, device: str, asked: int) -> int:
    """Peak of a process that writes all maps of an atlas and regresses them, with all that it imports."""
    source = MapSource(folder / "atlas.zarr", folder / "net.safetensors", asked_names(genes, asked), device=device)
    write_maps(source, folder / "maps.ome.zarr", progress=False)
    pathway_statistics(MapImage(folder / "maps.ome.zarr"))
    return peak_bytes("cpu")


def in_fresh_process(form: str, genes: int, device: str, *more: str) -> int:
    words = [sys.executable, __file__, "--form", form, "--genes", str(genes), "--device", device, *more]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU."""
    clock, cpu = perf_counter(), process_time()
    call()
    return perf_counter() - clock, process_time() - cpu


def tile_speed(genes: int, device: str, read: float, repeats: int = 3) -> tuple[float, float]:
    """Bins a second on the clock and of CPU, median of a tile of 132 x 132 bins that lies in memory."""
    net, region = network(genes, device), counts(genes, 132, 132, read)
    interaction_maps(net, region, range(ASKED))
    times = [timed(lambda: interaction_maps(net, region, range(ASKED))) for _ in range(repeats)]
    clock, cpu = (2 * 132 * 132 / statistics.median(column) for column in zip(*times, strict=True))
    return clock, cpu


def asked_names(genes: int, asked: int = ASKED) -> list[str]:
    return [f"g{number}" for number in range(genes)][:asked]


def write_inputs(folder: Path, genes: int, height: int) -> None:
    """An atlas of four slices of so many bins in height, and a network."""
    names = [f"g{number}" for number in range(genes)]
    generator = np.random.default_rng(1)
    with AtlasWriter(
        folder / "atlas.zarr", genes=names, stains=[], slice_z=[0.0, 1.0, 2.0, 3.0], shape=(height * 16, SIDE * 16),
        pixel_size=0.108, scaling=None, provenance={},
    ) as writer:  # fmt: skip
        for z in range(4):
            for row in range(0, height, 64):
                bins = min(64, height - row) * SIDE
                drawn = generator.poisson(TRANSCRIPTS / genes, (bins, genes)).astype(np.uint16)
                writer.append_counts(z, csr_array(drawn))
    save_checkpoint(folder / "net.safetensors", network(genes, "cpu"), genes=names)


def stream_speed(genes: int, device: str) -> tuple[float, float]:
    """The same from an atlas on the disk to an image on the disk, one run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_inputs(path, genes, SIDE)
        source = MapSource(path / "atlas.zarr", path / "net.safetensors", asked_names(genes), device=device)
        times = timed(lambda: write_maps(source, path / "maps.ome.zarr", progress=False))
        clock, cpu = (4 * SIDE * SIDE / seconds for seconds in times)
        return clock, cpu


def stream_memory(genes: int, device: str) -> list[int]:
    """Peak of each height."""
    peaks = []
    for height in HEIGHTS:
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(Path(folder), genes, height)
            peaks.append(in_fresh_process("stream", genes, device, "--folder", folder))
    return peaks


def stream_memory_of_many(genes: int, device: str) -> list[int]:
    """Peak for each number of genes that are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), genes, HEIGHTS[0])
        peaks = []
        for asked in MANY:
            peaks.append(in_fresh_process("stream", genes, device, "--folder", folder, "--asked", str(asked)))
            shutil.rmtree(Path(folder) / "maps.ome.zarr")
        return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--form", choices=("rows", "whole", "stream"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--asked", type=int, default=ASKED, help=argparse.SUPPRESS)
    parser.add_argument("--memory-only", action="store_true")
    arguments = parser.parse_args()
    genes, device = arguments.genes, arguments.device
    if arguments.form == "stream":
        print(measure_stream_memory(arguments.folder, genes, device, arguments.asked))
        return
    if arguments.form:
        print(measure_memory(arguments.form, genes, device))
        return
    whole, rows = (in_fresh_process(form, genes, device) for form in ("whole", "rows"))
    print(f"{genes} genes, {ASKED} asked, {device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    forms = f"whole matrices {whole / 1e6:.0f} MB, asked rows {rows / 1e6:.0f} MB"
    print(f"memory of {PATCHES} patches: {forms}, x{whole / rows:.1f}")
    for height, peak in zip(HEIGHTS, stream_memory(genes, device), strict=True):
        print(f"maps of an atlas of 4 x {height:,} x {SIDE} bins: peak {peak / 1e6:.0f} MB")
    for asked, peak in zip(MANY, stream_memory_of_many(genes, device), strict=True):
        print(f"maps of {asked} genes, an atlas of 4 x {HEIGHTS[0]:,} x {SIDE} bins: peak {peak / 1e6:.0f} MB")
    if arguments.memory_only:
        return
    show("a tile in memory, the genes in all patches", *tile_speed(genes, device, 1.0))
    show("a tile in memory, the genes in 10 % of the patches", *tile_speed(genes, device, 0.1))
    show(f"from atlas to OME-Zarr, {TRANSCRIPTS} transcripts a bin", *stream_speed(genes, device))


def show(what: str, clock: float, cpu: float) -> None:
    hours = [BRAIN_BINS / speed / 3600 for speed in (clock, cpu)]
    print(f"{what:<52} bins/s {clock:>9,.0f} (of CPU {cpu:>9,.0f})   brain {hours[0]:.1f} h (of CPU {hours[1]:.1f} h)")


if __name__ == "__main__":
    main()
