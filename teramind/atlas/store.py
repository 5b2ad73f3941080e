"""Reads an atlas store: windows of transcript counts, images and region labels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from scipy.sparse import csr_array
from zarr.errors import NodeNotFoundError  # a FileNotFoundError

from teramind.atlas.blocks import BinCounts, decode_blocks
from teramind.atlas.entries import EntryReader
from teramind.atlas.layout import BIN_SIZE, ENTRIES, IMAGES, OFFSETS, REGIONS, STRIP_BINS, Metadata, ceil_div
from teramind.errors import InputError

_Number = TypeVar("_Number", bound=np.generic)


class Atlas:
    """Spatial transcriptomics of one sample in one frame: sparse counts a bin and gene, images, region labels.

    Windows are given in px of the atlas frame, half open, with z in slices. They may reach outside on any side, where
    there are no transcripts and images are 0. Reading is thread-safe, and costs what the window holds: the file is
    read in chunks of some five blocks of 1024 x 1024 px.

    Attributes:
        path: The store.
        metadata: All attributes of the store.
    """

    def __init__(self, path: Path, metadata: Metadata, root: zarr.Group) -> None:
        self.path = path
        self.metadata = metadata
        self._entries = EntryReader(_array(root, ENTRIES, path))
        self._offsets: npt.NDArray[np.int64] = np.asarray(_array(root, OFFSETS, path)[:], dtype=np.int64)
        self._image = _array(root, f"{IMAGES}/0", path) if metadata.scaling is not None else None
        self._regions = _array(root, REGIONS, path) if metadata.region_names is not None else None
        self._check_offsets()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an atlas store for reading.

        Raises:
            InputError: There is none, it is no atlas, was not written to its end, is damaged, or is of a newer format.
        """
        place = Path(path)
        root, metadata = _open_root(place)
        if not metadata.complete:
            raise InputError(f"{place} was not written to its end: ingest the data again")
        return cls(place, metadata, root)

    @property
    def genes(self) -> list[str]:
        """Names of the genes, in the order of the counts' gene axis."""
        return self.metadata.genes

    @property
    def stains(self) -> list[str]:
        """Names of the stains, in the order of the images' first axis."""
        return self.metadata.stains

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return len(self.metadata.slice_z)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, and height and width of every slice in px."""
        return self.slices, *self.metadata.shape

    @property
    def slice_z(self) -> list[float]:
        """Position of every slice, um."""
        return self.metadata.slice_z

    @property
    def pixel_size(self) -> float:
        """Side of a pixel, um."""
        return self.metadata.pixel_size

    @property
    def has_images(self) -> bool:
        """Whether ``image_window`` can be used."""
        return self._image is not None

    @property
    def scaling(self) -> dict[str, tuple[float, float]] | None:
        """Stain -> the raw intensities shown as 0 and as 255; None without images."""
        return self.metadata.scaling

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the data came from and how they were read."""
        return self.metadata.provenance

    @property
    def region_names(self) -> dict[int, str] | None:
        """Label -> name of the region; None without a label map."""
        return self.metadata.region_names

    @property
    def stored_counts(self) -> int:
        """How many counts of a bin and gene are not 0."""
        return len(self._entries)

    @property
    def fingerprint(self) -> str:
        """Hash of what is in the atlas; the same for the same content, whoever ingested it and when."""
        described = self.metadata.to_attributes()
        for values in described.values():
            values.pop("provenance")
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        # Where strips lie in the file depends on the order in which they were written; how long they are does not.
        digest.update(np.diff(self._offsets, axis=2).astype("<i8").tobytes())
        return digest.hexdigest()

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint16]:
        """Transcripts per bin of 16 x 16 px.

        Args:
            z0: First slice; may be negative.
            z1: Slice after the last one; may be beyond the end.
            y0: First row, px, a multiple of 16.
            y1: Row after the last one.
            x0: First column, px, a multiple of 16.
            x1: Column after the last one.

        Returns:
            uint16 (genes, z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16).

        Raises:
            InputError: A bound is no multiple of 16, or an end lies before its start; or the store is damaged.
        """
        window = _BinWindow(z0, z1, y0, y1, x0, x1)
        counts = np.zeros((len(self.genes), *window.shape), dtype=np.uint16)
        flat, plane = counts.reshape(-1), int(np.prod(window.shape))
        for place, block_counts in self._blocks(window):
            place += block_counts.gene.astype(np.int64) * plane
            flat[place] = block_counts.count  # every bin and gene is stored once
        return counts

    def gene_entries(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.int32]:
        """Transcripts per bin of 16 x 16 px, where there are any: ``gene_window`` as it is stored.

        Args and errors are those of ``gene_window``.

        Returns:
            int32 (3, n): flat index of the bin in (z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16), gene, and count.
        """
        window = _BinWindow(z0, z1, y0, y1, x0, x1)
        parts = [np.zeros((3, 0), dtype=np.int32)]
        for place, block_counts in self._blocks(window):
            parts.append(np.stack((place, block_counts.gene, block_counts.count)).astype(np.int32))
        return np.concatenate(parts, axis=1)

    def count_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint32]:
        """Transcripts per bin of 16 x 16 px, all genes together.

        Args and errors are those of ``gene_window``.

        Returns:
            uint32 (z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16).
        """
        window = _BinWindow(z0, z1, y0, y1, x0, x1)
        counts = np.zeros(window.shape, dtype=np.uint32)
        flat = counts.reshape(-1)
        for place, block_counts in self._blocks(window):
            # The entries of a bin are neighbours, but bins at a window's side may have been cut out between them.
            first = np.flatnonzero(np.diff(place, prepend=-1))
            if len(first):
                flat[place[first]] = np.add.reduceat(block_counts.count, first, dtype=np.uint32)
        return counts

    def strip_counts(self, z: int, strip: int) -> csr_array:
        """The counts of a strip of 64 rows of bins (fewer in the last), as ``AtlasWriter.append_counts`` takes them.

        Args:
            z: The slice.
            strip: Its number, from 0.

        Returns:
            uint16 (rows * columns, genes), bins row-major, canonical.

        Raises:
            InputError: The slice has no such strip; or the store is damaged.
        """
        strips, _ = self.metadata.block_shape
        if not (0 <= z < self.slices and 0 <= strip < strips):
            raise InputError(f"slice {z} of {self.slices} has no strip {strip} of {strips}")
        rows, columns = self.metadata.bin_shape
        first, end = strip * STRIP_BINS, min((strip + 1) * STRIP_BINS, rows)
        window = _BinWindow(z, z + 1, first * BIN_SIZE, end * BIN_SIZE, 0, columns * BIN_SIZE)
        parts = list(self._blocks(window))
        place = np.concatenate([np.empty(0, np.int64), *(place for place, _ in parts)])
        gene = np.concatenate([np.empty(0, np.uint16), *(counts.gene for _, counts in parts)])
        count = np.concatenate([np.empty(0, np.uint16), *(counts.count for _, counts in parts)])
        matrix = csr_array((count, (place, gene)), shape=((end - first) * columns, len(self.genes)))
        matrix.sum_duplicates()
        return matrix

    def image_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        """Pixels of all stains; outside the slices they are 0.

        Args:
            z0: First slice; may be negative.
            z1: Slice after the last one; may be beyond the end.
            y0: First row, px.
            y1: Row after the last one.
            x0: First column, px.
            x1: Column after the last one.

        Returns:
            uint8 (stains, z1 - z0, y1 - y0, x1 - x0).

        Raises:
            InputError: The atlas has no images, or an end lies before its start.
        """
        if self._image is None:
            raise InputError(f"{self.path} has no images: ingest the data with their stains")
        bounds = ((z0, z1), (y0, y1), (x0, x1))
        shape = (len(self.stains), *(_length(start, end) for start, end in bounds))
        return _padded_read(self._image, bounds, np.zeros(shape, dtype=np.uint8))

    def region_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint16]:
        """Region label of every bin of 16 x 16 px; 0 is no region.

        Args are those of ``gene_window``.

        Returns:
            uint16 (z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16).

        Raises:
            InputError: The atlas has no label map; or as ``gene_window``.
        """
        if self._regions is None:
            raise InputError(f"{self.path} has no map of regions: ingest the data with --regions")
        window = _BinWindow(z0, z1, y0, y1, x0, x1)
        bounds = ((window.z0, window.z1), (window.y0, window.y1), (window.x0, window.x1))
        return _padded_read(self._regions, bounds, np.zeros(window.shape, dtype=np.uint16))

    def _blocks(self, window: _BinWindow) -> Iterator[tuple[npt.NDArray[np.int64], BinCounts]]:
        """The counts of a window, a strip at a time, and the flat index of each in (z, y, x) of the window."""
        strips, columns = self.metadata.block_shape
        first_block, end_block = max(0, window.x0 // STRIP_BINS), min(columns, ceil_div(window.x1, STRIP_BINS))
        if first_block >= end_block:
            return
        for z in range(max(0, window.z0), min(self.slices, window.z1)):
            for strip in range(max(0, window.y0 // STRIP_BINS), min(strips, ceil_div(window.y1, STRIP_BINS))):
                offsets = self._offsets[z, strip, first_block : end_block + 1]
                if offsets[0] == offsets[-1]:
                    continue
                counts = decode_blocks(self._entries.read(int(offsets[0]), int(offsets[-1])), offsets, first_block)
                yield window.place(counts, z, strip * STRIP_BINS)

    def _check_offsets(self) -> None:
        strips, columns = self.metadata.block_shape
        expected = (self.slices, strips, columns + 1)
        if self._offsets.shape != expected or int(np.diff(self._offsets, axis=2).sum()) != self.stored_counts:
            raise InputError(f"the block index of {self.path} does not fit its counts: ingest the data again")


class AlteredAtlas(Atlas):
    """An atlas with other counts than those in its store; what ``gene_window`` gives is what all reading gives."""

    def gene_entries(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.int32]:
        """See ``Atlas.gene_entries``."""
        counts = self.gene_window(z0, z1, y0, y1, x0, x1).reshape(len(self.genes), -1)
        gene, place = counts.nonzero()
        return np.stack((place, gene, counts[gene, place])).astype(np.int32)


class _BinWindow:
    """A window given in slices and px, in slices and bins."""

    def __init__(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> None:
        for bound in (y0, y1, x0, x1):
            if bound % BIN_SIZE:
                low = bound - bound % BIN_SIZE
                raise InputError(f"{bound} px is no border of a bin of {BIN_SIZE} px: use {low} or {low + BIN_SIZE}")
        self.z0, self.z1 = z0, z1
        self.y0, self.y1, self.x0, self.x1 = (bound // BIN_SIZE for bound in (y0, y1, x0, x1))
        self.shape = _length(z0, z1), _length(self.y0, self.y1), _length(self.x0, self.x1)

    def place(self, counts: BinCounts, z: int, first_row: int) -> tuple[npt.NDArray[np.int64], BinCounts]:
        """Cut counts of slice ``z`` to the window; and their flat index in it."""
        _, height, width = self.shape
        row = counts.row + (first_row - self.y0)
        column = counts.column - self.x0
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = ((z - self.z0) * height + row) * width + column
        if inside.all():
            return place, counts
        kept = BinCounts(counts.gene[inside], row[inside], column[inside], counts.count[inside])
        return place[inside], kept


def is_atlas(path: Path) -> bool:
    """Whether there is an atlas store at ``path``, whole or half-written."""
    try:
        _open_root(path)
    except InputError:
        return False
    return True


def _open_root(path: Path) -> tuple[zarr.Group, Metadata]:
    if not path.exists():
        raise InputError(f"there is no atlas {path}: check the name, or write one with `teramind ingest`")
    try:
        root = zarr.open_group(path, mode="r")
    except (NodeNotFoundError, ValueError, OSError, KeyError) as error:
        raise InputError(f"{path} is not a teramind atlas: write one with `teramind ingest`") from error
    return root, Metadata.from_attributes(dict(root.attrs), str(path))


def _array(root: zarr.Group, name: str, path: Path) -> zarr.Array[Any]:
    try:
        node = root[name]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is incomplete, it has no array {name}: ingest the data again") from error
    if not isinstance(node, zarr.Array):
        raise InputError(f"{path} is damaged, {name} is no array: ingest the data again")
    return node


def _length(start: int, end: int) -> int:
    if end < start:
        raise InputError(f"a window cannot run from {start} to {end}: its end lies before its start")
    return end - start


def _padded_read(
    array: zarr.Array[Any], bounds: tuple[tuple[int, int], ...], out: npt.NDArray[_Number]
) -> npt.NDArray[_Number]:
    """Read the part of a window of the last axes that lies in the array into ``out``."""
    sizes = array.shape[-len(bounds) :]
    inside = [(max(0, start), min(size, end)) for (start, end), size in zip(bounds, sizes, strict=True)]
    if all(start < end for start, end in inside):
        source: list[Any] = [slice(start, end) for start, end in inside]
        target: list[Any] = [
            slice(low - start, high - start) for (low, high), (start, _) in zip(inside, bounds, strict=True)
        ]
        out[..., *target] = array[..., *source]
    return out
