"""The levels of a pyramid from its finest one, shard by shard, for images whose shards are written whole."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from teramind.files import fsync
from teramind.ngff.encoding import ShardEncoder
from teramind.ngff.metadata import open_levels


def level_encoder(group: zarr.Group, level: int = 0) -> ShardEncoder:
    """What writes the shards of one level of an image."""
    return ShardEncoder(open_levels(group)[level])


def build_pyramid(group: zarr.Group) -> None:
    """Write every level but the finest, each the mean of 2 x 2 values of the one below it.

    It reads and writes one shard at a time, and may be called again after it was cut off.

    Args:
        group: an image whose finest level is whole.

    Raises:
        OSError: with the name of the file that could not be written.
    """
    levels = open_levels(group)
    for below, level in itertools.pairwise(levels):
        encoder = ShardEncoder(level)
        rows, columns = encoder.sides
        channels, slices, height, width = level.shape
        places = itertools.product(
            range(channels), range(slices), range(-(-height // rows)), range(-(-width // columns))
        )
        for c, z, row, column in places:
            area = slice(2 * row * rows, 2 * (row + 1) * rows), slice(2 * column * columns, 2 * (column + 1) * columns)
            path = encoder.write((c, z, row, column), mean_of_squares(np.asarray(below[c, z, *area])))
            if path is not None:
                fsync(path)


def mean_of_squares(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mean of every 2 x 2 values; at an odd edge of what is there; integers are rounded, halves up.

    Args:
        values: (h, w).

    Returns:
        (ceil(h / 2), ceil(w / 2)), in the same type.
    """
    height, width = values.shape
    # The mean of one or two values is that of four with the edge repeated.
    padded = np.pad(values, ((0, height % 2), (0, width % 2)), mode="edge").astype(np.float64)
    means = (padded[0::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 0::2] + padded[1::2, 1::2]) / 4
    if np.issubdtype(values.dtype, np.integer):
        means = np.floor(means + 0.5)
    return np.asarray(means.astype(values.dtype))
