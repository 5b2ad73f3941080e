"""Writes a phantom as a MERSCOPE region folder, so that the ingest can be tested on data whose truth is known.

The slices are the planes of one folder: ``teramind ingest merscope FOLDER --z-planes`` reads it back. See
``teramind.atlas.merscope`` for what a folder holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import tifffile

from teramind.atlas.merscope import TRANSFORM_FILE
from teramind.atlas.phantom.build import RAW_RANGES
from teramind.atlas.phantom.phantom import TILE, Phantom
from teramind.errors import InputError
from teramind.files import appears_whole

# Where the mosaics' first pixel lies in the microns of the instrument: anywhere but at zero.
ORIGIN_UM = (-64.0, 128.0)


def write_merscope(phantom: Phantom, folder: str | Path) -> None:
    """Write transcripts, mosaics and transform of a phantom; tile by tile, in bounded memory.

    Mosaics are uint16 within ``RAW_RANGES``, whole steps a grey level: read with these as ``scale``, their pixels are
    the phantom's own.

    Args:
        phantom: what to write.
        folder: the region folder; it must not be there.

    Raises:
        InputError: there is something of that name.
        OSError: it cannot be written.
    """
    require_free(folder)
    with appears_whole(folder) as partial:
        (partial / "images").mkdir(parents=True)
        _write_transcripts(phantom, partial / "detected_transcripts.csv")
        for index in range(phantom.shape[0]):
            _write_mosaics(phantom, index, partial / "images")
        _write_transform(phantom, partial / "images" / TRANSFORM_FILE)


def require_free(folder: str | Path) -> None:
    """Refuse a folder that is there.

    Raises:
        InputError: it is.
    """
    if Path(folder).exists():
        raise InputError(f"{folder} is there already; name another folder, or remove it")


def _write_transform(phantom: Phantom, path: Path) -> None:
    scale = 1 / phantom.pixel_size
    x0, y0 = ORIGIN_UM
    rows = [(scale, 0.0, -x0 * scale), (0.0, scale, -y0 * scale), (0.0, 0.0, 1.0)]
    path.write_text("".join(" ".join(f"{value:.18e}" for value in row) + "\n" for row in rows), encoding="utf-8")


def _write_transcripts(phantom: Phantom, path: Path) -> None:
    """Write the table with the columns of Vizgen's instrument software of 2021."""
    names = pa.array(phantom.genes)
    written = 0
    with pa_csv.CSVWriter(path, _SCHEMA, write_options=pa_csv.WriteOptions(quoting_style="needed")) as writer:
        for index, x, y, gene in _transcript_blocks(phantom):
            microns = [place * phantom.pixel_size + first for place, first in zip((x, y), ORIGIN_UM, strict=True)]
            columns = [
                np.arange(written, written + len(gene)),
                gene,
                *microns,
                np.full(len(gene), float(index)),
                x,
                y,
                np.zeros(len(gene), dtype=np.int64),
                names.take(pa.array(gene)),
            ]
            writer.write(pa.record_batch([pa.array(column) for column in columns], schema=_SCHEMA))
            written += len(gene)


def _transcript_blocks(
    phantom: Phantom,
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.intp]]]:
    """Slice, x and y in px, and gene of the transcripts of each tile."""
    slices, height, width = phantom.shape
    for index in range(slices):
        for y0 in range(0, height, TILE):
            for x0 in range(0, width, TILE):
                x, y, gene = phantom.transcripts(index, y0, y0 + TILE, x0, x0 + TILE)
                yield index, x.astype(np.float64), y.astype(np.float64), gene


def _write_mosaics(phantom: Phantom, index: int, folder: Path) -> None:
    """Write the images of a slice, one file a stain, filled tile by tile on disk."""
    _, height, width = phantom.shape
    files = [_mosaic(folder / f"mosaic_{stain}_z{index}.tif", height, width) for stain in phantom.stains]
    for y0 in range(0, height, TILE):
        for x0 in range(0, width, TILE):
            y1, x1 = min(y0 + TILE, height), min(x0 + TILE, width)
            image = phantom.image_window(index, index + 1, y0, y1, x0, x1)[:, 0]
            for file, stain, pixels in zip(files, phantom.stains, image, strict=True):
                low, high = RAW_RANGES[stain]
                file[y0:y1, x0:x1] = np.rint(low + pixels * ((high - low) / 255))
    for file in files:
        file.flush()  # type: ignore[attr-defined]


def _mosaic(path: Path, height: int, width: int) -> npt.NDArray[np.uint16]:
    """An empty mosaic, mapped; its place on the disk is taken, for where that is full a mapped write kills us."""
    mapped = tifffile.memmap(path, shape=(height, width), dtype=np.uint16, photometric="minisblack")
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped


_SCHEMA = pa.schema(
    [
        ("", pa.int64()),
        ("barcode_id", pa.int64()),
        ("global_x", pa.float64()),
        ("global_y", pa.float64()),
        ("global_z", pa.float64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("fov", pa.int64()),
        ("gene", pa.string()),
    ]
)
