"""The difference of two images: as an OME-Zarr image, and as a picture beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image as Picture

from teramind.evaluate.report.pictures import difference_picture
from teramind.files import fsync
from teramind.ngff import (
    Channel,
    build_pyramid,
    image_channels,
    image_pixel_size,
    image_translation,
    level_encoder,
    open_levels,
)
from teramind.output.ome_zarr import create_output, mark_complete, output_attributes
from teramind.output.preview import composite, side_by_side

KIND = "difference image"
CHUNK = 1024
LARGEST_PANEL = 900
"""Px of the longer side of a panel of the picture at most."""

_SHOWN = 64.0  # grey levels of difference in full colour
_SCAN = 256  # px of the longer side of the level that the slice with the largest difference is looked for in, at most


def write_difference(before: Path, after: Path, output: Path) -> None:
    """Write ``after - before`` of two images of one shape as OME-Zarr (int16), replacing an earlier one."""
    first, second = (zarr.open_group(path, mode="r") for path in (before, after))
    arrays = [open_levels(group)[0] for group in (first, second)]
    channels = [
        Channel(one.name, one.color, window_min=-255, window_max=255, window_start=0, window_end=_SHOWN)
        for one in image_channels(first)
    ]
    create_output(
        output, kind=KIND, overwrite=output.exists(), shape=arrays[0].shape, channels=channels, dtype="int16",
        pixel_size=image_pixel_size(first), translation=image_translation(first), chunk=CHUNK, shard=CHUNK,
        parameters=output_attributes(after)["parameters"],
    )  # fmt: skip
    group = zarr.open_group(output, mode="r+")
    encoder = level_encoder(group)
    count, slices, height, width = arrays[0].shape
    for c, z in np.ndindex(count, slices):
        for row, y in enumerate(range(0, height, CHUNK)):
            for column, x in enumerate(range(0, width, CHUNK)):
                place = (c, z, slice(y, y + CHUNK), slice(x, x + CHUNK))
                values = np.asarray(arrays[1][place]).astype(np.int16) - np.asarray(arrays[0][place])
                path = encoder.write((c, z, row, column), values)
                if path is not None:
                    fsync(path)
    build_pyramid(group)
    mark_complete(output, KIND)


def difference_panels(before: Path, after: Path, nuclear: int) -> tuple[int, Picture.Image]:
    """The slice that changes most: without and with the change, and their difference in one stain.

    Returns:
        Number of the slice in the images, and the picture.
    """
    first, second = (zarr.open_group(path, mode="r") for path in (before, after))
    levels = [open_levels(group) for group in (first, second)]
    z = _most_changed(*(array[_level(array, _SCAN)] for array in levels))
    level = _level(levels[0], LARGEST_PANEL)
    planes = [np.asarray(array[level][:, z]) for array in levels]
    channels = image_channels(first)
    colors = [channel.color for channel in channels]
    panels = {
        "before": composite(planes[0], colors),
        "after": composite(planes[1], colors),
        f"difference in {channels[nuclear].name}": difference_picture(planes[0][nuclear], planes[1][nuclear]),
    }
    return z, side_by_side(panels, pixel_size_um=image_pixel_size(first)[2] * 2**level, max_side=LARGEST_PANEL)


def _most_changed(before: zarr.Array[Any], after: zarr.Array[Any]) -> int:
    changes = [
        np.square(np.asarray(after[:, z]).astype(np.float64) - np.asarray(before[:, z])).sum()
        for z in range(before.shape[1])
    ]
    return int(np.argmax(changes))


def _level(levels: list[zarr.Array[Any]], side: int) -> int:
    """The finest level with no side longer than this, or the coarsest there is."""
    return next((n for n, array in enumerate(levels) if max(array.shape[2:]) <= side), len(levels) - 1)
