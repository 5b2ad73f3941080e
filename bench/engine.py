"""What the streaming engine costs beside the network it feeds, and how its memory grows.

    python bench/engine.py [overhead] [spill] [workers] [snapshot] [scratch] [memory] [--threads 1]

All figures of a table are measured in one run, baseline and engine alternating; CPU seconds of the process stand beside
wall seconds, which a busy machine stretches at random. The network has 1.3 M weights and random ones at that: what it
computes takes the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy.sparse import csr_array

from teramind import ModelConfig, TeraMind, save_checkpoint
from teramind.atlas.writer import STRIP_BINS, AtlasWriter
from teramind.engine.frame import Frame, Window
from teramind.engine.job import Job
from teramind.engine.plan import TilePlan
from teramind.engine.scratch import Scratch
from teramind.engine.session import Setup, carry_out
from teramind.engine.sink import Placement
from teramind.engine.sizes import StateSizes
from teramind.generate import generate, run_options
from teramind.output.ome_zarr import OutputWriter

CONFIG = ModelConfig(
    patch_size=64, genes=32, base_channels=8, channel_mult=(1, 2, 2, 4), res_blocks=1, embed_channels=64
)
GENES = [f"gene{number}" for number in range(CONFIG.genes)]
SHAPE = (1280, 384)
OPTIONS = {"steps": 5, "tile": 128, "progress": False}
HEIGHTS = (2048, 4096, 8192, 16384)


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A network and an atlas of two slices with a count in every tenth bin and gene."""
    torch.manual_seed(0)
    save_checkpoint(folder / "net.safetensors", TeraMind(CONFIG), genes=GENES)
    rows, columns = (-(-side // 16) for side in SHAPE)
    generator = np.random.default_rng(0)
    with AtlasWriter(
        folder / "atlas.zarr", genes=GENES, stains=["DAPI", "PolyT"], slice_z=[0, 10], shape=SHAPE, pixel_size=0.108,
        scaling=None, provenance={},
    ) as writer:  # fmt: skip
        for z in range(2):
            for row in range(0, rows, STRIP_BINS):
                size = min(STRIP_BINS, rows - row) * columns
                writer.append_counts(z, csr_array(generator.poisson(0.1, (size, len(GENES))).astype(np.uint16)))
    return folder / "atlas.zarr", folder / "net.safetensors"


class Clock:
    """Wall and CPU seconds of a block."""

    def __enter__(self) -> Clock:
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def bare(atlas: Path, net: Path) -> Clock:
    """The network alone on the units of the run, their input at hand."""
    setup = Job(atlas, net, Path("unused"), run_options(**OPTIONS)).setup()
    plan, denoiser = setup.plan(completed=None), setup.denoisers[0]
    genes, states = setup.genes(plan=plan, windows=setup.place.windows), {}
    clock = Clock()
    clock.wall = clock.cpu = 0.0
    while units := plan.claim(1, 0):
        (unit,) = units
        shape = (1, *setup.planes, *(side + plan.patch for side in plan.compute_rectangle(unit).shape))
        if shape not in states:
            states[shape] = np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)
        counts = genes.read(unit)
        with Clock() as one:
            denoiser.fetch(denoiser(denoiser.send(states[shape], counts), unit.step, "bench"))
        clock.wall, clock.cpu = clock.wall + one.wall, clock.cpu + one.cpu
        plan.complete(units)
    return clock


def run(atlas: Path, net: Path, folder: Path, **options: object) -> tuple[Clock, object, np.ndarray]:
    path = folder / "image.ome.zarr"
    with Clock() as clock:
        report = generate(atlas, net, path, overwrite=True, **{**OPTIONS, **options})
    return clock, report, np.asarray(zarr.open_group(path, mode="r")["0"])


def table(title: str, rows: dict[str, list[Clock]], baseline: str) -> None:
    print(f"\n{title}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, {torch.get_num_threads()} thread(s)")
    print(f"{'seconds':30}{'wall best':>11}{'median':>9}{'ratio':>8}{'CPU best':>11}{'median':>9}{'ratio':>8}")
    base = rows[baseline]
    for name, clocks in rows.items():
        cells = f"{name:30}"
        for kind in ("wall", "cpu"):
            times, other = [getattr(clock, kind) for clock in clocks], [getattr(clock, kind) for clock in base]
            cells += f"{min(times):11.2f}{statistics.median(times):9.2f}{min(times) / min(other):8.3f}"
        print(cells)


def overhead(folder: Path, repeats: int) -> None:
    atlas, net = make_inputs(folder)
    rows: dict[str, list[Clock]] = {"bare network": [], "engine, whole run": []}
    waiting = []
    for _ in range(repeats):
        rows["bare network"].append(bare(atlas, net))
        clock, report, _ = run(atlas, net, folder)
        rows["engine, whole run"].append(clock)
        waiting.append(report.waiting)
    table(f"overhead, {report.units} units of 128 px", rows, "bare network")
    print(f"waiting: {min(waiting):.1%} best, {statistics.median(waiting):.1%} median of the worker's time")
    print(f"halo read amplification {report.halo_read_amplification:.3f}")


def spill(folder: Path, repeats: int) -> None:
    atlas, net = make_inputs(folder)
    job = Job(atlas, net, Path("unused"), run_options(**OPTIONS))
    sizes = StateSizes.of(job.setup().plan(completed=None), CONFIG.stains * CONFIG.slices, 2)
    memory = sizes.band * (sizes.tile // 4 + 2 * sizes.rim)
    rows: dict[str, list[Clock]] = {"all in memory": [], "a quarter of the band": []}
    for _ in range(repeats):
        clock, _, expected = run(atlas, net, folder)
        rows["all in memory"].append(clock)
        clock, report, voxels = run(atlas, net, folder, memory=memory)
        rows["a quarter of the band"].append(clock)
        if not np.array_equal(expected, voxels):
            raise SystemExit("the spilled run gives other voxels")
    table(f"spilling, {report.spilled_bytes / 1e6:.0f} MB written, same voxels", rows, "all in memory")


def workers(folder: Path, repeats: int) -> None:
    """Threads of one network's operations against workers with tiles of their own."""
    atlas, net = make_inputs(folder)
    cpus = len(os.sched_getaffinity(0))
    torch.set_num_threads(cpus)
    rows: dict[str, list[Clock]] = {}
    for count in (1, cpus):
        rows[f"{count} worker(s), {cpus // count} thread(s) each"] = []
    for _ in range(repeats):
        for count, clocks in zip((1, cpus), rows.values(), strict=True):
            clocks.append(run(atlas, net, folder, workers=count)[0])
    table("workers", rows, next(iter(rows)))


def snapshot(folder: Path, repeats: int) -> None:
    atlas, net = make_inputs(folder)
    for _ in range(repeats):
        clock, report, _ = run(atlas, net, folder, snapshot_minutes=3 / 60)
        each = report.snapshot_seconds / max(report.snapshots, 1)
        print(
            f"{report.snapshots} snapshots of up to {report.peak_state_bytes / 1e6:.0f} MB in {clock.wall:.1f} s: "
            f"{each * 1e3:.0f} ms each, {report.snapshot_seconds / clock.wall:.2%} of the time at one every 3 s"
        )


def scratch(folder: Path, repeats: int, blocks: int = 96) -> None:
    """Blocks of a 1024-px tile through the scratch file, and the same bytes through one plain file."""
    block = np.random.default_rng(0).integers(0, 60000, (2, 2, 1024, 1024), np.uint16).view(np.float16)
    size = blocks * block.nbytes
    speeds: dict[str, list[float]] = {name: [] for name in ("disk write", "scratch write", "disk read", "scratch read")}
    for _ in range(repeats):
        path = folder / "plain"
        start = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(blocks):
                file.write(block.data)
            os.fsync(file.fileno())
        speeds["disk write"].append(size / (time.perf_counter() - start))
        start, buffer = time.perf_counter(), np.empty_like(block)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer.data):
                pass
        speeds["disk read"].append(size / (time.perf_counter() - start))
        path.unlink()
        store = Scratch(folder, block.nbytes)
        start = time.perf_counter()
        slots = [store.store(block) for _ in range(blocks)]
        store.load(slots[-1])
        os.fsync(store._file.fileno())
        speeds["scratch write"].append(size / (time.perf_counter() - start))
        start = time.perf_counter()
        for number, slot in enumerate(slots):
            for ahead in slots[number + 1 : number + 3]:
                store.prefetch(ahead)
            store.load(slot)
        speeds["scratch read"].append(size / (time.perf_counter() - start))
        store.close()
    print(
        f"\nscratch, {blocks} blocks of {block.nbytes / 1e6:.1f} MB, writes with fsync; load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'MB/s':20}{'best':>8}{'median':>8}{'ratio':>8}")
    for name, values in speeds.items():
        base = speeds["disk " + name.split()[1]]
        cells = f"{max(values) / 1e6:8.0f}{statistics.median(values) / 1e6:8.0f}"
        print(f"{name:20}{cells}{statistics.median(values) / statistics.median(base):8.2f}")


class SmallDenoiser:
    """Three convolutions of 8 channels, about 1,500 weights: a unit of 64 px in a few milliseconds."""

    steps = 5
    state_dtype = np.dtype(np.float16)

    def __init__(self) -> None:
        torch.manual_seed(0)
        conv = torch.nn.Conv2d
        self.net = torch.nn.Sequential(
            conv(4, 8, 3), torch.nn.SiLU(), conv(8, 8, 3), torch.nn.SiLU(), conv(8, 4, 3), torch.nn.Tanh()
        )

    def send(self, states: np.ndarray, _genes: np.ndarray) -> np.ndarray:
        return states

    def fetch(self, result: np.ndarray) -> np.ndarray:
        return result

    @torch.no_grad()
    def __call__(self, states: np.ndarray, step: int, _name: object) -> np.ndarray:
        x = torch.from_numpy(states).float().flatten(1, 2)[..., 13:-13, 13:-13]  # 16 px of rim, 3 of them are seen
        after = self.net(x).reshape(1, 2, 2, states.shape[-2] - 32, states.shape[-1] - 32)
        return (after * 127 + 128).byte().numpy() if step == self.steps - 1 else after.half().numpy()


class NoGenes:
    def __init__(self, **_parts: object) -> None:
        pass

    def read(self, _unit: object) -> np.ndarray:
        return np.zeros((3, 0), np.int32)


def one_height(height: int, folder: Path) -> None:
    """In a process of its own: a run 512 px wide; its peaks as JSON."""
    torch.set_num_threads(1)
    frame, path = Frame.of(height, 512, 32), folder / "image.ome.zarr"

    def create(_identity: object, overwrite: bool) -> OutputWriter:
        return OutputWriter(
            path, shape=(2, 2, height, 512), pixel_size=(1, 1, 1), translation=(0, 0, 0), stains=["DAPI", "PolyT"],
            parameters={}, overwrite=overwrite,
        )  # fmt: skip

    def noise(_z: int, place: object) -> np.ndarray:
        return np.zeros((2, 2, *place.shape), np.float32)

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: importing torch takes more than the run
    before = _memory("VmRSS")
    report = carry_out(
        Setup(
            plan=partial(TilePlan, height, 512, patch=32, tile=64, steps=5), create_output=create,
            denoisers=[SmallDenoiser()], noise=noise, genes=NoGenes, place=Placement(frame, [Window(0, 0)], (0, 2)),
            planes=(2, 2), skip=None, identity={}, snapshot_seconds=5.0,
        ),
        path, resume=False, overwrite=False,
    )  # fmt: skip
    values = {"peak": _memory("VmHWM"), "before": before, "state": report.peak_state_bytes, "units": report.units}
    values |= {"shards": report.peak_output_buffer_bytes, "tiles": report.peak_live_tiles, "seconds": report.seconds}
    print(json.dumps(values))


def _memory(name: str) -> int:
    """A figure of this process in bytes, as Linux keeps it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def memory(folder: Path, _repeats: int) -> None:
    print("\npeak memory, 512 px wide, tiles of 64 px, 5 steps, snapshots every 5 s; a process each")
    print(
        f"{'height':>7}{'units/s':>9}{'live tiles':>12}{'state MB':>10}{'shards MB':>11}{'RSS MB':>8}{'grown MB':>10}"
    )
    for height in HEIGHTS:
        own = folder / str(height)
        own.mkdir()
        said = subprocess.run(
            [sys.executable, __file__, "one-height", "--height", str(height), "--folder", str(own)],
            capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        values = json.loads(said.stdout.splitlines()[-1])
        grown = values["peak"] - values["before"]
        print(
            f"{height:7}{values['units'] / values['seconds']:9.0f}{values['tiles']:12}{values['state'] / 1e6:10.1f}"
            f"{values['shards'] / 1e6:11.1f}{values['peak'] / 1e6:8.0f}{grown / 1e6:10.1f}"
        )
        shutil.rmtree(own)


PARTS = {
    "overhead": overhead, "spill": spill, "workers": workers, "snapshot": snapshot, "scratch": scratch,
    "memory": memory,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], choices=[*PARTS, "one-height"], metavar="PART")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch, where one worker is measured")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--height", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts == ["one-height"]:
        one_height(options.height, options.folder)
        return
    for part in options.parts:
        torch.set_num_threads(options.threads)
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            PARTS[part](folder, options.repeats)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
