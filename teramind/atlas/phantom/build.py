"""Writes a phantom as an atlas store, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from tqdm import tqdm

import teramind
from teramind.atlas.binning import rasterize
from teramind.atlas.images import SHARD
from teramind.atlas.layout import BIN_SIZE, STRIP_BINS, ceil_div
from teramind.atlas.phantom.phantom import Phantom
from teramind.atlas.store import Atlas
from teramind.atlas.tables import read_ahead
from teramind.atlas.writer import AtlasWriter

RAW_RANGES = {"DAPI": (200.0, 10400.0), "PolyT": (100.0, 5200.0)}
"""Raw intensities shown as 0 and as 255, as a microscope's camera might give them: whole numbers a grey level."""


def build_phantom(phantom: Phantom, output: str | os.PathLike[str], *, overwrite: bool = False) -> Atlas:
    """Write a phantom as an atlas with images and a label map of its regions.

    A strip of bins or a shard of pixels is made while the one before is written, and no more is in memory. The
    fingerprint of the store is a function of the phantom's arguments alone.

    Args:
        phantom: what to write.
        output: the store to write.
        overwrite: replace an atlas that is there.

    Raises:
        InputError: the name is taken, or its folder is missing.
        OSError: it cannot be written, for instance because the disk is full.
    """
    _, height, width = phantom.shape
    with AtlasWriter(
        output,
        genes=phantom.genes,
        stains=phantom.stains,
        slice_z=phantom.slice_z,
        shape=(height, width),
        pixel_size=phantom.pixel_size,
        scaling={stain: RAW_RANGES[stain] for stain in phantom.stains},
        provenance=_provenance(phantom),
        overwrite=overwrite,
    ) as writer:
        _write_counts(phantom, writer)
        _write_images(phantom, writer)
        for index in range(phantom.shape[0]):
            bounds = ceil_div(height, BIN_SIZE) * BIN_SIZE, ceil_div(width, BIN_SIZE) * BIN_SIZE
            labels = phantom.region_window(index, index + 1, 0, bounds[0], 0, bounds[1])[0]
            writer.write_regions(labels, phantom.region_names, index)
    return Atlas.open(output)


def _provenance(phantom: Phantom) -> dict[str, Any]:
    return {
        "reader": "phantom",
        "teramind": teramind.__version__,
        "seed": phantom.seed,
        "morphology_seed": phantom.morphology_seed,
        "z_step_um": phantom.z_step,
    }


def _write_counts(phantom: Phantom, writer: AtlasWriter) -> None:
    slices, height, _ = phantom.shape
    strips = ceil_div(height, STRIP_BINS * BIN_SIZE)
    with tqdm(total=slices * strips, desc="counts", unit="strip", disable=None) as bar:
        for index in range(slices):
            for counts in read_ahead(_strips(phantom, index)):
                writer.append_counts(index, counts)
                bar.update()


def _strips(phantom: Phantom, index: int) -> Iterator[csr_array]:
    _, height, width = phantom.shape
    step = STRIP_BINS * BIN_SIZE
    for y0 in range(0, height, step):
        y1 = min(y0 + step, height)
        x, y, gene = phantom.transcripts(index, y0, y1, 0, width)
        yield rasterize(x, y - np.float32(y0), gene, shape=(y1 - y0, width), genes=len(phantom.genes))


def _write_images(phantom: Phantom, writer: AtlasWriter) -> None:
    slices, height, width = phantom.shape
    shards = ceil_div(height, SHARD) * ceil_div(width, SHARD)
    with tqdm(total=slices * shards, desc="images", unit="shard", disable=None) as bar:
        for index, y0, x0, pixels in read_ahead(_shards(phantom)):
            for stain, plane in enumerate(pixels):
                writer.write_image(index, stain, y0, x0, plane)
            bar.update()


def _shards(phantom: Phantom) -> Iterator[tuple[int, int, int, npt.NDArray[np.uint8]]]:
    """Yield slice, y0, x0 and the pixels, (stains, h, w), of every shard."""
    slices, height, width = phantom.shape
    for index in range(slices):
        for y0 in range(0, height, SHARD):
            for x0 in range(0, width, SHARD):
                y1, x1 = min(y0 + SHARD, height), min(x0 + SHARD, width)
                yield index, y0, x0, phantom.image_window(index, index + 1, y0, y1, x0, x1)[:, 0]
