"""Interaction maps of an atlas: streamed through a network's gene-gene attention into an OME-Zarr image."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.atlas.store import Atlas
from teramind.engine.job import Job, z_spacing
from teramind.engine.lock import OutputLock
from teramind.engine.plan import Rectangle
from teramind.engine.run import stop_signals
from teramind.errors import InputError, Interrupted
from teramind.generate import run_options
from teramind.interaction.attention import IMAGE_SLICES, QUANTITIES, WINDOW_SLICES, interaction_maps
from teramind.interaction.pathways import gene_indices
from teramind.interaction.store import Block, MapStore
from teramind.model.network import check_gene_attention

TILE = 128
"""Bins that are read at once along a side: two blocks of the atlas. Fewer where many genes are asked for."""
TILE_BYTES = 32 << 20
"""What the maps of a tile take at most."""
BRAIN_BINS = 50 * 4576 * 6624
"""Bins of the published brain: 50 slices of 73,216 x 105,984 px."""


@dataclass(frozen=True)
class MapReport:
    """What it took to make maps.

    Attributes:
        path: the image.
        bins: of all slices, in this session.
        seconds: of this session.
    """

    path: Path
    bins: int
    seconds: float

    @property
    def bins_per_second(self) -> float:
        """Throughput of this session; 0 if nothing was left to do."""
        return self.bins / self.seconds if self.bins else 0.0

    @property
    def brain_hours(self) -> float:
        """What the published brain would take at that speed; NaN if nothing was left to do."""
        return BRAIN_BINS / self.bins_per_second / 3600 if self.bins else math.nan


class MapSource:
    """Maps of any bins of an atlas, computed when they are asked for.

    Attributes:
        job: the atlas, the network, the panel, the region and the z-windows, checked against each other.
        genes: indices of the asked genes in the network's gene axis.
        gene_names: their names.
        bins: the region, in bins of the atlas frame.

    Raises:
        InputError: they do not fit together, the atlas lacks an asked gene, or the network's windows are not of four
            gene slices.
    """

    def __init__(
        self,
        atlas: Atlas | str | os.PathLike[str],
        checkpoint: str | os.PathLike[str],
        asked: Sequence[str],
        **options: Any,
    ) -> None:
        """Open an atlas and a network.

        Args:
            atlas: the store of transcripts, or its path.
            checkpoint: the network.
            asked: names of the genes.
            **options: ``roi``, ``slices``, ``device``, ``genes`` (names of the network's genes), ``missing_genes`` and
                ``map_genes`` as for ``teramind.generate.generate``.
        """
        self.job = Job(atlas, checkpoint, Path("maps"), run_options(**options))
        check_gene_attention(self.job.config)
        self.panel = self.job.panel.names or self.job.atlas.genes
        self.genes = gene_indices(asked, self.panel)
        self.gene_names = list(asked)
        unread = [name for name, gene in zip(asked, self.genes, strict=True) if self.job.panel.columns[gene] < 0]
        if unread:
            raise InputError(f"the atlas lacks {', '.join(unread)}, so there is nothing to map: ask for genes it has")
        area = self.job.frame.output
        self.bins = Rectangle(
            area.y0 // BIN_SIZE, ceil_div(area.y1, BIN_SIZE), area.x0 // BIN_SIZE, ceil_div(area.x1, BIN_SIZE)
        )
        self.net = self.job.net.to(self.job.devices[0])

    def counts(self, window: int, place: Rectangle) -> npt.NDArray[np.uint16]:
        """What the network sees: (G, 4, h, w) counts of a place in bins, which may reach beyond the atlas."""
        start = self.job.windows[window].gene_start
        y0, y1, x0, x1 = (side * BIN_SIZE for side in place)
        return self.job.panel.select(self.job.atlas.gene_window(start, start + WINDOW_SLICES, y0, y1, x0, x1))

    def read(self, window: int, place: Rectangle) -> npt.NDArray[np.float32]:
        """Maps of a place in bins, whatever tiles it is computed in.

        Args:
            window: number of the z-window.
            place: in bins of the atlas frame, on the network's patch grid but for its end.

        Returns:
            (4, K, 2, h, w).
        """
        maps = np.empty((len(QUANTITIES), len(self.genes), IMAGE_SLICES, *place.shape), np.float32)
        for rows, columns, part in self.tiles(window, place):
            maps[..., rows, columns] = part
        return maps

    def tiles(self, window: int, place: Rectangle) -> Iterator[tuple[slice, slice, npt.NDArray[np.float32]]]:
        """The same, one tile in memory at a time: its rows and columns within the place, and its maps."""
        side = self.tile_side()
        for y in range(place.y0, place.y1, side):
            for x in range(place.x0, place.x1, side):
                tile = Rectangle(y, min(y + side, place.y1), x, min(x + side, place.x1))
                rows, columns = (slice(y - place.y0, tile.y1 - place.y0), slice(x - place.x0, tile.x1 - place.x0))
                yield rows, columns, self._read_tile(window, tile)

    def tile_side(self) -> int:
        """Bins along a side of a tile: whole patches, and the fewer the more genes there are."""
        side, patch = TILE, self.job.config.patch_bins
        of_a_bin = len(QUANTITIES) * len(self.genes) * IMAGE_SLICES * np.dtype(np.float32).itemsize
        while of_a_bin * side**2 > TILE_BYTES and side % (2 * patch) == 0:
            side //= 2
        return side

    def _read_tile(self, window: int, tile: Rectangle) -> npt.NDArray[np.float32]:
        """The encoder's patches lie half a patch off the grid: so much more is read on each side, and cut off."""
        patch = self.job.config.patch_bins
        margin = patch // 2
        height, width = (ceil_div(side, patch) * patch for side in tile.shape)
        around = Rectangle(tile.y0 - margin, tile.y0 + height + margin, tile.x0 - margin, tile.x0 + width + margin)
        maps = interaction_maps(self.net, self.counts(window, around), self.genes)
        return maps[..., margin : margin + tile.shape[0], margin : margin + tile.shape[1]]

    def image_slices(self, window: int) -> tuple[int, int, int]:
        """First slice of the window in the output, first of them in the window, and how many are wanted."""
        start = self.job.windows[window].image_start
        first, end = max(start, self.job.slices[0]), min(start + IMAGE_SLICES, self.job.slices[1])
        return first - self.job.slices[0], first - start, end - first

    def identity(self) -> dict[str, Any]:
        """All that decides about the maps: a run that goes on has to have the same."""
        shared = ("atlas", "checkpoint", "genes", "missing_genes", "map_genes", "region", "slices")
        whole = self.job.identity()
        return {name: whole[name] for name in shared} | {"asked": self.gene_names}


def write_maps(
    source: MapSource, output: Path, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> MapReport:
    """Write the maps of a region as an OME-Zarr image (c, z, y, x; float32) at bin resolution.

    Its channels are those of ``channel_names``; its place is that of the generated image, so that both overlay. It can
    be killed at any moment; ``resume`` keeps the blocks that were done.

    Args:
        source: what to map.
        output: the image's folder.
        resume: go on with an unfinished image, if there is one.
        overwrite: replace an earlier one.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        InputError: the folder may not be written, or was begun with something else.
        Interrupted: after SIGTERM or SIGINT.
        OSError: no room left on the disk.
    """
    if resume and overwrite:
        raise InputError(f"{output} can be gone on with or be replaced: choose either --resume or --overwrite")
    with OutputLock(output):
        if resume and output.exists():
            if MapStore.check_resumable(output, source.identity()):
                return MapReport(output, 0, 0.0)
            store = MapStore(output)
        else:
            store = MapStore.create(output, **_description(source), overwrite=overwrite)
        report = _fill(source, store, progress)
        store.finish()
    return report


def _description(source: MapSource) -> dict[str, Any]:
    job = source.job
    first, end = job.slices
    pixel = job.atlas.pixel_size
    half = (BIN_SIZE - 1) / 2  # px from the centre of a bin's first pixel to its own
    area = job.frame.output
    parameters: Mapping[str, Any] = {
        **source.identity(),
        "panel_size": len(source.panel),
        "slice_z": job.atlas.slice_z[first:end],
        "checkpoint_name": job.checkpoint.name,
    }
    return {
        "genes": source.gene_names,
        "shape": (end - first, *source.bins.shape),
        "pixel_size": (z_spacing(job.atlas), BIN_SIZE * pixel, BIN_SIZE * pixel),
        "translation": (job.atlas.slice_z[first], (area.y0 + half) * pixel, (area.x0 + half) * pixel),
        "parameters": parameters,
    }


def _fill(source: MapSource, store: MapStore, progress: bool) -> MapReport:
    """Compute the blocks that are not done."""
    start, bins = perf_counter(), 0
    blocks = list(store.blocks(len(source.job.windows)))
    hidden = not (progress and sys.stderr.isatty())
    total = sum(_size(source, store, block) for block in blocks)
    done = sum(_size(source, store, block) for block in store.done)
    with (
        stop_signals() as received,
        tqdm(total=total, initial=done, unit="bin", unit_scale=True, disable=hidden) as bar,
    ):
        for block in blocks:
            if block in store.done:
                continue
            if received:
                share = len(store.done) / len(blocks)
                raise Interrupted(f"stopped at {share:.0%} of the blocks; --resume goes on from there", received[0])
            y0, y1, x0, x1 = store.places(block.row, block.column)
            place = Rectangle(y0 + source.bins.y0, y1 + source.bins.y0, x0 + source.bins.x0, x1 + source.bins.x0)
            z, first, count = source.image_slices(block.window)
            with store.gather(block, len(source.genes), count) as gathered:
                for rows, columns, maps in source.tiles(block.window, place):
                    gathered.put(rows, columns, maps[:, :, first : first + count])
                store.write(block, z, gathered.channels())
            bins += _size(source, store, block)
            bar.update(_size(source, store, block))
    return MapReport(store.path, bins, perf_counter() - start)


def _size(source: MapSource, store: MapStore, block: Block) -> int:
    """Bins of a block, all its slices."""
    return store.places(block.row, block.column).area * source.image_slices(block.window)[2]
