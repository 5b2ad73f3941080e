"""The atlases that crops are read from, with their genes in the network's order; small ones are kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teramind.atlas.panel import INTERSECTION, read_genes, shortened
from teramind.atlas.store import Atlas
from teramind.engine.panel import Panel, match_genes
from teramind.errors import InputError
from teramind.model.config import BIN_SIZE
from teramind.train.crops import Volume

logger = logging.getLogger(__name__)
SAME_PIXEL_SIZE = 0.01  # two atlases' may differ by so much of it


class StoredVolume:
    """Reads from the store, some of the atlas's genes."""

    def __init__(self, atlas: Atlas, panel: Panel) -> None:
        self.atlas, self.panel = atlas, panel

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint16]:
        """See ``Volume``."""
        return self.panel.select(self.atlas.gene_window(z0, z1, y0, y1, x0, x1))

    def image_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """See ``Volume``."""
        return self.atlas.image_window(z0, z1, y0, y1, x0, x1)


class MemoryVolume:
    """Holds a whole atlas, decoded: reading a region is a copy of a few rows."""

    def __init__(self, atlas: Atlas, panel: Panel) -> None:
        slices, height, width = atlas.shape
        rows, columns = -(-height // BIN_SIZE), -(-width // BIN_SIZE)
        self.images = np.empty((len(atlas.stains), *atlas.shape), np.uint8)
        self.counts = np.empty((slices, rows, columns, len(panel.columns)), np.uint16)  # a bin's genes lie together
        for z in range(slices):
            self.images[:, z : z + 1] = atlas.image_window(z, z + 1, 0, height, 0, width)
            for row in range(0, rows, 64):  # a dense slice of all genes would be far larger than what is kept
                end = min(rows, row + 64)
                box = (z, z + 1, row * BIN_SIZE, end * BIN_SIZE, 0, columns * BIN_SIZE)
                self.counts[z, row:end] = panel.select(atlas.gene_window(*box))[:, 0].transpose(1, 2, 0)

    @staticmethod
    def bytes_of(atlas: Atlas, genes: int) -> int:
        """What an atlas takes."""
        slices, height, width = atlas.shape
        bins = -(-height // BIN_SIZE) * -(-width // BIN_SIZE)
        return slices * (len(atlas.stains) * height * width + 2 * genes * bins)

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint16]:
        """See ``Volume``; only z may reach outside."""
        first, end = max(0, z0), min(len(self.counts), z1)
        box = self.counts[first:end, y0 // BIN_SIZE : y1 // BIN_SIZE, x0 // BIN_SIZE : x1 // BIN_SIZE]  # (z, h, w, G)
        window = np.zeros((box.shape[-1], z1 - z0, *box.shape[1:3]), np.uint16)
        window[:, first - z0 : end - z0] = box.transpose(3, 0, 1, 2)
        return window

    def image_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """See ``Volume``; only z may reach outside."""
        first, end = max(0, z0), min(self.images.shape[1], z1)
        box = self.images[:, first:end, y0:y1, x0:x1]
        window = np.zeros((len(box), z1 - z0, *box.shape[2:]), np.uint8)
        window[:, first - z0 : end - z0] = box
        return window


def open_volumes(atlases: Sequence[Atlas], genes: Sequence[str], memory: int) -> list[Volume]:
    """The atlases as volumes, in memory as long as ``memory`` bytes last."""
    volumes: list[Volume] = []
    for atlas in atlases:
        panel = match_genes(genes, len(genes), atlas.genes)
        size = MemoryVolume.bytes_of(atlas, len(genes))
        if size <= memory:
            memory -= size
            volumes.append(MemoryVolume(atlas, panel))
        else:
            logger.info("%s takes %.1f GB in memory and is read from its store", atlas.path, size / 1e9)
            volumes.append(StoredVolume(atlas, panel))
    return volumes


def check_alike(atlases: Sequence[Atlas]) -> None:
    """Whether one network can learn from them all.

    Raises:
        InputError: for an atlas without images, or with other stains or pixels than the first.
    """
    first = atlases[0]
    for atlas in atlases:
        if not atlas.has_images:
            raise InputError(f"{atlas.path} has no images to learn from: ingest the data with their stains")
        if atlas.stains != first.stains:
            raise InputError(
                f"{atlas.path} has the stains {', '.join(atlas.stains)} and {first.path} "
                f"{', '.join(first.stains)}: train on atlases with the same"
            )
        if abs(atlas.pixel_size / first.pixel_size - 1) > SAME_PIXEL_SIZE:
            raise InputError(
                f"a pixel of {atlas.path} is {atlas.pixel_size} um and one of {first.path} {first.pixel_size} um: "
                "ingest both at one --pixel-size"
            )


def panel_of(atlases: Sequence[Atlas], genes: str | None) -> list[str]:
    """The genes to train on, in the order of the network's gene axis.

    Args:
        atlases: all that are trained or tested on.
        genes: "intersection": those of all atlases, in the first one's order; a file with a name a line, or a published
            list's name; None where all atlases have the same.

    Raises:
        InputError: where the atlases differ and nothing was chosen, or lack a gene that was.
    """
    first = atlases[0]
    if genes == INTERSECTION:
        common = set.intersection(*(set(atlas.genes) for atlas in atlases))
        if not common:
            raise InputError(f"no gene is in all of {', '.join(str(atlas.path) for atlas in atlases)}")
        return [gene for gene in first.genes if gene in common]
    if genes is not None:
        names = read_genes(genes)
        for atlas in atlases:
            if lacking := [name for name in names if name not in set(atlas.genes)]:
                raise InputError(f"{atlas.path} lacks {shortened(lacking)} of {genes}; take them off the list")
        return names
    for atlas in atlases:
        if differing := sorted(set(atlas.genes) ^ set(first.genes)):
            raise InputError(
                f"the genes of {first.path} and {atlas.path} differ ({shortened(differing)}): "
                "choose with --genes intersection or a file"
            )
    return list(first.genes)
