"""From options to a run: do the atlas, the network and the options fit together, and what do they come to?"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from teramind.atlas.panel import read_genes
from teramind.atlas.store import Atlas
from teramind.diffusion.noise import NOISE_LAYOUT, noise_field
from teramind.diffusion.upstream_noise import tile_noise_field
from teramind.engine.denoise import Denoiser, NetworkDenoiser, resolve_dtype
from teramind.engine.frame import Border, Frame, as_rectangle, as_slices, describe, windows
from teramind.engine.inputs import GeneReader, Noise
from teramind.engine.orthologs import read_pairs
from teramind.engine.panel import Missing, Panel, match_genes
from teramind.engine.plan import Rectangle, TilePlan
from teramind.engine.report import RunReport
from teramind.engine.session import Setup, carry_out
from teramind.engine.sink import Placement
from teramind.engine.tissue import empty_tiles
from teramind.errors import InputError
from teramind.model.checkpoint import checkpoint_hash, load_checkpoint
from teramind.model.network import TeraMind
from teramind.ngff import open_levels
from teramind.output.export import export_ome_tiff
from teramind.output.ome_zarr import OutputWriter

logger = logging.getLogger(__name__)
DEFAULT_TILE = {"cpu": 256, "cuda": 1024}
PIXEL_SIZE_TOLERANCE = 0.01  # cells 1 % larger or smaller are within the biology
FORMATS = ("ome-zarr", "ome-tiff")
DEFAULT_STAINS = ("DAPI", "PolyT")  # of the published two-stain models, which carry no names


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
    map_genes: str | os.PathLike[str] | None
    workers: int
    snapshot_minutes: float
    scratch: str | os.PathLike[str] | None
    format: str
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
        if options.workers < 1:
            raise InputError(f"{options.workers} workers cannot work: give at least 1")
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
        self._announce(roi)

    # ---- checks --------------------------------------------------------------------------------------------------

    def _match_genes(self) -> Panel:
        names: Any = self.options.genes if self.options.genes is not None else self.meta.get("genes")
        if isinstance(names, str | os.PathLike):
            names = read_genes(Path(names))
        table = self.options.map_genes
        pairs = None if table is None else read_pairs(table, names or (), self.atlas.genes)
        # Panels of two species share a part of their genes: what the table does not pair is missing by its nature.
        missing: Missing = self.options.missing_genes if pairs is None else "zero"
        return match_genes(names, self.config.genes, self.atlas.genes, missing, pairs)

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
        tiffs = self._tiff_folder(resume, overwrite)
        with shared_threads(self.options.workers if self.devices[0].type == "cpu" else 1):
            report = carry_out(self.setup(), self.output, resume=resume, overwrite=overwrite)
        if tiffs:
            export_slices(self.output, tiffs, keep=resume)
        return report

    def _tiff_folder(self, resume: bool, overwrite: bool) -> Path | None:
        """Where OME-TIFFs go, if they are wanted: beside the output."""
        if self.options.format not in FORMATS:
            raise InputError(f"format is {self.options.format!r}; it has to be {' or '.join(FORMATS)}")
        if self.options.format != "ome-tiff":
            return None
        name = self.output.name.removesuffix(".zarr").removesuffix(".ome")
        folder = self.output.with_name(f"{name}.ome-tiff")
        if folder.exists() and not overwrite and not (resume and self.output.exists()):
            raise InputError(f"{folder} exists already; overwrite it, or choose another name for the output")
        return folder

    def setup(self) -> Setup:
        """Everything that the engine needs to know."""
        options, config, frame = self.options, self.config, self.frame
        skip = self._skip()
        plan = partial(
            TilePlan, *frame.plane.shape, patch=config.patch_size, tile=self.tile, steps=options.steps,
            windows=len(self.windows), output=frame.target, bounds=frame.bounds, skip=skip,
        )  # fmt: skip
        return Setup(
            plan=plan,
            create_output=self._create_output,
            denoisers=self._denoisers(),
            noise=self.noise,
            genes=partial(GeneReader, atlas=self.atlas, panel=self.panel, gene_slices=config.gene_slices),
            place=Placement(frame, self.windows, self.slices),
            planes=(config.stains, config.slices),
            skip=skip,
            identity=self.identity(),
            memory=options.memory,
            scratch=Path(options.scratch) if options.scratch else None,
            snapshot_seconds=options.snapshot_minutes * 60 or None,
            progress=options.progress,
        )

    def identity(self) -> dict[str, Any]:
        """All that decides about voxels and layout: a resumed run has to have the same."""
        options = self.options
        return {
            "atlas": self.atlas.fingerprint,
            "checkpoint": checkpoint_hash(self.checkpoint),
            "genes": self.panel.names,
            "missing_genes": options.missing_genes,
            "map_genes": dict(self.panel.mapped) if options.map_genes else None,
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

    def _skip(self) -> NDArray[np.bool_] | None:
        """Tiles without tissue, if they are to be skipped."""
        options = self.options
        if not options.skip_below:
            return None
        return empty_tiles(
            self.atlas, self.frame.plane, self.windows, self.config.gene_slices,
            tile=self.tile, patch=self.config.patch_size, steps=options.steps, below=options.skip_below,
        )  # fmt: skip

    def _create_output(self, identity: Mapping[str, Any], overwrite: bool) -> OutputWriter:
        first, end = self.slices
        z = self.atlas.slice_z
        pixel = self.atlas.pixel_size
        area = self.frame.output
        return OutputWriter(
            self.output,
            shape=(self.config.stains, end - first, *area.shape),
            pixel_size=(z_spacing(self.atlas), pixel, pixel),
            translation=(z[first], area.y0 * pixel, area.x0 * pixel),
            stains=self.stains,
            parameters={
                **identity,
                "patch_size": self.config.patch_size,
                "slice_z": z[first:end],
                "z_spacing_known": len(z) > 1,
                "checkpoint_name": self.checkpoint.name,
            },
            overwrite=overwrite,
        )


def z_spacing(atlas: Atlas) -> float:
    """Distance of an atlas' slices, um, for formats that want one number."""
    z = atlas.slice_z
    # A single slice has no spacing; a cube is the least misleading.
    return float(np.median(np.diff(z))) if len(z) > 1 else atlas.pixel_size


@contextmanager
def shared_threads(workers: int) -> Iterator[None]:
    """Share torch's CPU threads out among workers: each would start as many as there are for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def export_slices(image: Path, folder: Path, *, keep: bool) -> None:
    """Write each slice of a finished image as an OME-TIFF.

    Args:
        image: the OME-Zarr image.
        folder: gets one file a slice.
        keep: leave files that are there, from an export that was cut off; else they are replaced.
    """
    for z in range(open_levels(zarr.open_group(image, mode="r"))[0].shape[1]):
        path = folder / f"z{z:03d}.ome.tif"
        if not keep:
            path.unlink(missing_ok=True)
        if not path.exists():
            export_ome_tiff(image, path, slices=f"{z}:{z + 1}")


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
