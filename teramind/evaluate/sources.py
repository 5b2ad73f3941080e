"""Where pixels come from: the atlas, a generated image, several samples' mean. All read in px of the atlas frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zarr
import zarr.errors

from teramind.atlas.store import Atlas, is_atlas
from teramind.engine.frame import as_rectangle, as_slices, describe, intersection
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.ngff import image_channels, image_pixel_size, image_translation, open_levels

PIXEL_SIZE_TOLERANCE = 1e-3
PLACE_TOLERANCE = 0.05  # px that an image may lie off the atlas' pixel grid
Z_TOLERANCE = 0.01  # of the slices' least distance

Pixels = npt.NDArray[np.uint8]


class ImageSource(Protocol):
    """An image of the atlas' tissue.

    Attributes:
        name: for tables.
    """

    name: str

    def read(self, z: int, place: Rectangle) -> Pixels:
        """Pixels (stains, h, w) of a slice of the atlas; the place lies within what there is."""


@dataclass(frozen=True)
class Extent:
    """Slices and pixels of an atlas.

    Attributes:
        slices: first and end.
        place: rows and columns, px.
    """

    slices: tuple[int, int]
    place: Rectangle

    @property
    def depth(self) -> int:
        """How many slices."""
        return self.slices[1] - self.slices[0]

    def __str__(self) -> str:
        return f"slices {self.slices[0]}:{self.slices[1]}, px {describe(self.place)}"

    def windows(self, side: int) -> Iterator[tuple[int, Rectangle]]:
        """Slice by slice, windows of at most ``side`` px from the corner on, which cover every pixel once."""
        y0, y1, x0, x1 = self.place
        for z in range(*self.slices):
            for y in range(y0, y1, side):
                for x in range(x0, x1, side):
                    yield z, Rectangle(y, min(y + side, y1), x, min(x + side, x1))

    def padded(self, core: Rectangle, margin: int) -> Rectangle:
        """A window with a margin, as far as there is one."""
        return intersection(
            Rectangle(core.y0 - margin, core.y1 + margin, core.x0 - margin, core.x1 + margin), self.place
        )

    def within(self, roi: str | Sequence[int] | None, slices: str | Sequence[int] | None, atlas: Atlas) -> Extent:
        """The part of it in a region and slices given in the atlas' frame.

        Raises:
            InputError: there is none.
        """
        depth, height, width = atlas.shape
        place = self.place if roi is None else intersection(self.place, as_rectangle(roi, height, width))
        first, end = (0, depth) if slices is None else as_slices(slices, depth)
        part = Extent((max(first, self.slices[0]), min(end, self.slices[1])), place)
        if part.depth <= 0 or not part.place.area:
            raise InputError(f"the region and slices asked for lie outside the image, which has {self}")
        return part


class AtlasImage:
    """Images of an atlas, those of ``stains``.

    Raises:
        InputError: it has no such images.
    """

    def __init__(self, atlas: Atlas, stains: Sequence[str], name: str = "truth") -> None:
        if not atlas.has_images:
            raise InputError(f"{atlas.path} has no images to compare with: ingest the data with their stains")
        self.name = name
        self._atlas = atlas
        self._channels = channel_numbers(stains, atlas.stains, str(atlas.path))

    def read(self, z: int, place: Rectangle) -> Pixels:
        """See ``ImageSource``."""
        return self._atlas.image_window(z, z + 1, *place)[self._channels, 0]


class GeneratedImage:
    """An OME-Zarr image that lies on the pixels and slices of an atlas.

    Attributes:
        name: for tables; the folder's unless set otherwise.
        path: the folder.
        stains: names of its channels.
        extent: what it covers, in the atlas' frame.
        parameters: of the run that made it; empty for an image of someone else's.
        software: that made it, if it says so.

    Raises:
        InputError: it is no such image, unfinished, or does not lie on the atlas' pixels and slices.
    """

    def __init__(self, path: str | os.PathLike[str], atlas: Atlas) -> None:
        self.path = Path(path)
        self.name = self.path.name.removesuffix(".zarr").removesuffix(".ome")
        group = _open_image(self.path)
        about: Any = group.attrs.get("teramind")
        about = about if isinstance(about, dict) else {}
        if about.get("complete") is False:
            raise InputError(f"{self.path} is not finished: resume its run first")
        self.parameters: dict[str, Any] = about.get("parameters") or {}
        self.software: str | None = about.get("software")
        self.stains = [channel.name for channel in image_channels(group)]
        self._array = open_levels(group)[0]
        if self._array.dtype != np.uint8:
            raise InputError(f"{self.path} holds {self._array.dtype} values, but only uint8 images can be compared")
        self.extent = Extent(self._place_slices(group, atlas), self._place_pixels(group, atlas))
        self._channels: Any = slice(None)

    def select(self, stains: Sequence[str]) -> None:
        """Read only these stains, in this order."""
        self._channels = channel_numbers(stains, self.stains, str(self.path))

    def read(self, z: int, place: Rectangle) -> Pixels:
        """See ``ImageSource``."""
        y, x = place.y0 - self.extent.place.y0, place.x0 - self.extent.place.x0
        h, w = place.shape
        pixels = np.asarray(self._array[:, z - self.extent.slices[0], y : y + h, x : x + w])
        selected: Pixels = pixels[self._channels]
        return selected

    def _place_pixels(self, group: zarr.Group, atlas: Atlas) -> Rectangle:
        _, dy, dx = image_pixel_size(group)
        for size in (dy, dx):
            if abs(size / atlas.pixel_size - 1) > PIXEL_SIZE_TOLERANCE:
                raise InputError(
                    f"{self.path} has pixels of {size:g} um and {atlas.path} of {atlas.pixel_size:g} um: compare "
                    "images of one pixel size"
                )
        _, ty, tx = (offset / atlas.pixel_size for offset in image_translation(group))
        y0, x0 = round(ty), round(tx)
        if max(abs(ty - y0), abs(tx - x0)) > PLACE_TOLERANCE:
            raise InputError(f"{self.path} begins at ({ty:.2f}, {tx:.2f}) px of {atlas.path}, between its pixels")
        h, w = self._array.shape[2:]
        place, (_, height, width) = Rectangle(y0, y0 + h, x0, x0 + w), atlas.shape
        if intersection(place, Rectangle(0, height, 0, width)) != place:
            raise InputError(
                f"{self.path} covers {describe(place)} px, which {atlas.path} of {height} x {width} px does not: give "
                "the atlas it was generated from"
            )
        return place

    def _place_slices(self, group: zarr.Group, atlas: Atlas) -> tuple[int, int]:
        """First and end of its slices in the atlas, by their z."""
        depth = self._array.shape[1]
        positions = self.parameters.get("slice_z")
        if positions is None:
            first, step = image_translation(group)[0], image_pixel_size(group)[0]
            positions = [first + number * step for number in range(depth)]
        slice_z = np.array(atlas.slice_z)
        spacing = float(np.diff(slice_z).min()) if len(slice_z) > 1 else atlas.pixel_size
        start = int(np.abs(slice_z - positions[0]).argmin())
        there = slice_z[start : start + depth]
        if len(there) != depth or np.abs(there - positions).max() > Z_TOLERANCE * spacing:
            raise InputError(
                f"{self.path} has {depth} slices from z {positions[0]:g} to {positions[-1]:g} um, which are not slices "
                f"of {atlas.path} ({slice_z[0]:g} to {slice_z[-1]:g} um)"
            )
        return start, start + depth


class MeanImage:
    """The mean of several images, rounded."""

    def __init__(self, name: str, images: Sequence[ImageSource]) -> None:
        self.name = name
        self._images = images

    def read(self, z: int, place: Rectangle) -> Pixels:
        """See ``ImageSource``."""
        total = self._images[0].read(z, place).astype(np.float32)
        for image in self._images[1:]:
            total += image.read(z, place)
        return (total / len(self._images) + 0.5).astype(np.uint8)


def open_other(
    path: str | os.PathLike[str], atlas: Atlas, stains: Sequence[str], extent: Extent, name: str
) -> ImageSource:
    """An image or an atlas of the same tissue.

    Raises:
        InputError: it lacks a stain, or does not cover the extent on the atlas' pixels.
    """
    if is_atlas(Path(path)):
        other = Atlas.open(path)
        if other.shape != atlas.shape or abs(other.pixel_size / atlas.pixel_size - 1) > PIXEL_SIZE_TOLERANCE:
            raise InputError(
                f"{path} has {other.shape} slices and px of {other.pixel_size:g} um, and {atlas.path} {atlas.shape} of "
                f"{atlas.pixel_size:g} um: give another image of the same tissue"
            )
        return AtlasImage(other, stains, name)
    image = GeneratedImage(path, atlas)
    slices, place = image.extent.slices, image.extent.place
    covered = slices[0] <= extent.slices[0] and extent.slices[1] <= slices[1]
    if not covered or intersection(place, extent.place) != extent.place:
        raise InputError(f"{path} covers {image.extent}, and {extent} are to be compared")
    image.select(stains)
    image.name = name
    return image


def channel_numbers(wanted: Sequence[str], there: Sequence[str], where: str) -> list[int]:
    """Where the wanted stains stand; upper and lower case are the same.

    Raises:
        InputError: one is missing.
    """
    numbers = {stain.casefold(): number for number, stain in enumerate(there)}
    missing = [stain for stain in wanted if stain.casefold() not in numbers]
    if missing:
        raise InputError(f"{where} has no stain {missing[0]}; it has {', '.join(there) or 'none'}")
    return [numbers[stain.casefold()] for stain in wanted]


def _open_image(path: Path) -> zarr.Group:
    try:
        group = zarr.open_group(path, mode="r")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is not an OME-Zarr image: give what `teramind generate` wrote") from None
    open_levels(group)
    return group
