"""Windows of a frame pulled out of an image through an affine, bilinearly."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from teramind.atlas.affine import PIXEL_CENTRE, Affine
from teramind.atlas.tiff import TiffPlane
from teramind.checks import thread_count

# A map within this of a whole-pixel shift is one: a thousandth of a pixel changes no grey level that means anything.
SHIFT_TOLERANCE = 1e-3
# A window is interpolated in parts whose source is about this high and wide, 8 MB of uint16.
SOURCE_SIDE = 2048


def sample(plane: TiffPlane, to_image: Affine, y0: int, x0: int, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Pull a window of a frame out of an image, bilinearly.

    The value at a pixel's centre is interpolated between the four nearest centres of the image; the outermost half
    pixel of the image takes the value of its edge; beyond the image it is zero. The result does not depend on how a
    frame is cut into windows. Nothing is smoothed first, so a frame much coarser than the image is sampled, not
    averaged.

    Args:
        plane: the image.
        to_image: from px of the frame to px of the image.
        y0: first row of the window in the frame.
        x0: first column.
        shape: (h, w) of the window.

    Returns:
        (h, w) in the image's intensities: its dtype where the map is a whole-pixel shift, else float32.
    """
    shift = _whole_shift(to_image, y0, x0, shape)
    if shift is not None:
        top, left = y0 + shift[0], x0 + shift[1]
        return plane.read(top, top + shape[0], left, left + shape[1])
    result = np.empty(shape, dtype=np.float32)
    spread = max(1.0, float(np.abs(to_image.matrix[:2, :2]).sum(axis=1).max()))
    side = max(16, int(SOURCE_SIDE / spread))

    def fill(corner: tuple[int, int]) -> None:
        y, x = corner
        part = result[y : y + side, x : x + side]
        part[...] = _interpolated(plane, to_image, y0 + y, x0 + x, part.shape)

    corners = list(itertools.product(range(0, shape[0], side), range(0, shape[1], side)))
    with ThreadPoolExecutor(thread_count(None), thread_name_prefix="resample") as pool:  # scipy releases the GIL
        for done in [pool.submit(fill, corner) for corner in corners]:
            done.result()
    return result


def _whole_shift(to_image: Affine, y0: int, x0: int, shape: tuple[int, int]) -> tuple[int, int] | None:
    """The (rows, columns) that ``to_image`` shifts every pixel of the window by, if it does just that."""
    corner_x = np.array([x0, x0 + shape[1], x0, x0 + shape[1]], dtype=np.float64)
    corner_y = np.array([y0, y0, y0 + shape[0], y0 + shape[0]], dtype=np.float64)
    x, y = to_image.apply(corner_x, corner_y)
    shift_y, shift_x = y - corner_y, x - corner_x
    rows, columns = round(float(shift_y[0])), round(float(shift_x[0]))
    largest = max(np.abs(shift_y - rows).max(), np.abs(shift_x - columns).max())
    return (rows, columns) if largest < SHIFT_TOLERANCE else None


def _interpolated(
    plane: TiffPlane, to_image: Affine, y0: int, x0: int, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    rows, columns = shape
    top, bottom, left, right = to_image.bounds(y0, y0 + rows, x0, x0 + columns)
    # One more pixel on each side holds every neighbour of every centre in the window.
    y_first, y_end = max(int(np.floor(top)) - 1, 0), min(int(np.ceil(bottom)) + 1, plane.shape[0])
    x_first, x_end = max(int(np.floor(left)) - 1, 0), min(int(np.ceil(right)) + 1, plane.shape[1])
    if y_first >= y_end or x_first >= x_end:
        return np.zeros((rows, columns), dtype=np.float32)
    source = plane.read(y_first, y_end, x_first, x_end)
    # Index (row, column) of the window -> index of the source, both of pixel centres.
    linear = to_image.matrix[1::-1, 1::-1]
    origin = to_image.matrix[1::-1, 2] + linear @ (y0 + PIXEL_CENTRE, x0 + PIXEL_CENTRE)
    offset = origin - PIXEL_CENTRE - (y_first, x_first)
    is_diagonal = linear[0, 1] == 0 and linear[1, 0] == 0
    values: npt.NDArray[np.float32] = scipy.ndimage.affine_transform(
        source,
        np.diag(linear) if is_diagonal else linear,  # a vector takes scipy's separable, faster way
        offset=offset,
        output_shape=(rows, columns),
        output=np.float32,
        order=1,
        mode="nearest",
    )
    if top < 0 or left < 0 or bottom > plane.shape[0] or right > plane.shape[1]:
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        image_y = origin[0] + linear[0, 0] * row + linear[0, 1] * column
        image_x = origin[1] + linear[1, 0] * row + linear[1, 1] * column
        values[(image_y < 0) | (image_y >= plane.shape[0]) | (image_x < 0) | (image_x >= plane.shape[1])] = 0
    return values
