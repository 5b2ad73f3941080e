"""Shards in the making: which pixels have arrived, and the mean of 2x2 of them for the next level."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rectangle = tuple[int, int, int, int]  # y0, y1, x0, x1, half open


class Coverage:
    """A union of disjoint rectangles, kept short by joining neighbours that form a rectangle.

    Attributes:
        area: how many pixels are covered.
    """

    def __init__(self) -> None:
        self._rectangles = np.empty((8, 4), dtype=np.int64)
        self._count = 0
        self.area = 0

    def rectangles(self) -> npt.NDArray[np.int64]:
        """Return the disjoint rectangles, (n, 4): y0, y1, x0, x1."""
        return self._rectangles[: self._count].copy()

    def add(self, rectangle: Rectangle) -> None:
        """Add a rectangle.

        Raises:
            ValueError: if part of it is covered already.
        """
        y0, y1, x0, x1 = rectangle
        have = self._rectangles[: self._count]
        if np.any((have[:, 0] < y1) & (y0 < have[:, 1]) & (have[:, 2] < x1) & (x0 < have[:, 3])):
            raise ValueError(f"pixels {y0}:{y1},{x0}:{x1} overlap some that were written before")
        self.area += (y1 - y0) * (x1 - x0)
        self._insert(np.array(rectangle, dtype=np.int64))

    def _insert(self, new: npt.NDArray[np.int64]) -> None:
        while (neighbour := self._neighbour(new)) is not None:
            old = self._rectangles[neighbour]
            new[0::2] = np.minimum(new[0::2], old[0::2])
            new[1::2] = np.maximum(new[1::2], old[1::2])
            self._count -= 1
            self._rectangles[neighbour] = self._rectangles[self._count]
        if self._count == len(self._rectangles):
            self._rectangles = np.concatenate([self._rectangles, np.empty_like(self._rectangles)])
        self._rectangles[self._count] = new
        self._count += 1

    def _neighbour(self, new: npt.NDArray[np.int64]) -> int | None:
        """Return a rectangle that shares a whole side with ``new``."""
        have = self._rectangles[: self._count]
        y0, y1, x0, x1 = have.T
        beside = (y0 == new[0]) & (y1 == new[1]) & ((x1 == new[2]) | (x0 == new[3]))
        above = (x0 == new[2]) & (x1 == new[3]) & ((y1 == new[0]) | (y0 == new[1]))
        found = np.flatnonzero(beside | above)
        return int(found[0]) if len(found) else None


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
