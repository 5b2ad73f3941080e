"""Parts of a plane: holes to fill, tissue to stay within."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from teramind.errors import InputError
from teramind.impute.planes import parse_numbers

Points = NDArray[np.float64]


class Region(Protocol):
    """A part of a plane in the plane's two coordinates, mm."""

    @property
    def area(self) -> float:
        """In mm2."""
        ...

    @property
    def bounds(self) -> tuple[Points, Points]:
        """Lower and upper corner (2,) of a box around it."""
        ...

    def contains(self, points: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        """(n,) which of the points (n, 2) lie in the region or within ``margin`` mm of it."""
        ...


@dataclass(frozen=True)
class Disc:
    """All points within ``radius`` mm of ``centre``; what a plane through the centre of a ball cuts out of it."""

    centre: tuple[float, float]
    radius: float

    def __post_init__(self) -> None:
        if not (np.isfinite([*self.centre, self.radius]).all() and self.radius > 0):
            raise InputError(
                f"a hole of radius {self.radius} mm around {self.centre} is empty; its radius has to be > 0"
            )

    @property
    def area(self) -> float:
        return float(np.pi * self.radius**2)

    @property
    def bounds(self) -> tuple[Points, Points]:
        centre = np.asarray(self.centre)
        return centre - self.radius, centre + self.radius

    def contains(self, points: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        squares = ((points - np.asarray(self.centre)) ** 2).sum(axis=1)
        return np.asarray(squares <= (self.radius + margin) ** 2)


@dataclass(frozen=True)
class Polygon:
    """The inside of a closed line through ``vertices``; where it crosses itself, what it winds around oddly often."""

    vertices: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        corners = np.asarray(self.vertices, dtype=np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
            raise InputError("a polygon needs at least three vertices of two numbers")
        if self.area == 0:
            raise InputError("the polygon encloses no area: the hole is empty")

    @property
    def area(self) -> float:
        corners = np.asarray(self.vertices)
        after = np.roll(corners, -1, axis=0)
        return float(abs((corners[:, 0] * after[:, 1] - corners[:, 1] * after[:, 0]).sum()) / 2)

    @property
    def bounds(self) -> tuple[Points, Points]:
        corners = np.asarray(self.vertices)
        return corners.min(axis=0), corners.max(axis=0)

    def contains(self, points: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        corners = np.asarray(self.vertices, dtype=np.float64)
        inside, near = np.zeros(len(points), dtype=bool), np.zeros(len(points), dtype=bool)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            (x0, y0), (x1, y1) = start, end
            if y0 != y1:  # does a ray towards greater x cross this side?
                spans = (points[:, 1] < y0) != (points[:, 1] < y1)
                inside ^= spans & (points[:, 0] < x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0))
            if margin > 0:
                near |= _distance_to_side(points, start, end) <= margin
        return inside | near


@dataclass(frozen=True)
class Mask:
    """Pixels of a plane. A margin around them is measured between the centres of pixels.

    Attributes:
        inside: (rows, columns) bool; rows along the plane's first coordinate.
        origin: coordinates of the lower corner of pixel (0, 0), mm.
        pixel: side of a pixel, mm.
    """

    inside: NDArray[np.bool_]
    origin: tuple[float, float]
    pixel: float

    def __post_init__(self) -> None:
        if self.inside.ndim != 2 or not self.inside.any():
            raise InputError("the mask has no pixel set: the hole is empty")
        if not 0 < self.pixel < np.inf:
            raise InputError(f"the mask's pixel is {self.pixel} mm; it has to be > 0")
        if not np.isfinite(self.origin).all():
            raise InputError(f"the mask's origin is {self.origin}; it has to be two numbers, in mm")

    @property
    def area(self) -> float:
        return float(self.inside.sum() * self.pixel**2)

    @property
    def bounds(self) -> tuple[Points, Points]:
        rows, columns = (np.flatnonzero(self.inside.any(axis=axis)) for axis in (1, 0))
        low = np.array([rows[0], columns[0]]) * self.pixel
        high = np.array([rows[-1] + 1, columns[-1] + 1]) * self.pixel
        return low + self.origin, high + self.origin

    def contains(self, points: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        reach = int(np.ceil(margin / self.pixel)) + 1
        padded = np.pad(self.inside, reach)
        if margin > 0:
            padded = distance_transform_edt(~padded) * self.pixel <= margin
        index = np.floor((points - self.origin) / self.pixel).astype(np.int64) + reach
        return np.asarray(padded[tuple(np.clip(index, 0, np.array(padded.shape) - 1).T)])


def _distance_to_side(points: Points, start: Points, end: Points) -> Points:
    """(n,) distances from the points to the line between two vertices."""
    along = end - start
    length = float(along @ along)
    part = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - start - part[:, None] * along, axis=1)


def parse_region(text: str) -> Region:
    """A region from ``disc:x,y,radius``, ``polygon:x,y,x,y,...`` or ``mask:FILE.npz``.

    Numbers are mm in the plane's coordinates. A mask's file holds the arrays ``inside`` (bool, 2-D), ``origin`` (2)
    and ``pixel``.

    Raises:
        InputError: the text does not read so, the file cannot be read, or the region is empty.
    """
    kind, _, rest = text.partition(":")
    if kind == "mask":
        return _read_mask(rest)
    numbers = parse_numbers(rest) if kind in ("disc", "polygon") else []
    if kind == "disc" and len(numbers) == 3:
        return Disc((numbers[0], numbers[1]), numbers[2])
    if kind == "polygon" and len(numbers) >= 6 and len(numbers) % 2 == 0:
        return Polygon(list(zip(numbers[::2], numbers[1::2], strict=True)))
    raise InputError(f"hole {text!r} does not read as disc:x,y,radius, polygon:x,y,x,y,x,y,... or mask:FILE.npz")


def _read_mask(path: str) -> Mask:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inside, origin, pixel = (np.asarray(arrays[name]) for name in ("inside", "origin", "pixel"))
            return Mask(inside.astype(bool), (float(origin[0]), float(origin[1])), float(pixel))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no mask ({reason}); it has to hold the arrays inside, origin and pixel") from None
