"""The tile files of the published Tera-MIND data: their names and what is in them.

A tile is 256 x 256 px and stored with the 128 px around it (less at the rim of the plane), so that the contexts of
neighbours overlap: only the tile itself is taken from a file. Names are ``y0_y1_x0_x1_oy0_oy1_ox0_ox1``: the tile, then
the tile with its context.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import ZipStore

from teramind.atlas.layout import BIN_SIZE
from teramind.errors import InputError

TILE = 256
"""Side of a tile, px."""
TILE_BINS = TILE // BIN_SIZE
STAINS = ("DAPI", "PolyT")
"""Stains of the image tiles, in their order."""

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class TileFile:
    """A file of one tile.

    Attributes:
        path: The file.
        row: Row of the tile in the grid of tiles.
        column: Its column.
        top: Context above the tile in the file, px.
        left: Context to its left, px.
        shape: Height and width of what the file covers, px.
    """

    path: Path
    row: int
    column: int
    top: int
    left: int
    shape: tuple[int, int]

    @classmethod
    def named(cls, path: Path) -> Self:
        """Read a file's name.

        Raises:
            InputError: It is not a tile's, or the tile is not on the grid of 256 px.
        """
        if not re.fullmatch(r"\d+(_\d+){7}", path.stem):
            raise InputError(
                f"{path} is not named like a tile, y0_y1_x0_x1_oy0_oy1_ox0_ox1{path.suffix}: move it elsewhere"
            )
        y0, y1, x0, x1, top, bottom, left, right = (int(word) for word in path.stem.split("_"))
        if y0 % TILE or x0 % TILE or y1 - y0 != TILE or x1 - x0 != TILE:
            raise InputError(f"{path} names a tile that is not on the grid of {TILE} px: only such tiles can be read")
        if not (top <= y0 and y1 <= bottom and left <= x0 and x1 <= right) or top % BIN_SIZE or left % BIN_SIZE:
            raise InputError(f"{path} names a context that is not around its tile in whole bins of {BIN_SIZE} px")
        return cls(path, y0 // TILE, x0 // TILE, y0 - top, x0 - left, (bottom - top, right - left))


def list_tiles(folder: Path, suffix: str) -> dict[tuple[int, int], TileFile]:
    """The tile files of a folder, by row and column of the tile.

    Raises:
        InputError: The folder holds none, one with another name, or two of one tile.
    """
    tiles: dict[tuple[int, int], TileFile] = {}
    for path in _files(folder, suffix):
        tile = TileFile.named(path)
        place = (tile.row, tile.column)
        if place in tiles:
            raise InputError(f"{tiles[place].path} and {path.name} overlap, they are the same tile: keep one of them")
        tiles[place] = tile
    if not tiles:
        raise InputError(f"there is no tile file *{suffix} in {folder}: name the folder that holds them")
    return tiles


def _files(folder: Path, suffix: str) -> Iterable[Path]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} of tile files: check its name")
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


@dataclass(frozen=True)
class TileCounts:
    """The transcripts of a tile, as entries with possible repeats.

    Attributes:
        row: Bin row within the tile.
        column: Bin column within the tile.
        channel: ``slice * genes + gene``.
        count: Transcripts.
        channels: Length of the channel axis.
    """

    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    channels: int


def read_counts(tile: TileFile) -> TileCounts:
    """Read the counts of a tile, without its context.

    The file is a COO array of the ``sparse`` library: ``data``, ``coords`` (3, n) and ``shape``, at pixel or at bin
    resolution.

    Raises:
        InputError: The file is truncated, corrupt, or holds something else.
    """
    data, coords, shape = _coo(tile.path)
    for unit in (1, BIN_SIZE):
        if shape[:2] == (tile.shape[0] // unit, tile.shape[1] // unit):
            break
    else:
        raise InputError(
            f"{tile.path} is {shape[0]} x {shape[1]}, and its name says {tile.shape[0]} x {tile.shape[1]} px: "
            "download it again"
        )
    side = TILE // unit
    row, column = coords[0] - tile.top // unit, coords[1] - tile.left // unit
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side) & (data != 0)
    bins = BIN_SIZE // unit
    return TileCounts(row[inside] // bins, column[inside] // bins, coords[2][inside], data[inside], shape[2])


def read_pixels(tile: TileFile, planes: slice, out: npt.NDArray[np.uint8], expected: int) -> None:
    """Read planes of an image tile, without its context: a Zarr array (planes, h, w) in a zip file.

    Args:
        tile: The file.
        planes: Which planes.
        out: uint8 (planes, 256, 256), what is read.
        expected: How many planes the file must hold.

    Raises:
        InputError: The file is truncated, corrupt, or holds something else.
    """
    try:
        if not zipfile.is_zipfile(tile.path):  # ZipStore opens late and closes badly what it could not open
            raise ValueError("it is no zip file")
        with ZipStore(tile.path, mode="r") as store:
            array = zarr.open_array(store, mode="r")
            if array.shape == (expected, *tile.shape) and array.dtype == np.uint8:
                window = (planes, slice(tile.top, tile.top + TILE), slice(tile.left, tile.left + TILE))
                out[...] = array[window]
                return
            found = f"{array.dtype} {array.shape}"
    except _UNREADABLE as error:
        raise _unreadable(tile.path, error) from error
    raise InputError(
        f"{tile.path} is {found}, and {len(STAINS)} stains of the counts' slices are uint8 {(expected, *tile.shape)}: "
        "give the images of the same slices"
    )


def _coo(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], tuple[int, int, int]]:
    """Data (n,), coordinates (3, n) and shape of a file, checked."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not {"data", "coords", "shape"} <= set(archive.files):
                raise ValueError(f"it holds {', '.join(archive.files)} and not data, coords, shape")
            data, coords, shape = archive["data"], archive["coords"], archive["shape"]
            fill = archive["fill_value"] if "fill_value" in archive.files else np.zeros(())
        if shape.shape != (3,) or coords.shape != (3, len(data)) or data.ndim != 1:
            raise ValueError(f"its arrays are data {data.shape}, coords {coords.shape}, shape {shape.shape}")
        if fill.any():
            raise ValueError(f"what it does not list is {fill}, not 0")
        return _whole_numbers(data, "count"), _coordinates(coords, shape), (int(shape[0]), int(shape[1]), int(shape[2]))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _coordinates(coords: npt.NDArray[Any], shape: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    places = _whole_numbers(coords, "coordinate")
    if (places >= shape[:, None]).any():
        raise ValueError("a coordinate lies outside its shape")
    return places


def _whole_numbers(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.int64]:
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values) or (whole < 0).any():
        raise ValueError(f"a {what} is negative or no whole number")
    return whole


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as a tile ({error}): it may be truncated; download it again")
