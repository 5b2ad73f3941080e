"""Reads the tile files of the published Tera-MIND data into an atlas store."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from tqdm import tqdm

from teramind.atlas.images import SHARD
from teramind.atlas.layout import STRIP_BINS
from teramind.atlas.panel import read_genes
from teramind.atlas.tile_files import STAINS, TILE, TILE_BINS, TileFile, list_tiles, read_counts, read_pixels
from teramind.atlas.writer import AtlasWriter
from teramind.errors import InputError

PIXEL_SIZE_UM = 0.108
SLICE_STEP_UM = 200.0
"""Distance of the 50 published slices of the main brain."""

# Planes of image tiles assembled at once: 16 windows of a shard, 270 MB. Fewer would read the tile files more often.
PLANES_AT_ONCE = 16
_TILES_A_STRIP = STRIP_BINS // TILE_BINS
_TILES_A_SHARD = SHARD // TILE
_MAX_COUNT = 2**16 - 1

Tiles = Mapping[tuple[int, int], TileFile]
Integers = npt.NDArray[np.int64]


@dataclass
class TileReport:
    """What was read.

    Attributes:
        slices: How many slices the tiles hold.
        tiles: Tiles of counts read.
        missing_tiles: Tiles that lack in the rectangle that the others span; they are empty in the atlas.
        image_tiles: Tiles of images read.
        missing_image_tiles: Tiles of counts without images; they are black.
        transcripts: Transcripts in the atlas.
        counts: Counts of a bin and gene that are not 0.
    """

    slices: int
    tiles: int
    missing_tiles: int
    image_tiles: int = 0
    missing_image_tiles: int = 0
    transcripts: int = 0
    counts: int = 0

    def as_text(self) -> str:
        """The report for people, a line a kind of file."""
        text = (
            f"{self.tiles:,} tiles of {self.slices} slices: {self.transcripts:,} transcripts in {self.counts:,} counts "
            f"of a bin and gene; {self.missing_tiles:,} tiles missing between them, left empty\n"
        )
        if self.image_tiles:
            text += f"{self.image_tiles:,} image tiles; {self.missing_image_tiles:,} missing, left black\n"
        return text


def read_tiles(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    genes: str | os.PathLike[str] | Sequence[str],
    images: str | os.PathLike[str] | None = None,
    pixel_size: float = PIXEL_SIZE_UM,
    z_step_um: float = SLICE_STEP_UM,
    overwrite: bool = False,
) -> TileReport:
    """Read a folder of gene tiles, and optionally one of image tiles, into an atlas.

    The atlas keeps the tiles' coordinates and ends where the last tile ends. Four rows of tiles are in memory at once.

    Args:
        folder: The ``*.npz`` files, all in one folder.
        output: The store to write.
        genes: Names in the order of the tiles' gene axis, or a text file of them, one a line.
        images: The ``*.zip`` files of the same tiles: all slices of DAPI, then all of PolyT.
        pixel_size: um.
        z_step_um: Distance of the slices, um.
        overwrite: Replace an atlas of that name.

    Raises:
        InputError: A file is truncated, corrupt or misnamed, tiles differ in their slices, or the genes do not fit.
    """
    names = read_genes(Path(genes)) if isinstance(genes, str | os.PathLike) else list(genes)
    tiles = list_tiles(Path(folder), ".npz")
    image_tiles = list_tiles(Path(images), ".zip") if images is not None else {}
    slices = _slices(next(iter(tiles.values())), len(names))
    rows, columns = (1 + max(place[axis] for place in (*tiles, *image_tiles)) for axis in range(2))
    report = TileReport(
        slices=slices,
        tiles=len(tiles),
        missing_tiles=_missing(tiles),
        image_tiles=len(image_tiles),
        missing_image_tiles=len(tiles.keys() - image_tiles.keys()) if image_tiles else 0,
    )
    with AtlasWriter(
        output,
        genes=names,
        stains=STAINS if image_tiles else (),
        slice_z=[index * z_step_um for index in range(slices)],
        shape=(rows * TILE, columns * TILE),
        pixel_size=pixel_size,
        scaling=dict.fromkeys(STAINS, (0.0, 255.0)) if image_tiles else None,
        provenance={
            "reader": "tiles",
            "folder": str(Path(folder).absolute()),
            "images": None if images is None else str(Path(images).absolute()),
            "tiles": report.tiles,
            "missing_tiles": report.missing_tiles,
            "missing_image_tiles": report.missing_image_tiles,
        },
        overwrite=overwrite,
    ) as writer:
        _write_counts(writer, tiles, (rows, columns), slices, len(names), report)
        _write_images(writer, image_tiles, (rows, columns), slices)
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``read_tiles``."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of the gene tiles (*.npz)")
    parser.add_argument("--output", required=True, metavar="ATLAS.zarr", help="the store to write")
    parser.add_argument(
        "--genes", required=True, metavar="FILE", help="gene names in the order of the tiles' gene axis, one a line"
    )
    parser.add_argument("--images", metavar="FOLDER", help="folder of the image tiles (*.zip)")
    parser.add_argument(
        "--pixel-size",
        type=float,
        default=PIXEL_SIZE_UM,
        metavar="UM",
        help="pixel of the tiles (default: %(default)g)",
    )
    parser.add_argument(
        "--z-step-um",
        type=float,
        default=SLICE_STEP_UM,
        metavar="UM",
        help="distance of the slices (default: %(default)g)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an atlas of that name")


def _missing(tiles: Tiles) -> int:
    """Tiles that lack in the rectangle that the others span."""
    rows, columns = [row for row, _ in tiles], [column for _, column in tiles]
    return (max(rows) - min(rows) + 1) * (max(columns) - min(columns) + 1) - len(tiles)


def _slices(tile: TileFile, genes: int) -> int:
    channels = read_counts(tile).channels
    if channels % genes or channels == 0:
        raise InputError(
            f"the last axis of {tile.path} is {channels} long, which is no number of slices of {genes} genes: give the "
            "gene list of these tiles"
        )
    return channels // genes


def _write_counts(
    writer: AtlasWriter, tiles: Tiles, grid: tuple[int, int], slices: int, genes: int, report: TileReport
) -> None:
    """Write all strips of all slices, one strip after the other."""
    with _progress(len(tiles), "counts") as bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, grid[0], _TILES_A_STRIP):
            strip = _Strip(first, (min(_TILES_A_STRIP, grid[0] - first), grid[1]), slices, genes)
            parts = []
            for part in pool.map(strip.keyed_counts, (tile for place, tile in tiles.items() if place[0] in strip.rows)):
                parts.append(part)
                bar.update()
            for index, counts in enumerate(strip.matrices(parts)):
                writer.append_counts(index, counts)
                report.transcripts += int(counts.data.sum(dtype=np.int64))
                report.counts += counts.nnz


class _Strip:
    """Gathers the tiles of one strip; a key stands for slice, bin and gene, in that order."""

    def __init__(self, first_row: int, tiles: tuple[int, int], slices: int, genes: int) -> None:
        self.rows = range(first_row, first_row + tiles[0])
        self._columns = tiles[1] * TILE_BINS
        self._bins = tiles[0] * TILE_BINS * self._columns
        self._slices = slices
        self._genes = genes

    def keyed_counts(self, tile: TileFile) -> tuple[Integers, Integers]:
        """Keys and counts of a tile, in no order."""
        counts = read_counts(tile)
        if counts.channels != self._slices * self._genes:
            raise InputError(
                f"the last axis of {tile.path} is {counts.channels} long, and {self._slices * self._genes} in the "
                "first tile: give tiles of one data set"
            )
        row = counts.row + (tile.row - self.rows.start) * TILE_BINS
        column = counts.column + tile.column * TILE_BINS
        slice_index, gene = np.divmod(counts.channel, self._genes)
        return ((slice_index * self._bins) + row * self._columns + column) * self._genes + gene, counts.count

    def matrices(self, parts: Sequence[tuple[Integers, Integers]]) -> Iterator[csr_array]:
        """The counts of every slice, (bins, genes)."""
        key, count = _summed(parts)
        if (count > _MAX_COUNT).any():
            raise InputError(
                f"a bin of tile rows {self.rows.start} to {self.rows[-1]} holds {count.max()} transcripts of one gene, "
                f"and an atlas at most {_MAX_COUNT}: check the tiles"
            )
        place, gene = np.divmod(key, self._genes)
        borders = np.searchsorted(place, np.arange(self._slices + 1) * self._bins)
        for index in range(self._slices):
            mine = slice(borders[index], borders[index + 1])
            in_bin = np.bincount(place[mine] - index * self._bins, minlength=self._bins)
            starts = np.concatenate([[0], np.cumsum(in_bin)])
            yield csr_array((count[mine].astype(np.uint16), gene[mine], starts), shape=(self._bins, self._genes))


def _summed(parts: Sequence[tuple[Integers, Integers]]) -> tuple[Integers, Integers]:
    """The keys of all parts, sorted and each once, and the sums of their counts."""
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    key, count = (np.concatenate(field) for field in zip(*parts, strict=True))
    order = np.argsort(key)
    key, count = key[order], count[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.add.reduceat(count, first) if len(first) else count


def _write_images(writer: AtlasWriter, tiles: Tiles, grid: tuple[int, int], slices: int) -> None:
    """Write the images shard by shard, the planes in groups."""
    planes = len(STAINS) * slices
    windows = sorted({(row // _TILES_A_SHARD, column // _TILES_A_SHARD) for row, column in tiles}, key=_z_order)
    groups = [slice(start, min(start + PLANES_AT_ONCE, planes)) for start in range(0, planes, PLANES_AT_ONCE)]
    with _progress(len(tiles) * len(groups), "images") as bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for group in groups:
            for row, column in windows:
                first = row * _TILES_A_SHARD, column * _TILES_A_SHARD
                height, width = (min(_TILES_A_SHARD, size - start) for size, start in zip(grid, first, strict=True))
                window = np.zeros((group.stop - group.start, height * TILE, width * TILE), dtype=np.uint8)
                for _ in pool.map(
                    lambda tile: read_pixels(tile, group, _part(window, tile, first), planes),  # noqa: B023 - awaited
                    _inside(tiles, first, (height, width)),
                ):
                    bar.update()
                for plane, pixels in enumerate(window, start=group.start):
                    stain, index = divmod(plane, slices)
                    writer.write_image(index, stain, first[0] * TILE, first[1] * TILE, pixels)


def _inside(tiles: Tiles, first: tuple[int, int], sides: tuple[int, int]) -> list[TileFile]:
    """The tiles of a window of the grid."""
    places = ((first[0] + row, first[1] + column) for row in range(sides[0]) for column in range(sides[1]))
    return [tiles[place] for place in places if place in tiles]


def _part(window: npt.NDArray[np.uint8], tile: TileFile, first: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The part of a window (planes, h, w) that a tile fills."""
    y, x = (tile.row - first[0]) * TILE, (tile.column - first[1]) * TILE
    return window[:, y : y + TILE, x : x + TILE]


def _z_order(place: tuple[int, int]) -> int:
    """Rank of a window on the Z-shaped curve: windows that share a shard of the pyramid follow one another.

    Each level of the pyramid then holds one unfinished shard a plane, and not a row of them.
    """
    row, column = place
    return sum((row >> bit & 1) << 2 * bit + 1 | (column >> bit & 1) << 2 * bit for bit in range(31))


def _progress(tiles: int, what: str) -> tqdm[Any]:
    return tqdm(total=tiles, desc=what, unit="tile", disable=None)
