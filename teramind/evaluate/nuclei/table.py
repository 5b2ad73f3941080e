"""Nuclei as a table: where they lie, how large and how bright they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from teramind.engine.plan import Rectangle
from teramind.evaluate.nuclei.segment import Labeller, Labels, Plane

COARSEST_UM = 0.45
"""Images are segmented at pixels of at most this size: a nucleus of 6 um is 13 px wide then, at a 16th of the work."""

_Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a slice.

    Attributes:
        y: of the centroid, um from the frame's first pixel's outer corner.
        x: likewise.
        area: um^2.
        intensity: mean grey level.
    """

    y: _Column
    x: _Column
    area: _Column
    intensity: _Column

    def __len__(self) -> int:
        return len(self.y)

    @property
    def places(self) -> npt.NDArray[np.float64]:
        """(n, 2): y and x."""
        return np.stack([self.y, self.x], axis=1)

    def select(self, which: npt.NDArray[Any]) -> Self:
        """Those that a mask or an index chooses."""
        return type(self)(self.y[which], self.x[which], self.area[which], self.intensity[which])

    def moved(self, dy: float, dx: float) -> Self:
        """The same elsewhere, um."""
        return type(self)(self.y + dy, self.x + dx, self.area, self.intensity)

    @classmethod
    def joined(cls, parts: Sequence[Nuclei]) -> Self:
        """Tables one after the other."""
        columns = zip(*((part.y, part.x, part.area, part.intensity) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns)) if parts else cls(*[np.zeros(0)] * 4)


def measure(labels: Labels, image: Plane, pixel_size: float, origin: tuple[float, float] = (0.0, 0.0)) -> Nuclei:
    """Measure labelled nuclei.

    Args:
        labels: (h, w); 0 is none.
        image: (h, w) grey levels.
        pixel_size: um.
        origin: outer corner of the first pixel, um, y, x.
    """
    inside = np.flatnonzero(labels)
    label, pixels = labels.ravel()[inside], image.ravel()[inside]
    area = np.bincount(label)
    there = np.flatnonzero(area)
    area = area[there]
    y, x = (_sums(label, axis)[there] / area for axis in np.divmod(inside, labels.shape[1]))
    return Nuclei(
        origin[0] + (y + 0.5) * pixel_size,
        origin[1] + (x + 0.5) * pixel_size,
        area.astype(np.float64) * pixel_size**2,
        _sums(label, pixels)[there] / area,
    )


def _sums(label: Labels, values: npt.NDArray[Any]) -> _Column:
    return np.bincount(label, weights=values).astype(np.float64)


def find_nuclei(
    image: npt.NDArray[np.uint8], label: Labeller, pixel_size: float, place: Rectangle, core: Rectangle
) -> Nuclei:
    """Nuclei that a block owns: those with their centroid in its core.

    Args:
        image: (h, w) of the nuclear stain.
        label: calibrated for pixels of ``pixel_size`` times ``reduction(pixel_size)``.
        pixel_size: um.
        place: of the image in the frame, px; begins on a multiple of ``reduction(pixel_size)`` from the core.
        core: of the block.
    """
    factor = reduction(pixel_size)
    coarse, coarse_size = reduced(image, factor), pixel_size * factor
    origin = place.y0 * pixel_size, place.x0 * pixel_size
    nuclei = measure(label(coarse), coarse, coarse_size, origin)
    y, x = nuclei.y / pixel_size, nuclei.x / pixel_size
    return nuclei.select((y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1))


def reduction(pixel_size: float) -> int:
    """Side of the squares of pixels that are averaged before segmentation, a power of two."""
    factor = 1
    while 2 * factor * pixel_size <= COARSEST_UM:
        factor *= 2
    return factor


def reduced(image: npt.NDArray[Any], factor: int) -> Plane:
    """Means of squares of pixels; the last row and column are repeated to whole squares."""
    h, w = image.shape
    padded = np.pad(image, ((0, -h % factor), (0, -w % factor)), mode="edge") if h % factor or w % factor else image
    squares = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32))
