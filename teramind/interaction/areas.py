"""Where genes are changed: a rectangle, a region of the atlas, a mask, or everywhere."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as Picture

from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.atlas.store import Atlas
from teramind.engine.frame import as_rectangle, describe, snapped_outward
from teramind.engine.plan import Rectangle
from teramind.errors import InputError

Mask = npt.NDArray[np.bool_]


class Area(Protocol):
    """Bins of an atlas.

    Attributes:
        name: for tables, and to tell two areas apart.
    """

    name: str

    def mask(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Mask:
        """Which bins of a window, given as for ``Atlas.gene_window``, are in it: (z1 - z0, h, w)."""

    def bounds(self) -> Rectangle | None:
        """A rectangle around it, px; None for all of the atlas."""


@dataclass(frozen=True)
class Everywhere:
    """All bins."""

    name = "everywhere"

    def mask(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Mask:
        """See ``Area``."""
        return np.ones((z1 - z0, (y1 - y0) // BIN_SIZE, (x1 - x0) // BIN_SIZE), bool)

    def bounds(self) -> Rectangle | None:
        """See ``Area``."""
        return None


class Box:
    """The bins that a rectangle touches, in all slices.

    Args:
        place: px of the atlas frame.
    """

    def __init__(self, place: Rectangle) -> None:
        self._place = snapped_outward(place, BIN_SIZE)
        self.name = f"px {describe(self._place)}"

    def mask(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Mask:
        """See ``Area``."""
        top, bottom, left, right = self._place
        y, x = np.arange(y0, y1, BIN_SIZE), np.arange(x0, x1, BIN_SIZE)
        plane = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        return np.broadcast_to(plane, (z1 - z0, *plane.shape))

    def bounds(self) -> Rectangle | None:
        """See ``Area``."""
        return self._place


class NamedRegion:
    """A region of the atlas' map of regions.

    Raises:
        InputError: the atlas has no such region, or the region no bins.
    """

    def __init__(self, atlas: Atlas, name: str) -> None:
        names = atlas.region_names or {}
        labels = [label for label, known in names.items() if known == name]
        if not labels:
            raise InputError(
                f"{name!r} is neither y0:y1,x0:x1, nor a mask's file, nor a region of the atlas, which has "
                f"{', '.join(names.values()) or 'none'}"
            )
        self.name = name
        self._atlas, self._label = atlas, labels[0]
        slices, height, width = atlas.shape
        sides = [ceil_div(side, BIN_SIZE) * BIN_SIZE for side in (height, width)]
        # Slice by slice: the labels of a whole brain are gigabytes.
        self._bounds = _around(self.mask(z, z + 1, 0, sides[0], 0, sides[1])[0] for z in range(slices))
        if not self._bounds.area:
            raise InputError(f"the region {name} has no bins in the atlas: there is nothing to change")

    def mask(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Mask:
        """See ``Area``."""
        return np.asarray(self._atlas.region_window(z0, z1, y0, y1, x0, x1) == self._label)

    def bounds(self) -> Rectangle | None:
        """See ``Area``."""
        return self._bounds


class BinMask:
    """Bins given one by one.

    Args:
        bins: (slices, h, w) or (h, w) for all slices; not 0 is in.
        shape: of the atlas: slices, and height and width in px.
        name: see ``Area``.

    Raises:
        InputError: the mask has another shape, or is empty.
    """

    def __init__(self, bins: npt.NDArray[Any], shape: tuple[int, int, int], name: str) -> None:
        expected = shape[0], ceil_div(shape[1], BIN_SIZE), ceil_div(shape[2], BIN_SIZE)
        if bins.shape not in (expected, expected[1:]):
            raise InputError(
                f"the mask {name} is {' x '.join(map(str, bins.shape))}; the atlas has "
                f"{' x '.join(map(str, expected))} (slices and) bins of 16 px"
            )
        marked = bins != 0
        if not marked.any():
            raise InputError(f"the mask {name} is empty: mark the bins that are to be changed")
        self.name = f"{name} ({hashlib.sha256(np.packbits(marked).tobytes()).hexdigest()[:8]})"
        self._bins = np.broadcast_to(marked, expected)
        self._bounds = _around(marked if marked.ndim == 3 else marked[None])

    def mask(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Mask:
        """See ``Area``."""
        low = np.array([z0, y0 // BIN_SIZE, x0 // BIN_SIZE])
        high = np.array([z1, y1 // BIN_SIZE, x1 // BIN_SIZE])
        out = np.zeros(high - low, bool)
        first, end = np.maximum(low, 0), np.minimum(high, self._bins.shape)
        if (first < end).all():
            inside = tuple(map(slice, first, end))
            out[tuple(map(slice, first - low, end - low))] = self._bins[inside]
        return out

    def bounds(self) -> Rectangle | None:
        """See ``Area``."""
        return self._bounds


def find_area(text: str | None, atlas: Atlas) -> Area:
    """What a user names: ``y0:y1,x0:x1`` in px, the file of a mask of bins (.npy, .tif, .png), or a region's name.

    Raises:
        InputError: it is none of these, or outside the atlas.
    """
    if text is None:
        return Everywhere()
    if re.fullmatch(r"[\d:,\s]+", text):
        return Box(as_rectangle(text, *atlas.shape[1:]))
    if Path(text).is_file():
        return BinMask(_read_mask(Path(text)), atlas.shape, Path(text).name)
    return NamedRegion(atlas, text)


def _read_mask(path: Path) -> npt.NDArray[Any]:
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix in (".tif", ".tiff"):
            return np.asarray(tifffile.imread(path))
        return np.asarray(Picture.open(path).convert("L"))
    except (OSError, EOFError, ValueError, struct.error, tifffile.TiffFileError) as error:
        raise InputError(
            f"the mask {path} cannot be read ({error}); give .npy, .tif or .png, one pixel a bin"
        ) from None


def _around(planes: Iterable[Mask]) -> Rectangle:
    """A rectangle in px around the bins of planes (h, w) of one shape; of no area if there are none."""
    shadows = [(plane.any(axis=1), plane.any(axis=0)) for plane in planes]
    edges = []
    for side in zip(*shadows, strict=True):
        there = np.flatnonzero(np.any(side, axis=0))
        edges += [there[0], there[-1] + 1] if len(there) else [0, 0]
    return Rectangle(*(int(edge) * BIN_SIZE for edge in edges))
