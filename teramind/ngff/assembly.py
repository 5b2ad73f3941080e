"""Shards in the making: which pixels have arrived, and the mean of 2x2 of them for the next level."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rectangle = tuple[int, int, int, int]  # y0, y1, x0, x1, half open


class Coverage:
    """A union of disjoint rectangles, kept short by joining neighbours that form a rectangle.

    Tiles that arrive in bands join to a handful, which a plain list handles ten times faster than array code.

    Attributes:
        area: how many pixels are covered.
    """

    def __init__(self) -> None:
        self._rectangles: list[Rectangle] = []
        self.area = 0

    def rectangles(self) -> npt.NDArray[np.int64]:
        """Return the disjoint rectangles, (n, 4): y0, y1, x0, x1."""
        return np.array(self._rectangles, dtype=np.int64).reshape(-1, 4)

    def add(self, rectangle: Rectangle) -> None:
        """Add a rectangle that is not empty.

        Raises:
            ValueError: if part of it is covered already.
        """
        y0, y1, x0, x1 = rectangle
        for top, bottom, left, right in self._rectangles:
            if top < y1 and y0 < bottom and left < x1 and x0 < right:
                raise ValueError(f"pixels {y0}:{y1},{x0}:{x1} overlap some that were written before")
        self.area += (y1 - y0) * (x1 - x0)
        while (neighbour := self._neighbour(rectangle)) is not None:
            top, bottom, left, right = self._rectangles.pop(neighbour)
            y0, y1, x0, x1 = rectangle
            rectangle = min(y0, top), max(y1, bottom), min(x0, left), max(x1, right)
        self._rectangles.append(rectangle)

    def _neighbour(self, rectangle: Rectangle) -> int | None:
        """Return the number of a rectangle that shares a whole side with this one."""
        y0, y1, x0, x1 = rectangle
        for number, (top, bottom, left, right) in enumerate(self._rectangles):
            beside = top == y0 and bottom == y1 and (right == x0 or left == x1)
            above = left == x0 and right == x1 and (bottom == y0 or top == y1)
            if beside or above:
                return number
        return None


class ShardBuffer:
    """A shard that is being filled; its pixels take memory only from the first one that is not skipped.

    Attributes:
        origin: y, x of its first pixel in its level.
        shape: (h, w), cut at the image's edge.
        pixels: (h, w) uint8, or None while all that arrived is skipped.
        coverage: what has arrived, relative to the origin.
    """

    def __init__(self, origin: tuple[int, int], shape: tuple[int, int]) -> None:
        self.origin = origin
        self.shape = shape
        self.pixels: npt.NDArray[np.uint8] | None = None
        self.coverage = Coverage()

    @property
    def nbytes(self) -> int:
        """Bytes of pixels held."""
        return 0 if self.pixels is None else self.pixels.nbytes

    @property
    def complete(self) -> bool:
        """Whether every pixel has arrived."""
        return self.coverage.area == self.shape[0] * self.shape[1]

    def put(self, rectangle: Rectangle, pixels: npt.NDArray[np.uint8] | None) -> None:
        """Take a rectangle, relative to the origin; None leaves it at the fill value 0."""
        self.coverage.add(rectangle)
        if pixels is None:
            return
        if self.pixels is None:
            self.pixels = np.zeros(self.shape, dtype=np.uint8)
        y0, y1, x0, x1 = rectangle
        self.pixels[y0:y1, x0:x1] = pixels


def mean_bin(pixels: npt.NDArray[np.uint8], strip: int = 64) -> npt.NDArray[np.uint8]:
    """Return the mean of every 2x2 pixels, halves rounded up; at an odd edge the mean of what is there.

    Args:
        pixels: (h, w) uint8.
        strip: output rows worked on at once, few enough that the sums stay in the cache.

    Returns:
        (ceil(h/2), ceil(w/2)) uint8.
    """
    height, width = pixels.shape
    if height % 2 or width % 2:
        # The mean of one or two pixels is that of four with the edge repeated, rounding included.
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2)), mode="edge")
    pairs = np.ascontiguousarray(pixels).view("<u2")  # two neighbours in one number: adding them needs no strided reads
    binned = np.empty((pairs.shape[0] // 2, pairs.shape[1]), dtype=np.uint8)
    for row in range(0, len(binned), strip):
        both = pairs[2 * row : 2 * (row + strip)]
        sums = (both & 0xFF) + (both >> 8)
        total = sums[0::2] + sums[1::2]
        total += 2
        total >>= 2
        binned[row : row + strip] = total
    return binned
