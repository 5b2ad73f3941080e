"""An atlas with further slices: a new store that holds the old slices and the new ones, in the order of their z."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import teramind
from teramind.atlas.binning import rasterize
from teramind.atlas.layout import BIN_SIZE, STRIP_BINS, ceil_div
from teramind.atlas.store import Atlas
from teramind.atlas.writer import AtlasWriter
from teramind.errors import InputError

CLOSEST_UM = 0.5  # two slices


@dataclass(frozen=True)
class NewSlice:
    """Transcripts of a slice that an atlas lacks.

    Attributes:
        z: its position, um.
        x: (n,) px of the atlas frame; what lies outside is left out.
        y: (n,) px.
        gene: (n,) index into the atlas' genes.
    """

    z: float
    x: npt.NDArray[np.floating[Any]]
    y: npt.NDArray[np.floating[Any]]
    gene: npt.NDArray[np.intp]


def with_slices(
    atlas: Atlas,
    output: str | os.PathLike[str],
    slices: Sequence[NewSlice],
    *,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Atlas:
    """Write a copy of an atlas with further slices.

    The copy has counts and, where the atlas has them, region labels (none in the new slices), and no images: the new
    slices have none. Old counts are copied strip by strip.

    Args:
        atlas: to copy; it is only read.
        output: the store to write.
        slices: to add, in any order.
        provenance: what the copy should say about the new slices, beside their numbers.
        overwrite: replace an atlas that is there.

    Raises:
        InputError: ``output`` is the atlas itself, two slices lie at the same place, or the name is taken.
        OSError: it cannot be written, for instance because the disk is full.
    """
    check_places(atlas, output, [new.z for new in slices])
    places = [(z, index, None) for index, z in enumerate(atlas.slice_z)] + [(new.z, -1, new) for new in slices]
    places.sort(key=lambda place: place[0])
    _, height, width = atlas.shape
    described = {
        "reader": "slices added",
        "teramind": teramind.__version__,
        "atlas": {"path": str(atlas.path), "fingerprint": atlas.fingerprint, "provenance": atlas.provenance},
        "added_slices": [number for number, (_, _, new) in enumerate(places) if new is not None],
        **(provenance or {}),
    }
    with AtlasWriter(
        output,
        genes=atlas.genes,
        stains=[],
        slice_z=[z for z, _, _ in places],
        shape=(height, width),
        pixel_size=atlas.pixel_size,
        scaling=None,
        provenance=described,
        overwrite=overwrite,
    ) as writer:
        for number, (_, index, new) in enumerate(places):
            if new is None:
                _copy_slice(atlas, index, writer, number)
            else:
                _write_slice(new, writer, number, (height, width), len(atlas.genes))
    return Atlas.open(output)


def check_places(atlas: Atlas, output: str | os.PathLike[str], z: Sequence[float]) -> None:
    """Raise what ``with_slices`` would for new slices at these places (um), before there are any.

    Raises:
        InputError: ``output`` is the atlas itself, or two slices lie at the same place.
    """
    if Path(output).resolve() == atlas.path.resolve():
        raise InputError(f"{output} is the atlas itself: slices are added to a copy, so give it another name")
    for before, after in pairwise(sorted([*atlas.slice_z, *z])):
        if not after - before >= CLOSEST_UM:  # a NaN, too
            raise InputError(f"two slices would lie at z = {before:g} and {after:g} um: leave out the new one")


def _copy_slice(atlas: Atlas, index: int, writer: AtlasWriter, number: int) -> None:
    _, height, width = atlas.shape
    for strip in range(ceil_div(height, STRIP_BINS * BIN_SIZE)):
        writer.append_counts(number, atlas.strip_counts(index, strip))
    if atlas.region_names is not None:
        bottom, right = (ceil_div(side, BIN_SIZE) * BIN_SIZE for side in (height, width))
        labels = atlas.region_window(index, index + 1, 0, bottom, 0, right)[0]
        writer.write_regions(labels, atlas.region_names, number)


def _write_slice(new: NewSlice, writer: AtlasWriter, number: int, shape: tuple[int, int], genes: int) -> None:
    height, width = shape
    step = STRIP_BINS * BIN_SIZE
    x, y = np.asarray(new.x, np.float32), np.asarray(new.y, np.float32)
    for y0 in range(0, height, step):
        y1 = min(y0 + step, height)
        rows = (y >= y0) & (y < y1)
        writer.append_counts(
            number, rasterize(x[rows], y[rows] - np.float32(y0), new.gene[rows], shape=(y1 - y0, width), genes=genes)
        )
