"""Planes through the tissue, and positions within them.

The frame is that of the Allen common coordinate framework in mm, in the order (ML, DV, AP). A coronal plane has the
normal (0, 0, 1) and the coordinates (ML, DV); a sagittal one the normal (1, 0, 0) and the coordinates (DV, AP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from teramind.errors import InputError

Positions = NDArray[np.float64]

PARALLEL = 0.9  # an axis this close to the normal (its cosine) does not give the first direction in the plane
ZERO = 1e-9  # components of a unit normal below this are zero


@dataclass(frozen=True)
class Plane:
    """A plane by one of its points and its normal; the normal's length and sign do not matter.

    Attributes:
        point: (ML, DV, AP) of any point on it, mm.
        normal: unit normal whose first component that is not zero is positive.

    Raises:
        InputError: a number that is not finite, or a normal of length zero.
    """

    point: tuple[float, float, float]
    normal: tuple[float, float, float]

    def __post_init__(self) -> None:
        point, normal = (np.asarray(vector, dtype=np.float64) for vector in (self.point, self.normal))
        if point.shape != (3,) or normal.shape != (3,) or not np.isfinite([point, normal]).all():
            raise InputError(f"a plane needs a point and a normal of three numbers, not {self.point} and {self.normal}")
        length = np.linalg.norm(normal)
        if length == 0:
            raise InputError("the plane's normal is (0, 0, 0); give its direction")
        normal = normal / length
        normal[np.abs(normal) < ZERO] = 0
        if normal[np.flatnonzero(normal)[0]] < 0:
            normal = -normal
        object.__setattr__(self, "point", tuple(point.tolist()))
        object.__setattr__(self, "normal", tuple((normal + 0.0).tolist()))  # -0.0 becomes 0.0

    @classmethod
    def coronal(cls, ap: float) -> Self:
        """The plane at one AP coordinate."""
        return cls((0.0, 0.0, ap), (0.0, 0.0, 1.0))

    @classmethod
    def sagittal(cls, ml: float) -> Self:
        """The plane at one ML coordinate."""
        return cls((ml, 0.0, 0.0), (1.0, 0.0, 0.0))

    @cached_property
    def basis(self) -> Positions:
        """(2, 3) unit vectors e1, e2 within the plane."""
        return plane_basis(np.asarray(self.normal)[None])[0]

    @property
    def offset(self) -> float:
        """Distance of the plane from the frame's origin, along the normal, mm."""
        return float(np.dot(self.normal, self.point))

    def offsets(self, positions: Positions) -> Positions:
        """(n,) signed distances of positions (n, 3) from the plane, mm."""
        return positions @ np.asarray(self.normal) - self.offset

    def flatten(self, positions: Positions) -> Positions:
        """(n, 2) coordinates along e1 and e2 of positions (n, 3)."""
        return positions @ self.basis.T

    def lift(self, flat: Positions, offsets: Positions | float = 0.0) -> Positions:
        """(n, 3) positions of coordinates (n, 2) in the plane, moved off it by ``offsets`` mm along the normal."""
        return flat @ self.basis + np.add.outer(offsets, self.offset).reshape(-1, 1) * np.asarray(self.normal)

    def project(self, positions: Positions) -> Positions:
        """(n, 3) the nearest points of the plane."""
        return self.lift(self.flatten(positions))


def plane_basis(normals: Positions) -> Positions:
    """Directions within planes: e1 is the projection of the first axis that is not nearly the normal, e2 = n x e1.

    Args:
        normals: (n, 3) unit vectors.

    Returns:
        (n, 2, 3) orthonormal vectors.
    """
    axis = np.eye(3)[(np.abs(normals[:, 0]) > PARALLEL).astype(int)]
    first = axis - np.einsum("ij,ij->i", axis, normals)[:, None] * normals
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(normals, first)], axis=1)


def parse_plane(text: str) -> Plane:
    """A plane from ``coronal:AP``, ``sagittal:ML`` or six numbers ``x,y,z,nx,ny,nz``.

    Raises:
        InputError: the text does not read so.
    """
    named = {"coronal": Plane.coronal, "sagittal": Plane.sagittal}
    kind, colon, rest = text.partition(":")
    numbers = parse_numbers(rest if colon else text)
    if colon and kind in named and len(numbers) == 1:
        return named[kind](numbers[0])
    if not colon and len(numbers) == 6:
        return Plane((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))
    raise InputError(f"plane {text!r} does not read as coronal:AP, sagittal:ML or x,y,z,nx,ny,nz in mm")


def parse_numbers(text: str) -> Sequence[float]:
    """Numbers separated by commas; an ``InputError`` for anything else."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} does not read as numbers separated by commas") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{text!r} holds a number that is not finite")
    return numbers
