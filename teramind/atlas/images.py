"""The images of an atlas that is being written: whole shards in, an OME-NGFF pyramid out."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import zarr

from teramind.atlas.layout import IMAGES, Metadata
from teramind.ngff import Channel, MultiscaleWriter, create_multiscale
from teramind.ngff.colors import stain_colors

SHARD = 4096
CHUNK = 1024


class ImageWriter:
    """Writes ``images`` of a store; see ``AtlasWriter.write_image``.

    Attributes:
        checksum: Of all pixels written so far and their places, in whatever order they came.
    """

    def __init__(self, root: zarr.Group, metadata: Metadata) -> None:
        self._shape = metadata.shape
        slices, (height, width) = len(metadata.slice_z), metadata.shape
        first_z, last_z = metadata.slice_z[0], metadata.slice_z[-1]
        spacing = (last_z - first_z) / (slices - 1) if slices > 1 else 1.0
        group = create_multiscale(
            root.create_group(IMAGES),
            shape=(len(metadata.stains), slices, height, width),
            pixel_size=(spacing, metadata.pixel_size, metadata.pixel_size),
            translation=(first_z, 0.0, 0.0),
            channels=[
                Channel(stain, color)
                for stain, color in zip(metadata.stains, stain_colors(metadata.stains), strict=True)
            ],
            name="images",
            chunk=CHUNK,
            shard=SHARD,
        )
        self._writer = MultiscaleWriter(group)
        grid = -(-height // SHARD), -(-width // SHARD)
        self._written = np.zeros((len(metadata.stains), slices, *grid), dtype=bool)
        self.checksum = 0

    def write(self, slice_index: int, stain_index: int, y0: int, x0: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write whole shards of one plane."""
        starts, sides = (y0, x0), pixels.shape
        for start, side, size in zip(starts, sides, self._shape, strict=True):
            end = start + side
            if start % SHARD or (end % SHARD and end != size) or not 0 <= start < end <= size:
                raise ValueError(
                    f"a window of {sides} px at {starts} is not on the grid of {SHARD} px of an image of {self._shape}"
                )
        self._writer.write(stain_index, slice_index, y0, x0, pixels)
        rows, columns = (
            slice(start // SHARD, -(-(start + side) // SHARD)) for start, side in zip(starts, sides, strict=True)
        )
        self._written[stain_index, slice_index, rows, columns] = True
        for y in range(0, sides[0], SHARD):
            for x in range(0, sides[1], SHARD):
                place = np.array([stain_index, slice_index, y0 + y, x0 + x], dtype="<i8")
                shard = np.ascontiguousarray(pixels[y : y + SHARD, x : x + SHARD])
                self.checksum ^= zlib.crc32(shard.data, zlib.crc32(place.data))

    def finish(self) -> None:
        """Leave what was never written at 0, and write the pyramid to its top.

        Raises:
            OSError: A shard could not be written.
        """
        height, width = self._shape
        touched = np.asarray(self._written.any(axis=0))
        for index, row, column in np.argwhere(~self._written.all(axis=0)).tolist():
            y, x = row * SHARD, column * SHARD
            sides = min(SHARD, height - y), min(SHARD, width - x)
            if not touched[index, row, column]:
                self._writer.skip(index, y, x, (1, *sides))
                continue
            for stain in np.flatnonzero(~self._written[:, index, row, column]).tolist():
                self._writer.write(stain, index, y, x, np.zeros(sides, dtype=np.uint8))
        self._writer.close()

    def abort(self) -> None:
        """End the writer's threads; what they have not written is lost."""
        self._writer.abort()
