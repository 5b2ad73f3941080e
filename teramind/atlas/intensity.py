"""Raw intensities -> uint8, one linear map a stain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind.atlas.tiff import GREY_LEVELS, TiffPlane
from teramind.errors import InputError

LOOKUP_ROWS = 256


@dataclass(frozen=True)
class IntensityScale:
    """A linear map of raw intensities to uint8: ``low`` and below become 0, ``high`` and above 255."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise InputError(f"an intensity range {self.low:g}:{self.high:g} is empty; give LOW:HIGH with LOW < HIGH")

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Scale pixels, rounding to the nearest grey level; integers go through a table of their levels."""
        if pixels.dtype not in GREY_LEVELS:
            return self._scaled(pixels.astype(np.float32, copy=True))
        table = self._scaled(np.arange(GREY_LEVELS[pixels.dtype], dtype=np.float32))
        scaled = np.empty(pixels.shape, dtype=np.uint8)
        for y in range(0, pixels.shape[0], LOOKUP_ROWS):  # numpy makes an int64 index of the pixels it looks up
            scaled[y : y + LOOKUP_ROWS] = table[pixels[y : y + LOOKUP_ROWS]]
        return scaled

    def _scaled(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        values -= np.float32(self.low)
        values *= np.float32(255.0 / (self.high - self.low))
        np.clip(np.rint(values, out=values), 0, 255, out=values)
        return values.astype(np.uint8)


def measured_scale(
    planes: Sequence[TiffPlane], percentiles: tuple[float, float], progress: Callable[[int], object]
) -> IntensityScale:
    """The intensity range of a stain over all its images, from an exact histogram.

    Pixels of value 0 are not counted: mosaics are 0 where nothing was imaged, and the empty border may be most of the
    image. Images that are uint8 already are taken as they are (0 to 255).

    Args:
        planes: the images of one stain, one a slice, of one dtype.
        percentiles: lower and upper, of the pixels that are not 0.
        progress: told of every image that was read.

    Raises:
        InputError: if the images differ in dtype.
    """
    dtypes = {plane.dtype for plane in planes}
    if len(dtypes) > 1:
        raise InputError(
            f"{planes[0].path} is {planes[0].dtype} and other images of the stain are not; convert them to one type"
        )
    if planes[0].dtype == np.uint8:
        return IntensityScale(0.0, 255.0)
    histogram = np.zeros(GREY_LEVELS[planes[0].dtype], dtype=np.int64)
    for plane in planes:
        for block in plane.blocks():
            histogram += np.bincount(block.ravel(), minlength=len(histogram))
        progress(1)
    histogram[0] = 0
    return _range_of(histogram, percentiles)


def _range_of(histogram: npt.NDArray[np.int64], percentiles: tuple[float, float]) -> IntensityScale:
    """The lowest levels at or below which the two percentages of the pixels lie."""
    below = np.cumsum(histogram)
    if below[-1] == 0:
        return IntensityScale(0.0, 1.0)  # an image without light: any range shows it black
    low, high = (int(np.searchsorted(below, percent / 100 * below[-1])) for percent in percentiles)
    return IntensityScale(float(low), float(max(high, low + 1)))
