"""From options to a run: what fits together, where it starts, how it ends."""

from __future__ import annotations

import copy
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teramind.atlas.panel import read_genes
from teramind.atlas.store import Atlas
from teramind.diffusion.noise import NOISE_LAYOUT, noise_field
from teramind.diffusion.upstream_noise import tile_noise_field
from teramind.engine.denoise import Denoiser, NetworkDenoiser, resolve_dtype
from teramind.engine.frame import Border, Frame, as_rectangle, as_slices, describe, windows
from teramind.engine.inputs import GeneReader, Noise, StateReader
from teramind.engine.lock import OutputLock
from teramind.engine.panel import Missing, Panel, match_genes
from teramind.engine.plan import Rectangle, TilePlan
from teramind.engine.report import RunReport, write_report
from teramind.engine.run import Run, UnitReader
from teramind.engine.scratch import Scratch
from teramind.engine.sink import Placement
from teramind.engine.snapshot import FOLDER, Snapshot, has_snapshots, read_snapshot, remove_snapshots, write_snapshot
from teramind.engine.store import StateStore
from teramind.engine.tissue import empty_tiles
from teramind.errors import InputError
from teramind.model.checkpoint import checkpoint_hash, load_checkpoint
from teramind.model.network import TeraMind
from teramind.output.ome_zarr import OutputWriter, output_attributes

logger = logging.getLogger(__name__)
DEFAULT_TILE = {"cpu": 256, "cuda": 1024}
PIXEL_SIZE_TOLERANCE = 0.01  # cells 1 % larger or smaller are within the biology
DEFAULT_STAINS = ("DAPI", "PolyT")  # of the published two-stain models, which carry no names
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Options:
    """The options of ``teramind.generate.generate``, which describes them."""

    roi: str | Sequence[int] | None
    slices: str | tuple[int, int] | None
    border: Border
    steps: int
    seed: int
    device: str
    dtype: str
    state_dtype: Any
    noise: str
    tile: int | None
    memory: int | str | None
    skip_below: int | None
    quantise: Any
    genes: str | os.PathLike[str] | Sequence[str] | None
    missing_genes: Missing
    workers: int
    snapshot_minutes: float
    scratch: str | os.PathLike[str] | None
    progress: bool


class Job:
    """One generation: an atlas, a network, an output and options, checked against each other.

    Raises:
        InputError: for whatever does not fit; nothing has been written then.
    """

    def __init__(
        self, atlas: Atlas | str | os.PathLike[str], checkpoint: str | os.PathLike[str], output: Path, options: Options
    ) -> None:
        self.options, self.output, self.checkpoint = options, output, Path(checkpoint)
        self.atlas = atlas if isinstance(atlas, Atlas) else Atlas.open(atlas)
        self.net, self.meta = load_checkpoint(checkpoint)
        self.config = self.net.config
        self.devices = parse_devices(options.device)
        self.tile = options.tile or max(DEFAULT_TILE[self.devices[0].type], self.config.patch_size)
        self.panel = self._match_genes()
        self._check_pixel_size()
        self.stains = self._stain_names()
        _, height, width = self.atlas.shape
        roi = None if options.roi is None else as_rectangle(options.roi, height, width)
        self.frame = Frame.of(height, width, self.config.patch_size, roi, options.border)
        depth = self.atlas.shape[0]
        wanted = None if options.slices is None else as_slices(options.slices, depth)
        self.windows, self.slices = windows(self.config, depth, wanted)
        self.noise = self._noise()
        self.noise(0, Rectangle(0, 1, 0, 1))  # a seed that cannot be is told now
        self.denoisers = self._denoisers()
        self._announce(roi)

    # ---- checks --------------------------------------------------------------------------------------------------

    def _match_genes(self) -> Panel:
        names: Any = self.options.genes if self.options.genes is not None else self.meta.get("genes")
        if isinstance(names, str | os.PathLike):
            names = read_genes(names)
        return match_genes(names, self.config.genes, self.atlas.genes, self.options.missing_genes)

    def _check_pixel_size(self) -> None:
        trained = self.meta.get("pixel_size")
        if trained and abs(self.atlas.pixel_size / trained - 1) > PIXEL_SIZE_TOLERANCE:
            raise InputError(
                f"the network was trained at {trained} um/px and the atlas has {self.atlas.pixel_size}; "
                f"ingest it again with --pixel-size {trained}"
            )

    def _stain_names(self) -> list[str]:
        """As the checkpoint says; without, as the atlas does if their number agrees."""
        if self.meta.get("stains"):
            return list(self.meta["stains"])
        if len(self.atlas.stains) == self.config.stains:
            return list(self.atlas.stains)
        if self.config.stains <= len(DEFAULT_STAINS):
            return list(DEFAULT_STAINS[: self.config.stains])
        return [f"stain {number}" for number in range(self.config.stains)]

    def _noise(self) -> Noise:
        planes, seed, slices = (self.config.stains, self.config.slices), self.options.seed, self.atlas.shape[0]
        if self.options.noise == "position":
            return lambda z, place: noise_field(seed, z, place.y0, place.x0, (*planes, *place.shape))
        if self.options.noise == "tile":
            return lambda z, place: tile_noise_field(z, place.y0, place.x0, (*planes, *place.shape), slices)
        raise InputError(f"noise is {self.options.noise!r}; it has to be position or tile")

    def _denoisers(self) -> list[Denoiser]:
        """One for each GPU, or as many as there are CPU workers around one network."""
        options = self.options
        if options.workers < 1:
            raise InputError(f"{options.workers} workers cannot work: give at least 1")

        def on(device: torch.device, net: TeraMind) -> NetworkDenoiser:
            return NetworkDenoiser(net, device, options.dtype, options.steps, options.state_dtype, options.quantise)

        if self.devices[0].type == "cpu":
            return [on(self.devices[0], self.net)] * options.workers
        copies = [self.net, *(copy.deepcopy(self.net) for _ in self.devices[1:])]
        return [on(device, net) for device, net in zip(self.devices, copies, strict=True)]

    def _announce(self, asked: Rectangle | None) -> None:
        """Say what the options came to where it is not what was asked for word by word."""
        if asked and asked != self.frame.target:
            logger.info("the region grows to the patch grid: %s", describe(self.frame.output))
        if self.windows[0].gene_start != 0 or self.slices != (0, self.atlas.shape[0]):
            logger.info("slices %d:%d of %d", *self.slices, self.atlas.shape[0])

    # ---- run -----------------------------------------------------------------------------------------------------

    def run(self, *, resume: bool, overwrite: bool) -> RunReport:
        """Generate; see ``teramind.generate.generate``."""
        with OutputLock(self.output):
            snapshot = self._snapshot_to_resume() if resume else None
            plan = self._plan(snapshot)
            memory = self._memory(plan)
            self._check_space(plan)
            if snapshot:
                writer = OutputWriter.resume(self.output, snapshot.pending)
            else:
                writer = self._new_output(overwrite or (resume and self.output.exists()))
            return self._execute(plan, writer, memory, snapshot)

    def _execute(self, plan: TilePlan, writer: OutputWriter, memory: int, snapshot: Snapshot | None) -> RunReport:
        place = Placement(self.frame, self.windows, self.slices)
        folder = Path(self.options.scratch) if self.options.scratch else self.output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(folder, self._tile_bytes())
        try:
            store = StateStore(memory, scratch, self.config.patch_size // 2)
            if snapshot:
                for saved in snapshot.tiles:
                    store.restore(saved)
            else:
                for window, rectangle in self._empty_tiles():
                    place.skip(writer, window, rectangle, self.config.slices)
                write_snapshot(self.output, Snapshot(self.identity(), plan.completed(), iter(()), writer.pending()))
            planes = (self.config.stains, self.config.slices)
            states = StateReader(plan, store, self.windows, self.noise, planes, self.denoisers[0].state_dtype)
            genes = GeneReader(plan, self.atlas, self.panel, self.windows, self.config.gene_slices)
            minutes = self.options.snapshot_minutes
            run = Run(
                plan, store, UnitReader(states, genes), writer, place, self.denoisers, self.identity(),
                minutes * 60 if minutes > 0 else None, self.options.progress,
            )  # fmt: skip
            report = run.execute()
            report.filled_fraction = self._filled_fraction(place)
            report.skipped_tiles = 0 if self.skipped is None else int(self.skipped.sum())
            writer.close()
        except BaseException:
            writer.abort()
            raise
        finally:
            scratch.close()
        write_report(self.output, report)
        remove_snapshots(self.output)
        return report

    def _snapshot_to_resume(self) -> Snapshot | None:
        """The snapshot to go on from; None where nothing has been done yet.

        Raises:
            InputError: naming what differs from the run to be resumed, or that there is none.
        """
        if not self.output.exists():
            logger.info("%s is not there yet: nothing to resume, starting anew", self.output)
            return None
        if output_attributes(self.output)["complete"]:
            raise InputError(f"{self.output} is complete; there is nothing to resume")
        if not has_snapshots(self.output):
            return None  # killed before the first one, so before any voxel
        snapshot = read_snapshot(self.output)
        mine = self.identity()
        for name in mine:
            if snapshot.identity.get(name) != mine[name]:
                raise InputError(
                    f"{self.output} was begun with {name} = {snapshot.identity.get(name)!r} and cannot go on with "
                    f"{mine[name]!r}; use the same, or --overwrite"
                )
        return snapshot

    def identity(self) -> dict[str, Any]:
        """All that decides about voxels and layout: a resumed run has to have the same."""
        options = self.options
        return {
            "atlas": self.atlas.fingerprint,
            "checkpoint": self._checkpoint_hash(),
            "genes": self.panel.names,
            "missing_genes": options.missing_genes,
            "region": describe(self.frame.target),
            "slices": list(self.slices),
            "border": options.border,
            "steps": options.steps,
            "seed": options.seed,
            "noise": options.noise,
            "noise_layout": NOISE_LAYOUT,
            "dtype": str(resolve_dtype(options.dtype, self.devices[0])).removeprefix("torch."),
            "state_dtype": options.state_dtype,
            "tile": self.tile,
            "skip_below": options.skip_below,
            "quantise": options.quantise,
        }

    def _checkpoint_hash(self) -> str:
        if not hasattr(self, "_hash"):
            self._hash = checkpoint_hash(self.checkpoint)
        return self._hash

    def _plan(self, snapshot: Snapshot | None) -> TilePlan:
        options, frame = self.options, self.frame
        skip = None
        if options.skip_below:
            skip = empty_tiles(
                self.atlas, frame.plane, self.windows, self.config.gene_slices,
                tile=self.tile, patch=self.config.patch_size, steps=options.steps, below=options.skip_below,
            )  # fmt: skip
        self.skipped = skip
        plan = TilePlan(
            *frame.plane.shape, patch=self.config.patch_size, tile=self.tile, steps=options.steps,
            windows=len(self.windows), output=frame.target, bounds=frame.bounds, skip=skip,
            completed=snapshot.completed if snapshot else None,
        )  # fmt: skip
        if plan.extra_work > 1.005:
            logger.info("computing the region's context as well costs x%.2f", plan.extra_work)
        return plan

    def _new_output(self, overwrite: bool) -> OutputWriter:
        first, end = self.slices
        z = self.atlas.slice_z
        spacing = float(np.median(np.diff(z))) if len(z) > 1 else 1.0
        pixel = self.atlas.pixel_size
        area = self.frame.output
        return OutputWriter(
            self.output,
            shape=(self.config.stains, end - first, *area.shape),
            pixel_size=(spacing, pixel, pixel),
            translation=(z[first], area.y0 * pixel, area.x0 * pixel),
            stains=self.stains,
            parameters=self.identity() | {"slice_z": z[first:end], "checkpoint_name": self.checkpoint.name},
            overwrite=overwrite,
        )

    def _empty_tiles(self) -> Iterator[tuple[int, Rectangle]]:
        """Window and place of the tiles that are skipped."""
        if self.skipped is None:
            return
        for window, row, column in np.argwhere(self.skipped).tolist():
            y, x = row * self.tile, column * self.tile
            yield window, Rectangle(y, y + self.tile, x, x + self.tile)

    def _filled_fraction(self, place: Placement) -> float:
        """Voxels of the output that were generated, the others being skipped."""
        empty = sum(
            place.visible_voxels(window, rectangle, self.config.slices) for window, rectangle in self._empty_tiles()
        )
        return 1 - empty / place.voxels

    # ---- sizes ---------------------------------------------------------------------------------------------------

    def _tile_bytes(self) -> int:
        """State of one whole tile."""
        return self.config.stains * self.config.slices * self.tile**2 * self.denoisers[0].state_dtype.itemsize

    def _rim_bytes(self) -> int:
        """State of the rim of one tile."""
        return int(self._tile_bytes() * min(1.0, 2 * self.config.patch_size / self.tile))

    def _band(self, plan: TilePlan) -> tuple[int, int]:
        """Tiles of a line along the shorter side, and of the whole band that is alive at once."""
        y0, y1, x0, x1 = plan.active_rectangle(0)
        rows, columns = (-(-end // self.tile) - start // self.tile for start, end in ((y0, y1), (x0, x1)))
        line = min(rows, columns)
        return line, min(line * (self.options.steps + 1), rows * columns)

    def _memory(self, plan: TilePlan) -> int:
        """Bytes for state, as asked for or half of what is free."""
        line, band = self._band(plan)
        needed = band * 2 * self._rim_bytes() + line * self._tile_bytes()
        asked = self.options.memory
        memory = parse_bytes(asked) if asked is not None else available_memory() // 2
        if memory < needed:
            raise InputError(
                f"{memory:,} bytes of memory for state do not hold one line of tiles and the rims of the others; "
                f"{needed:,} are needed: give --memory {-(-needed // 2**20)}M, or a smaller --tile"
            )
        return memory

    def _check_space(self, plan: TilePlan) -> None:
        """There has to be room for two snapshots."""
        _, band = self._band(plan)
        needed = 2 * band * (self._tile_bytes() + self._rim_bytes())
        folder = next(parent for parent in (self.output, *self.output.absolute().parents) if parent.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputError(
                f"{folder} has {free:,} bytes left and two snapshots of this run take up to {needed:,}: "
                f"make room for {needed - free:,} more, or generate a smaller region"
            )


def parse_devices(text: str) -> list[torch.device]:
    """``auto``, ``cpu``, ``cuda`` (all of them), ``cuda:0,cuda:1``."""
    count = torch.cuda.device_count()
    if text == "auto":
        text = "cuda" if count else "cpu"
    if text == "cuda" and count:
        return [torch.device("cuda", index) for index in range(count)]
    try:
        devices = [torch.device(name.strip()) for name in text.split(",")]
    except RuntimeError:
        raise InputError(f"{text!r} names no device; use auto, cpu, cuda or cuda:0,cuda:1") from None
    unknown = [
        str(one)
        for one in devices
        if one.type not in DEFAULT_TILE or (one.type == "cuda" and (one.index or 0) >= count)
    ]
    if unknown:
        raise InputError(f"there is no device {', '.join(unknown)} here: {count} GPU(s) can be seen")
    if len({device.type for device in devices}) > 1:
        raise InputError(f"{text} mixes CPU and GPU, whose results differ; choose one kind")
    return devices


def parse_bytes(value: int | str) -> int:
    """``8G``, ``512M``, ``1.5T`` or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if not match:
        raise InputError(f"{value!r} is no amount of memory; write e.g. 8G, 512M or a number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
