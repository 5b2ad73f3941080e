"""Pyramidal, tiled, compressed OME-TIFF, one file a slice, for QuPath and whatever else reads Bio-Formats.

Sub-resolutions are SubIFDs, as OME-TIFF has them since 2019: https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/
specification.html#supporting-sub-resolutions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from tifffile import TiffWriter

from teramind.files import appears_whole
from teramind.ngff import Channel, image_channels, image_pixel_size, image_translation, open_levels

TILE = 512
# Rows read at once: those of a chunk, so that each is decoded once. At 106,000 px of width a band is 108 MB.
BAND = 1024
BUFFERED = 1 << 25  # bytes of tiles that tifffile collects before its threads compress them
ZLIB_LEVEL = 4  # three times as fast as the default 6 on one core, for files 1 % larger (textured tissue, predictor)
SMALLEST = 1024  # px of the longer side below which no further sub-resolution is written

Region = tuple[tuple[int, int], tuple[int, int]]  # (y0, y1), (x0, x1) in px of the finest level


def snapped_region(group: zarr.Group, region: Region) -> Region:
    """Return the region enlarged to whole pixels of the coarsest sub-resolution that its file will hold."""
    step = 2 ** (len(_file_levels(group, region)) - 1)
    height, width = open_levels(group)[0].shape[2:]
    (y0, y1), (x0, x1) = region
    y1, x1 = min(height, -(-y1 // step) * step), min(width, -(-x1 // step) * step)
    enlarged = (y0 // step * step, y1), (x0 // step * step, x1)
    # A larger region may earn one more level, whose pixels are larger still.
    return region if enlarged == region else snapped_region(group, enlarged)


def write_ome_tiff(path: str | Path, group: zarr.Group, *, z: int, region: Region) -> None:
    """Write one slice of an OME-Zarr image as an OME-TIFF with all its channels, lossless.

    Pixels are copied from the image's own pyramid in bands, so memory does not depend on the height.

    Args:
        path: of the file, which appears when it is whole.
        group: the image.
        z: the slice.
        region: from `snapped_region`.

    Raises:
        OSError: if the disk is full, with the file's name; nothing is left behind.
    """
    (y0, y1), (x0, x1) = region
    levels = _file_levels(group, region)
    _, dy, dx = image_pixel_size(group)
    with appears_whole(path) as partial, TiffWriter(partial, bigtiff=True, ome=True) as tiff:
        for level, array in enumerate(levels):
            factor = 2**level
            rows, columns = (y0 // factor, -(-y1 // factor)), (x0 // factor, -(-x1 // factor))
            tiff.write(
                _tiles(array, z, rows, columns),
                shape=(array.shape[0], 1, rows[1] - rows[0], columns[1] - columns[0]),
                dtype=array.dtype,
                tile=(TILE, TILE),
                compression="zlib",
                compressionargs={"level": ZLIB_LEVEL},
                predictor=True,
                photometric="minisblack",
                resolutionunit="CENTIMETER",
                resolution=(1e4 / (dx * factor), 1e4 / (dy * factor)),
                maxworkers=os.cpu_count(),
                buffersize=BUFFERED,
                subifds=len(levels) - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
                metadata=_ome_metadata(group, z, region) if level == 0 else None,
            )


def _file_levels(group: zarr.Group, region: Region) -> list[zarr.Array[Any]]:
    """Return the levels that make sense for a region of this size."""
    longer = max(stop - start for start, stop in region)
    levels = open_levels(group)
    count = next((n for n in range(1, len(levels)) if longer <= SMALLEST * 2 ** (n - 1)), len(levels))
    return levels[:count]


def _tiles(
    array: zarr.Array[Any], z: int, rows: tuple[int, int], columns: tuple[int, int]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a slice's tiles, channel by channel in row-major order, those at the edge filled up with 0."""
    for c in range(array.shape[0]):
        for top in range(*rows, BAND):
            band = np.asarray(array[c, z, top : min(top + BAND, rows[1]), slice(*columns)])
            for y in range(0, band.shape[0], TILE):
                for x in range(0, band.shape[1], TILE):
                    piece = band[y : y + TILE, x : x + TILE]
                    tile = np.zeros((TILE, TILE), dtype=np.uint8)
                    tile[: piece.shape[0], : piece.shape[1]] = piece
                    yield tile


def _ome_metadata(group: zarr.Group, z: int, region: Region) -> dict[str, Any]:
    """Return what the OME-XML says: names, colours, the size of a pixel and where the first one lies."""
    channels = image_channels(group)
    (dz, dy, dx), (tz, ty, tx) = image_pixel_size(group), image_translation(group)
    place = {"X": tx + region[1][0] * dx, "Y": ty + region[0][0] * dy, "Z": tz + z * dz}
    plane: dict[str, Any] = {}
    for axis, position in place.items():
        plane[f"Position{axis}"] = [position] * len(channels)
        plane[f"Position{axis}Unit"] = ["µm"] * len(channels)
    metadata: dict[str, Any] = {
        "axes": "CZYX",
        "Name": f"{Path(str(group.store_path)).name} slice {z}",
        "Channel": {
            "Name": [channel.name for channel in channels],
            "Color": [_ome_color(channel) for channel in channels],
        },
        "Plane": plane,
    }
    for axis, size in (("X", dx), ("Y", dy), ("Z", dz)):
        metadata[f"PhysicalSize{axis}"] = size
        metadata[f"PhysicalSize{axis}Unit"] = "µm"
    about = group.attrs.get("teramind")
    if about is not None:
        metadata["Description"] = json.dumps(about)
    return metadata


def _ome_color(channel: Channel) -> int:
    """Return red, green, blue and full opacity as OME's signed 32-bit number."""
    return int.from_bytes(bytes.fromhex(channel.color) + b"\xff", "big", signed=True)
