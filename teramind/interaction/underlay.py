"""The nuclear stain under a map: a plane of an OME-Zarr image, cut to the map's place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image as Picture

from teramind.atlas.layout import IMAGES
from teramind.atlas.store import Atlas
from teramind.errors import InputError
from teramind.evaluate.sources import GeneratedImage
from teramind.ngff import image_channels, image_pixel_size, image_translation, open_levels

NUCLEAR_STAIN = "DAPI"
"""Drawn under maps where none is asked for."""


class Underlay:
    """A stain that maps are drawn over, read from the level of its pyramid that suits the picture.

    Attributes:
        name: what it is, for a caption.
    """

    def __init__(self, group: zarr.Group, stain: int, first_slice: int, name: str) -> None:
        self.name = name
        self._stain, self._first_slice = stain, first_slice
        self._levels = open_levels(group)
        self._pixel_size = image_pixel_size(group)[2]
        _, y, x = image_translation(group)
        self._corner = y - self._pixel_size / 2, x - self._pixel_size / 2

    @classmethod
    def of_atlas(cls, atlas: Atlas, stain: str | None = None) -> Underlay | None:
        """The measured stain; by default DAPI, and None if the atlas has no image of it.

        Raises:
            InputError: a stain is asked for, and the atlas has no image of it.
        """
        names = [name.casefold() for name in atlas.stains] if atlas.has_images else []
        wanted = stain or NUCLEAR_STAIN
        if wanted.casefold() not in names:
            if stain is None:
                return None
            has = f"it has {', '.join(atlas.stains)}" if names else "it has no images; --image takes a generated one"
            raise InputError(f"the atlas has no image of the stain {stain}: {has}")
        group = zarr.open_group(atlas.path, path=IMAGES, mode="r")
        return cls(group, names.index(wanted.casefold()), 0, f"{wanted} as measured")

    @classmethod
    def of_image(cls, path: str | os.PathLike[str], atlas: Atlas, stain: str | None = None) -> Underlay:
        """The stain of a generated image; by default DAPI.

        Raises:
            InputError: it is no image of this atlas' tissue, or has no such stain.
        """
        stain = stain or NUCLEAR_STAIN
        extent = GeneratedImage(path, atlas).extent
        group = zarr.open_group(Path(path), mode="r")
        names = [channel.name.casefold() for channel in image_channels(group)]
        if stain.casefold() not in names:
            raise InputError(f"{path} has no stain {stain}; it has {', '.join(names)}")
        return cls(group, names.index(stain.casefold()), extent.slices[0], f"{stain} of {Path(path).name}")

    def read(
        self, z: int, corner: tuple[float, float], side: float, shape: tuple[int, int]
    ) -> npt.NDArray[np.float32] | None:
        """Cut it to a grid.

        Args:
            z: slice of the atlas.
            corner: outer corner of the grid, um, y and x.
            side: of the grid's squares, um.
            shape: rows and columns of the grid.

        Returns:
            (h, w) from 0 to 1, black where the image does not reach; None if it lacks the slice.
        """
        index = z - self._first_slice
        if not 0 <= index < self._levels[0].shape[1]:
            return None
        level = max(n for n in range(len(self._levels)) if n == 0 or self._pixel_size * 2**n <= side)
        array, size = self._levels[level], self._pixel_size * 2**level
        bounds = [
            (round((start - own) / size), round((start + count * side - own) / size))
            for start, own, count in zip(corner, self._corner, shape, strict=True)
        ]
        picture = Picture.fromarray(_cut(array, self._stain, index, bounds))
        resized = picture.resize((shape[1], shape[0]), Picture.Resampling.BOX)
        return np.asarray(resized, dtype=np.float32) / np.float32(255)


def _cut(array: zarr.Array[Any], stain: int, z: int, bounds: list[tuple[int, int]]) -> npt.NDArray[np.uint8]:
    """A rectangle of a plane that may reach beyond it."""
    out = np.zeros([end - start for start, end in bounds], np.uint8)
    inside = [(max(0, start), min(size, end)) for (start, end), size in zip(bounds, array.shape[2:], strict=True)]
    if all(low < high for low, high in inside):
        target = tuple(slice(low - start, high - start) for (low, high), (start, _) in zip(inside, bounds, strict=True))
        (top, bottom), (left, right) = inside
        out[target] = np.asarray(array[stain, z, top:bottom, left:right])
    return out
