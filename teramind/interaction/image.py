"""Reads finished maps: planes of a quantity, at any level of the pyramid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from teramind.errors import InputError
from teramind.interaction.store import KIND, SUM, channel_names
from teramind.ngff import image_pixel_size, image_translation, open_levels
from teramind.ngff.pyramid import mean_of_squares
from teramind.output.ome_zarr import output_attributes

SQUARE_LEVEL = 2
"""Of the pyramid: its values are means of 4 x 4 bins, at which attention is regressed."""

Plane = npt.NDArray[np.float32]


class MapImage:
    """Finished maps of some genes.

    Attributes:
        path: the folder.
        genes: names.
        panel_size: G, the network's genes.
        slice_z: position of every slice, um.
        first_slice: number of the first slice in the atlas.
        shape: slices, and height and width in bins.
        bin_size: side of a bin, um.
        corner: outer corner of the first bin, um, y and x, from the centre of the atlas' first pixel.
        parameters: of the run that made them.

    Raises:
        InputError: it is no such image, or not finished.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        about = output_attributes(self.path, KIND)
        if not about["complete"]:
            raise InputError(f"{self.path} is not finished: go on with it with --resume")
        self.parameters: dict[str, Any] = about["parameters"]
        self.genes: list[str] = self.parameters["asked"]
        self.panel_size: int = self.parameters["panel_size"]
        self.slice_z: list[float] = self.parameters["slice_z"]
        self.first_slice: int = self.parameters["slices"][0]
        group = zarr.open_group(self.path, mode="r")
        self._levels = open_levels(group)
        self._channels = {name: number for number, name in enumerate(channel_names(self.genes))}
        _, depth, height, width = self._levels[0].shape
        self.shape = depth, height, width
        self.bin_size = image_pixel_size(group)[2]
        _, y, x = image_translation(group)
        self.corner = y - self.bin_size / 2, x - self.bin_size / 2

    def read(
        self, quantity: str, z: int, *, gene: str | None = None, level: int = 0, rows: slice = slice(None)
    ) -> Plane:
        """A plane of a quantity.

        Args:
            quantity: one of ``QUANTITIES``.
            z: the slice in the image.
            gene: its name; the sum of all if None.
            level: of the pyramid; each halves the sides.
            rows: of that level.

        Returns:
            (h, w) float32.
        """
        name = gene or (SUM if len(self.genes) > 1 else self.genes[0])
        return np.asarray(self._levels[level][self._channels[f"{quantity} {name}"], z, rows])

    def read_squares(self, quantity: str, z: int, *, gene: str | None = None) -> Plane:
        """Means of squares of 4 x 4 bins, those that are cut by the image's end too: (ceil(h/4), ceil(w/4))."""
        level = min(SQUARE_LEVEL, len(self._levels) - 1)
        plane = self.read(quantity, z, gene=gene, level=level)
        for _ in range(level, SQUARE_LEVEL):
            plane = mean_of_squares(plane)
        return plane

    def together(self, z: int) -> npt.NDArray[np.bool_]:
        """The squares of 4 x 4 bins, as ``read_squares``, in which all genes are expressed; none that is cut."""
        _, height, width = self.shape
        everywhere = np.zeros([-(-side // 2**SQUARE_LEVEL) for side in (height, width)], bool)
        everywhere[: height // 2**SQUARE_LEVEL, : width // 2**SQUARE_LEVEL] = True
        for gene in self.genes:
            everywhere &= self.read_squares("expression", z, gene=gene) > 0
        return everywhere

    def most_expressed(self, most: int) -> list[str]:
        """So many genes at most, those with most transcripts in all slices together, in the order of ``genes``."""
        coarsest = self._levels[-1]
        totals = {
            gene: float(np.sum(coarsest[self._channels[f"expression {gene}"]], dtype=np.float64)) for gene in self.genes
        }
        chosen = sorted(self.genes, key=lambda gene: -totals[gene])[:most]
        return [gene for gene in self.genes if gene in chosen]

    def level_for(self, side: int) -> int:
        """The finest level with no side longer than this, or the coarsest there is."""
        fitting = [number for number, level in enumerate(self._levels) if max(level.shape[2:]) <= side]
        return fitting[0] if fitting else len(self._levels) - 1
