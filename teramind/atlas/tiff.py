"""Windows of large TIFF images, without ever holding a whole plane."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from teramind.errors import InputError

# A compressed strip or tile is decoded whole; the largest that is accepted, decoded.
LARGEST_SEGMENT_BYTES = 256 << 20
# Pixels of a block of ``blocks``: 32 MB of uint16.
BLOCK_PIXELS = 1 << 24
# Decoders release the GIL; more threads than this wait for the disk.
DECODE_THREADS = 4

GREY_LEVELS = {np.dtype(np.uint8): 1 << 8, np.dtype(np.uint16): 1 << 16}

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class TiffPlane:
    """One page of a TIFF, read in windows.

    The file is open only while it is read, so that an atlas of many slices does not run out of descriptors.

    Args:
        path: a TIFF or BigTIFF, tiled or in strips, uint8 or uint16, one sample a pixel.
        page: which page of the file.

    Attributes:
        shape: (H, W).
        dtype: uint8 or uint16.

    Raises:
        InputError: if the file is missing, truncated, or of a kind that cannot be read in windows.
    """

    def __init__(self, path: Path, page: int = 0) -> None:
        self.path = path
        with _opened(path) as file:
            pages = len(file.pages)
            if page >= pages:
                raise InputError(f"{path} has {pages} pages, no page {page}; give the image of a single plane")
            self._page = file.pages[page].aspage()
            self._offsets = np.asarray(self._page.dataoffsets, dtype=np.int64)
            self._sizes = np.asarray(self._page.databytecounts, dtype=np.int64)
        self._check_layout()

    def _check_layout(self) -> None:
        page, path = self._page, self.path
        if page.samplesperpixel != 1 or page.imagedepth != 1 or len(page.shape) != 2 or page.dtype not in GREY_LEVELS:
            raise InputError(
                f"{path} holds {page.dtype} pixels of shape {page.shape}; give a uint8 or uint16 image of one channel"
            )
        self.shape: tuple[int, int] = (page.imagelength, page.imagewidth)
        self.dtype: np.dtype[Any] = np.dtype(page.dtype)
        if page.is_tiled:
            self._segment = (page.tilelength, page.tilewidth)
        else:
            self._segment = (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        self._grid = (-(-self.shape[0] // self._segment[0]), -(-self.shape[1] // self._segment[1]))
        # Plain bytes in strips can be read by rows; everything else is decoded strip by strip or tile by tile.
        self._is_plain = page.compression == 1 and page.predictor == 1 and not page.is_tiled and page.fillorder == 1
        end = int((self._offsets + self._sizes).max(initial=0))
        length = path.stat().st_size
        if len(self._offsets) != self._grid[0] * self._grid[1] or end > length:
            raise InputError(
                f"{path} is truncated: its pixels end at byte {end}, the file at byte {length}; copy it again from the "
                "instrument"
            )
        decoded = self._segment[0] * self._segment[1] * self.dtype.itemsize
        if not self._is_plain and decoded > LARGEST_SEGMENT_BYTES:
            raise InputError(
                f"{path} is compressed in pieces of {self._segment[0]} x {self._segment[1]} px, too large to be "
                "read in windows; write it again in tiles"
            )
        if not self._is_plain:
            self._check_codec()

    def _check_codec(self) -> None:
        """Look for the decoder before any work is done."""
        try:
            self._page.decode(b"", 0)
        except ImportError as error:
            raise _codec_missing(self.path, self._page.compression) from error
        except Exception as error:  # no data fails in each codec's own way; only "missing" counts here
            if "imagecodecs" in str(error):
                raise _codec_missing(self.path, self._page.compression) from error

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """The pixels ``[y0:y1, x0:x1]``; zero where the window reaches beyond the image.

        Raises:
            InputError: if a strip or tile cannot be decoded.
        """
        window: Pixels = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), dtype=self.dtype)
        top, bottom, left, right = max(y0, 0), min(y1, self.shape[0]), max(x0, 0), min(x1, self.shape[1])
        if top >= bottom or left >= right:
            return window
        inside = window[top - y0 : bottom - y0, left - x0 : right - x0]
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if self._is_plain:
                self._read_rows(descriptor, inside, top, left)
            else:
                self._read_segments(descriptor, inside, top, left)
        finally:
            os.close(descriptor)
        return window

    def blocks(self) -> Iterator[Pixels]:
        """Every pixel once, in pieces of about ``BLOCK_PIXELS`` that decode no strip or tile twice."""
        height, width = self._segment
        width = min(width * max(1, 4096 // width), self.shape[1])
        height *= max(1, BLOCK_PIXELS // (width * height))
        for y in range(0, self.shape[0], height):
            for x in range(0, self.shape[1], width):
                yield self.read(y, min(y + height, self.shape[0]), x, min(x + width, self.shape[1]))

    def _read_rows(self, descriptor: int, target: Pixels, top: int, left: int) -> None:
        """Read plain strips: of each row, only the columns asked for (whole runs of rows where that is all of them)."""
        rows, columns = target.shape
        itemsize = self.dtype.itemsize
        stored = self.dtype.newbyteorder(self._page.parent.byteorder)
        step = self._segment[0] if columns == self.shape[1] else 1
        y = top
        while y < top + rows:
            strip, row = divmod(y, self._segment[0])
            count = min(step - (row if step > 1 else 0), top + rows - y)
            offset = int(self._offsets[strip]) + (row * self.shape[1] + left) * itemsize
            data = self._bytes(descriptor, offset, count * columns * itemsize)
            target[y - top : y - top + count] = np.frombuffer(data, dtype=stored).reshape(count, columns)
            y += count

    def _read_segments(self, descriptor: int, target: Pixels, top: int, left: int) -> None:
        """Decode the strips or tiles that the window touches, a few at a time, and copy their part of it."""
        rows, columns = target.shape
        height, width = self._segment
        touched = [
            (row, column)
            for row in range(top // height, (top + rows - 1) // height + 1)
            for column in range(left // width, (left + columns - 1) // width + 1)
        ]

        def copy(place: tuple[int, int]) -> None:
            row, column = place
            pixels = self._decoded(descriptor, row * self._grid[1] + column)
            if pixels is None:
                return
            y, x = row * height - top, column * width - left
            part = target[max(y, 0) : y + pixels.shape[0], max(x, 0) : x + pixels.shape[1]]
            first_y, first_x = max(-y, 0), max(-x, 0)
            part[...] = pixels[first_y : first_y + part.shape[0], first_x : first_x + part.shape[1]]

        if len(touched) == 1:
            copy(touched[0])
            return
        with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode") as pool:
            for done in [pool.submit(copy, place) for place in touched]:
                done.result()

    def _decoded(self, descriptor: int, index: int) -> Pixels | None:
        """The pixels of a strip or tile, cut at the image's edge; None for one that is not stored (all zero)."""
        if self._sizes[index] == 0:
            return None
        data = self._bytes(descriptor, int(self._offsets[index]), int(self._sizes[index]))
        try:
            pixels, _, shape = self._page.decode(data, index, jpegtables=self._page.jpegtables)
        except Exception as error:  # each codec has its own exceptions; all mean the same to the user
            raise InputError(
                f"{self.path} cannot be decoded ({error}); copy the file again from the instrument"
            ) from error
        if pixels is None:
            return None
        _, height, width, _ = shape
        cut: Pixels = pixels[0, :height, :width, 0]
        return cut

    def _bytes(self, descriptor: int, offset: int, count: int) -> bytes:
        pieces = []
        while count:
            piece = os.pread(descriptor, count, offset)
            if not piece:
                raise InputError(f"{self.path} became shorter while it was read; copy it again from the instrument")
            pieces.append(piece)
            count, offset = count - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def page_count(path: Path) -> int:
    """How many pages a TIFF has."""
    with _opened(path) as file:
        return len(file.pages)


def description(path: Path) -> str:
    """The description of a TIFF's first page; empty if there is none."""
    with _opened(path) as file:
        return str(file.pages.first.description)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF as the plain file it is: what an OME description says about other files is not followed.

    Raises:
        InputError: if it is missing, or its directory of pages is damaged.
    """
    if not path.is_file():
        raise InputError(f"there is no image {path}; check the folder")
    try:
        with tifffile.TiffFile(path, is_ome=False) as file:
            yield file
    except InputError:
        raise
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError, struct.error) as error:
        raise InputError(f"{path} is not a whole TIFF ({error}); copy the file again from the instrument") from error


def _codec_missing(path: Path, compression: Any) -> InputError:
    return InputError(
        f"{path} is compressed with {getattr(compression, 'name', compression)}, which needs a codec package; "
        "install it with pip install 'teramind[xenium]'"
    )
