"""Say what generating an atlas would take: a few tiles are timed here, the rest is counted."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from teramind.atlas.store import Atlas
from teramind.engine.job import Job, shared_threads
from teramind.engine.plan import TilePlan, Unit
from teramind.engine.session import Setup
from teramind.engine.sizes import StateSizes
from teramind.errors import InputError
from teramind.generate import add_run_options, run_options

PYRAMID = 4 / 3  # all levels of an image over its finest
MOST_REHEARSED = 5_000_000  # units; beyond, devices are taken to be busy all the time


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        device: what was timed.
        voxels: of the output.
        units: (tile, step) units.
        unit_seconds: median time of a unit on the device.
        seconds: number of such devices -> wall time.
        state_bytes: of live tiles, in memory or in the scratch file.
        memory_bytes: of host memory for state, as ``memory`` limits it.
        scratch_bytes: of state beyond it.
        snapshot_bytes: of one snapshot, at most; two are kept.
        buffer_bytes: of host memory for shards that are not complete, at most.
        output_bytes: of the output with its pyramid before compression.
        process_bytes: of host memory that the process took while it timed tiles, state apart.
        device_bytes: most memory of the GPU meanwhile; 0 on a CPU.
    """

    device: str
    voxels: int
    units: int
    unit_seconds: float
    seconds: dict[int, float]
    state_bytes: int
    memory_bytes: int
    scratch_bytes: int
    snapshot_bytes: int
    buffer_bytes: int
    output_bytes: int
    process_bytes: int
    device_bytes: int

    def summary(self) -> str:
        """Lines for a person."""
        times = [f"  on {count} x {self.device:<8} {_time(seconds)}" for count, seconds in self.seconds.items()]
        memory = self.memory_bytes + self.buffer_bytes + self.process_bytes
        lines = [
            f"{self.voxels:,} voxels, {self.units:,} units of {self.unit_seconds:.3g} s",
            "time",
            *times,
            f"memory     {_size(memory)}, {_size(self.memory_bytes)} of it for state",
            f"scratch    {_size(self.scratch_bytes)}",
            f"snapshots  2 x {_size(self.snapshot_bytes)} at most",
            f"output     {_size(self.output_bytes)} before compression, pyramid included",
        ]
        if self.device_bytes:
            lines.insert(-3, f"on device  {_size(self.device_bytes)}")
        return "\n".join(lines)


def estimate(
    atlas: Atlas | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    devices: int = 8,
    tiles: int = 3,
    **options: Any,
) -> Estimate:
    """Time a few tiles and say what the whole run would take.

    Reading, writing and snapshots are taken to hide behind computing, as they do where tiles are worth their device.

    Args:
        atlas: the store of transcripts, or its path.
        checkpoint: the network.
        devices: also say how long it takes on so many devices like the first one.
        tiles: how many are timed, after one that is not.
        **options: as for ``teramind.generate.generate``.

    Raises:
        InputError: as ``generate``.
    """
    if devices < 1 or tiles < 1:
        raise InputError(f"{tiles} tiles on {devices} devices say nothing: give at least 1 of each")
    job = Job(atlas, checkpoint, Path("estimate"), run_options(**options))
    setup = job.setup()
    plan = setup.plan(completed=None)
    planes = setup.planes[0] * setup.planes[1]
    sizes = StateSizes.of(plan, planes, setup.denoisers[0].state_dtype.itemsize)
    memory = sizes.memory_for_tiles(setup.memory)
    device = job.devices[0]
    with shared_threads(job.options.workers if device.type == "cpu" else 1):
        unit_seconds, pixels = _time_units(setup, plan, tiles)
    total, skipped = plan.pixels()
    alone = unit_seconds * (total - skipped) / pixels
    return Estimate(
        device=str(device),
        voxels=setup.place.voxels * setup.planes[0],
        units=plan.remaining,
        unit_seconds=unit_seconds,
        seconds={count: alone * _share(plan, count) for count in sorted({1, devices})},
        state_bytes=sizes.band * (sizes.tile + 2 * sizes.rim),
        memory_bytes=min(memory, sizes.band * sizes.tile) + 2 * sizes.band * sizes.rim,
        scratch_bytes=sizes.scratch(memory),
        snapshot_bytes=sizes.snapshot,
        buffer_bytes=sizes.shards,
        output_bytes=round(setup.place.voxels * setup.planes[0] * PYRAMID),
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("atlas", help="atlas store (teramind ingest makes one)")
    parser.add_argument("--checkpoint", required=True, help="network: .safetensors, or the reference's .ckpt")
    parser.add_argument("--devices", type=int, default=8, help="say the time on so many of them too (default: 8)")
    parser.add_argument("--tiles", type=int, default=3, help="how many to time (default: 3)")
    parser.add_argument("--json", action="store_true", help="print it for machines")
    add_run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options = vars(arguments)
    as_json = options.pop("json")
    result = estimate(**options)
    sys.stdout.write((json.dumps(asdict(result), indent=1) if as_json else result.summary()) + "\n")
    return 0


def _time_units(setup: Setup, plan: TilePlan, count: int) -> tuple[float, int]:
    """Median seconds of a unit in the middle of what is wanted, and its pixels."""
    y0, y1, x0, x1 = plan.output
    unit = Unit(len(setup.place.windows) // 2, (y0 + y1) // 2 // plan.tile, (x0 + x1) // 2 // plan.tile, 0)
    rectangle, denoiser = plan.compute_rectangle(unit), setup.denoisers[0]
    height, width = (side + plan.patch for side in rectangle.shape)
    states = np.random.default_rng(0).standard_normal((1, *setup.planes, height, width), np.float32)
    states = states.astype(denoiser.state_dtype)
    genes = setup.genes(plan=plan, windows=setup.place.windows).read(unit)
    seconds = []
    for _ in range(count + 1):
        start = perf_counter()
        denoiser.fetch(denoiser(denoiser.send(states, genes), 0, "the tile that is timed"))
        seconds.append(perf_counter() - start)
    return statistics.median(seconds[1:]), rectangle.area  # the first call also sets things up


def _share(plan: TilePlan, devices: int) -> float:
    """Wall time on several devices over that on one; units depend on each other, so some may wait."""
    if devices == 1 or not plan.remaining:
        return 1.0
    if plan.remaining > MOST_REHEARSED:
        return 1 / devices
    return plan.simulate([1.0] * devices).makespan / plan.remaining


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(size: int) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
