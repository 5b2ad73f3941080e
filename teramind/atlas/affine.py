"""Affine maps of the plane: microns to pixels, one section to another.

Conventions, in one place:

- A matrix acts on column vectors ``(x, y, 1)``; x runs along image columns, y along rows.
- Pixel ``i`` of an image covers the interval ``[i, i + 1)``, so a transcript lies in pixel ``floor(x)`` and the
  centre of pixel ``i`` is at ``i + 0.5`` (``PIXEL_CENTRE``). Vizgen states no convention for
  ``micron_to_mosaic_pixel_transform.csv``; its matrix is taken as it stands.
- A 4x4 matrix acts on ``(x, y, z, 1)``, and a slice is the plane z = 0 of its own frame: the column that multiplies
  z and the row that yields z are left out, the rest is the 3x3 map used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind.errors import InputError

PIXEL_CENTRE = 0.5

# A map that shrinks one direction more than this, relative to the other, has lost it in float64.
LARGEST_CONDITION = 1e12

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """An invertible map ``(x, y) -> matrix @ (x, y, 1)``.

    Attributes:
        matrix: (3, 3) float64, last row 0 0 1.

    Raises:
        InputError: if the matrix is not 3x3, not finite, projective, or not invertible.
    """

    matrix: FloatArray

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (3, 3):
            raise InputError(f"an affine of shape {matrix.shape} is not a 3x3 matrix; give three rows of three numbers")
        if not np.isfinite(matrix).all():
            raise InputError(f"the affine {_in_words(matrix)} is not finite; give nine finite numbers")
        if not np.array_equal(matrix[2], (0.0, 0.0, 1.0)):
            raise InputError(f"the affine {_in_words(matrix)} does not end in the row 0 0 1; give an affine map")
        if np.linalg.cond(matrix[:2, :2]) > LARGEST_CONDITION:
            raise InputError(
                f"the affine {_in_words(matrix)} is not invertible, it folds the plane onto a line; check its "
                "first two rows"
            )
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def scale(cls, factor: float) -> Affine:
        """The map that multiplies x and y by ``factor``."""
        return cls(np.diag((factor, factor, 1.0)))

    @classmethod
    def translation(cls, x: float, y: float) -> Affine:
        """The map that adds (x, y)."""
        return cls(np.array([(1.0, 0.0, x), (0.0, 1.0, y), (0.0, 0.0, 1.0)]))

    def __matmul__(self, other: Affine) -> Affine:
        """The map that applies ``other`` first, then this one."""
        return Affine(self.matrix @ other.matrix)

    def inverse(self) -> Affine:
        """The map back."""
        inverse = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        inverse[2] = (0.0, 0.0, 1.0)  # exact, whatever the rounding
        return Affine(inverse)

    def apply(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Map points given as two arrays of one shape."""
        (xx, xy, x0), (yx, yy, y0) = self.matrix[:2]
        # Most maps of this field neither turn nor shear: half the work, and no difference in the result.
        if xy == 0 and yx == 0:
            return x * xx + x0, y * yy + y0
        return x * xx + y * xy + x0, x * yx + y * yy + y0

    def bounds(self, y0: float, y1: float, x0: float, x1: float) -> tuple[float, float, float, float]:
        """The box ``(y0, y1, x0, x1)`` around the image of a box."""
        x, y = self.apply(np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1]))
        return float(y.min()), float(y.max()), float(x.min()), float(x.max())

    def pixel_size(self) -> float:
        """Of a microns-to-pixels map: the side, in microns, of the square with the area of one pixel."""
        return float(1.0 / np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    def as_rows(self) -> list[list[float]]:
        """The matrix as nested lists, for metadata."""
        return [[float(value) for value in row] for row in self.matrix]


def read_affine(path: str | Path) -> Affine:
    """Read a 3x3 or 4x4 affine from a text file of numbers parted by whitespace or commas.

    Blank lines and lines that start with ``#`` are skipped. See the module for the meaning of a 4x4 matrix. Vizgen's
    ``micron_to_mosaic_pixel_transform.csv`` is such a file: three lines, no header.

    Raises:
        InputError: if the file cannot be read, is not such a matrix, or is not invertible.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the affine file {path} cannot be read ({error}); give a text file of numbers") from error
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
    if [len(row) for row in rows] not in ([3] * 3, [4] * 4):
        raise InputError(
            f"{path} holds rows of {[len(row) for row in rows]} numbers; give a 3x3 or 4x4 matrix, without a header"
        )
    try:
        matrix = np.array([[float(word) for word in row] for row in rows])
    except ValueError as error:
        raise InputError(f"{path} is not a matrix of numbers ({error}); give a 3x3 or 4x4 matrix") from error
    try:
        return Affine(_in_plane(matrix))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _in_plane(matrix: FloatArray) -> FloatArray:
    """The map of the plane z = 0 that a 4x4 matrix holds; a 3x3 one as it is."""
    if matrix.shape == (3, 3):
        return matrix
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
        raise InputError("a 4x4 affine must end in the row 0 0 0 1; give an affine map")
    kept = (0, 1, 3)
    return matrix[np.ix_(kept, kept)]


def _in_words(matrix: npt.NDArray[Any] | Sequence[Sequence[float]]) -> str:
    return "; ".join(" ".join(f"{value:g}" for value in row) for row in matrix)
