"""Writes an atlas store: sparse counts strip by strip, images shard by shard, and optionally a label map."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from scipy.sparse import csr_array
from zarr.codecs import ZstdCodec

from teramind.atlas.blocks import encode_strip
from teramind.atlas.entries import EntryWriter
from teramind.atlas.images import ImageWriter
from teramind.atlas.layout import OFFSETS, REGIONS, STRIP_BINS, Metadata
from teramind.atlas.staging import StagedFolder
from teramind.atlas.store import is_atlas
from teramind.errors import InputError

__all__ = ["STRIP_BINS", "AtlasWriter"]

_REGION_CHUNK = 512


class AtlasWriter:
    """Builds an atlas in a hidden folder beside its place and renames it into place when it is whole.

    Use it as a context manager: leaving it cleanly calls ``finish``, an exception removes what was written. A killed
    process leaves a hidden ``.NAME.partial-HOST-PID``, which the next writer to that name removes. Not thread-safe:
    one thread writes.

    Args:
        path: The store, a folder; its parent must exist.
        genes: Names, in the order of the counts' columns.
        stains: Names, in the order of the images' channels.
        slice_z: Position of every slice, um, increasing.
        shape: Height and width of every slice, px.
        pixel_size: Side of a pixel, um.
        scaling: Stain -> the raw intensities shown as 0 and as 255; None if there are no images.
        provenance: Where the data came from and how they were read; anything JSON can hold.
        overwrite: Replace an atlas of that name. Nothing but an atlas is replaced.

    Raises:
        InputError: The name is taken, its parent is missing, or an argument makes no atlas.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        genes: Sequence[str],
        stains: Sequence[str],
        slice_z: Sequence[float],
        shape: tuple[int, int],
        pixel_size: float,
        scaling: Mapping[str, tuple[float, float]] | None,
        provenance: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        self._metadata = Metadata(
            genes=list(genes),
            stains=list(stains),
            slice_z=[float(z) for z in slice_z],
            shape=(int(shape[0]), int(shape[1])),
            pixel_size=float(pixel_size),
            scaling=None if scaling is None else dict(scaling),
            provenance=json.loads(json.dumps(dict(provenance))),
        )
        slices = len(self._metadata.slice_z)
        strips, columns = self._metadata.block_shape
        self._offsets = np.zeros((slices, strips, columns + 1), dtype=np.int64)
        self._strips_written = [0] * slices
        self._slice_transcripts = [0] * slices
        self._gene_transcripts = np.zeros(len(genes), dtype=np.int64)
        self._checksum = 0
        self._region_names: dict[int, str] = {}
        self._region_checksums: dict[int, int] = {}
        self._regions: zarr.Array[Any] | None = None
        self._images: ImageWriter | None = None

        self._folder = StagedFolder(path, overwrite=overwrite, is_ours=is_atlas)
        self._open = True
        try:
            # Until the store is whole its attributes say so.
            self._root = zarr.create_group(self._folder.partial, attributes=self._metadata.to_attributes())
            self._entries = EntryWriter(self._root)
            if scaling is not None:
                self._images = ImageWriter(self._root, self._metadata)
        except BaseException as error:
            self._discard(error)
            raise

    @property
    def path(self) -> Path:
        """Where the store will stand."""
        return self._folder.path

    def append_counts(self, slice_index: int, counts: csr_array) -> None:
        """Write the next strip of a slice: 64 rows of bins, or what is left of them in the last one.

        The strips of a slice come in order; those of different slices may alternate.

        Args:
            slice_index: The slice.
            counts: uint16 (rows * columns, genes), bins row-major, columns sorted and none twice.

        Raises:
            ValueError: There is no such slice, it is complete, or the counts have another shape, type or order.
            OSError: They cannot be written, for instance because the disk is full.
        """
        self._check_counts(slice_index, counts)
        strip = self._strips_written[slice_index]
        if counts.nnz and not counts.data.all():
            counts = counts.copy()
            counts.eliminate_zeros()
        entries, offsets = encode_strip(counts, self._metadata.bin_shape[1])
        self._offsets[slice_index, strip] = offsets + len(self._entries)
        self._entries.append(entries)
        # Strips may come in any order of slices: the checksum of all is the same for the same counts.
        self._checksum ^= zlib.crc32(entries.data, zlib.crc32(f"{slice_index} {strip}".encode()))
        self._strips_written[slice_index] += 1
        self._slice_transcripts[slice_index] += int(counts.data.sum(dtype=np.int64))
        per_gene = np.bincount(counts.indices, weights=counts.data, minlength=len(self._gene_transcripts))
        self._gene_transcripts += per_gene.astype(np.int64)

    def write_image(self, slice_index: int, stain_index: int, y0: int, x0: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write a window of one plane; what is never written is 0.

        Args:
            slice_index: The slice.
            stain_index: The stain.
            y0: First row, a multiple of 4096 px.
            x0: First column, a multiple of 4096 px.
            pixels: uint8 (h, w); sides are multiples of 4096 px, or end at the image's edge. No pixel comes twice.

        Raises:
            ValueError: The window lies otherwise, or the atlas was opened without ``scaling``.
            OSError: It cannot be written, for instance because the disk is full.
        """
        if self._images is None:
            raise ValueError("this atlas was opened without images: give their scaling")
        self._images.write(slice_index, stain_index, y0, x0, pixels)

    def write_regions(
        self, labels: npt.NDArray[np.integer[Any]], names: Mapping[int, str], slice_index: int | None = None
    ) -> None:
        """Write the label map of anatomical regions, of all slices or of one; slices without stay 0.

        Args:
            labels: (slices, rows, columns) at bin resolution, or (rows, columns) of one slice; 0 is no region.
            names: Label -> name; every label but 0 needs one.
            slice_index: The slice, if it is one.

        Raises:
            InputError: The map has another shape, or a label that has no name or does not fit uint16.
            ValueError: There is no such slice.
        """
        first = slice_index or 0
        self._check_slice(first)
        planes = labels if slice_index is None else labels[None]
        expected = (len(self._metadata.slice_z) if slice_index is None else 1, *self._metadata.bin_shape)
        if planes.shape != expected:
            raise InputError(
                f"the region map is {' x '.join(map(str, planes.shape))} and the slices have {expected} bins of 16 px: "
                "give it at bin resolution"
            )
        unnamed = [int(label) for label in np.unique(planes) if label != 0 and int(label) not in names]
        if unnamed:
            raise InputError(f"label {unnamed[0]} of the region map has no name: name every label but 0")
        if any(not 0 < label < 2**16 for label in names):
            raise InputError("the labels of a region map are whole numbers from 1 to 65535")
        if self._regions is None:
            self._regions = self._create_regions()
        for index, plane in enumerate(np.ascontiguousarray(planes, dtype=np.uint16), start=first):
            self._regions[index] = plane
            self._region_checksums[index] = zlib.crc32(plane.data)
        self._region_names.update({int(label): str(name) for label, name in names.items()})

    def finish(self) -> None:
        """Check that nothing is missing, build the image pyramid and give the store its name.

        Raises:
            InputError: A slice lacks strips, or the name was taken in the meantime.
            OSError: It cannot be written, for instance because the disk is full.
        """
        if not self._open:
            return
        try:
            self._check_complete()
            self._entries.finish()
            self._root.create_array(
                OFFSETS, data=self._offsets, chunks=self._offsets.shape, compressors=[ZstdCodec(level=3)]
            )
            if self._images is not None:
                self._images.finish()
            self._root.update_attributes(self._final_metadata().to_attributes())
            self._folder.publish()
        except BaseException as error:
            self._discard(error)
            raise
        self._discard()

    def _final_metadata(self) -> Metadata:
        content = {"counts": f"{self._checksum:08x}"}
        if self._images is not None:
            content["images"] = f"{self._images.checksum:08x}"
        if self._regions is not None:
            checksums = sorted(self._region_checksums.items())
            content["regions"] = f"{zlib.crc32(json.dumps(checksums).encode()):08x}"
        return replace(
            self._metadata,
            region_names=self._region_names if self._regions is not None else None,
            slice_transcripts=self._slice_transcripts,
            gene_transcripts=self._gene_transcripts.tolist(),
            content=content,
            complete=True,
        )

    def _check_counts(self, slice_index: int, counts: csr_array) -> None:
        self._check_slice(slice_index)
        strip = self._strips_written[slice_index]
        strips = self._metadata.block_shape[0]
        if strip == strips:
            raise ValueError(f"slice {slice_index} has its {strips} strips already")
        rows, columns = self._metadata.bin_shape
        height = min(STRIP_BINS, rows - strip * STRIP_BINS)
        expected = (height * columns, len(self._metadata.genes))
        if counts.shape != expected:
            raise ValueError(f"strip {strip} has {expected} bins and genes, the counts are {counts.shape}")
        if counts.dtype != np.uint16:
            raise ValueError(f"the counts of a bin are uint16, not {counts.dtype}")
        if not counts.has_canonical_format:
            raise ValueError("the counts' columns are not sorted and unique in every row: call sum_duplicates() first")

    def _check_slice(self, slice_index: int) -> None:
        if not 0 <= slice_index < len(self._strips_written):
            raise ValueError(f"there is no slice {slice_index} in an atlas of {len(self._strips_written)}")

    def _check_complete(self) -> None:
        strips = self._metadata.block_shape[0]
        for index, written in enumerate(self._strips_written):
            if written < strips:
                raise InputError(
                    f"{self.path} is not written: slice {index} has {written} of {strips} strips; write the rest"
                )

    def _create_regions(self) -> zarr.Array[Any]:
        rows, columns = self._metadata.bin_shape
        return self._root.create_array(
            REGIONS,
            shape=(len(self._metadata.slice_z), rows, columns),
            chunks=(1, min(rows, _REGION_CHUNK), min(columns, _REGION_CHUNK)),
            dtype=np.uint16,
            fill_value=0,
            compressors=[ZstdCodec(level=3)],
            dimension_names=("z", "y", "x"),
        )

    def _discard(self, error: BaseException | None = None) -> None:
        """Let go of everything; what has its name by now stays."""
        self._open = False
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(self.path)  # a full disk, said by zarr without a file's name
        if self._images is not None:
            self._images.abort()
        self._folder.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._discard(error)
