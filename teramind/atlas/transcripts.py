"""Transcripts in any order -> sparse bin counts in order, in bounded memory.

A transcript becomes one 64-bit record, (bin row over all slices, bin column, gene) from its high bits to its low
ones. Records fill a buffer; a full buffer is sorted, which groups it by strip of bins, and goes to a scratch file as
one run. At the end a strip is the concatenation of its part of every run, and is rasterised on its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from teramind.atlas.binning import rasterize
from teramind.atlas.layout import BIN_SIZE, STRIP_BINS, ceil_div
from teramind.errors import InputError

# 256 MiB hold 33.5 million transcripts; a run of that size is also large enough that reading it strip by strip is
# mostly sequential.
SORT_MEMORY = 256 << 20

# One transcript. As one little-endian integer it sorts by row, then column, then gene; so the fields come in reverse.
RECORD = np.dtype([("gene", "<u2"), ("column", "<u2"), ("row", "<u4")])
SORT_KEY = np.dtype("<u8")
ROW_SHIFT = np.uint64(32)
LARGEST_GENE, LARGEST_COLUMN, LARGEST_ROW = (1 << 16) - 1, (1 << 16) - 1, (1 << 32) - 1

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class _Run:
    """Sorted records, in memory or at an offset (bytes) of the scratch file; strip s is ``starts[s]:starts[s + 1]``."""

    starts: npt.NDArray[np.int64]
    records: Records | None
    offset: int


class TranscriptSpool:
    """Takes transcripts block by block and gives them back as counts, strip by strip.

    The scratch file has no name: it lies on the disk of ``scratch`` and is gone when the spool is closed, however the
    process ends.

    Args:
        slices: number of slices.
        shape: (H, W) px of every slice.
        scratch: folder whose disk takes what exceeds ``memory``.
        memory: bytes of records held before they go to disk.

    Attributes:
        gene_counts: (slices, genes seen so far) kept transcripts.

    Raises:
        InputError: if the atlas has more bins than a record can name.
    """

    def __init__(self, slices: int, shape: tuple[int, int], scratch: Path, memory: int = SORT_MEMORY) -> None:
        self.height, self.width = shape
        self.bin_rows, self.bin_columns = ceil_div(self.height, BIN_SIZE), ceil_div(self.width, BIN_SIZE)
        self.strips = ceil_div(self.bin_rows, STRIP_BINS)
        if self.bin_columns > LARGEST_COLUMN or slices * self.strips * STRIP_BINS > LARGEST_ROW:
            raise InputError(
                f"an atlas of {slices} slices of {self.height} x {self.width} px is too large; check that transforms "
                "and extent are in microns"
            )
        self.gene_counts = np.zeros((slices, 0), dtype=np.int64)
        self._slices = slices
        self._buffer: Records = np.empty(max(1, memory // RECORD.itemsize), dtype=RECORD)
        self._held = 0
        self._runs: list[_Run] = []
        self._scratch_folder = scratch
        self._scratch: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the scratch file."""
        if self._scratch is not None:
            self._scratch.close()
        self._scratch, self._runs = None, []

    def add(
        self,
        slice_index: int | npt.NDArray[np.intp],
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[np.floating[Any]],
        gene: npt.NDArray[np.intp],
    ) -> npt.NDArray[np.bool_]:
        """Keep the transcripts of a block that are of a gene and lie inside their slice.

        Args:
            slice_index: the slice of all, or of each.
            x: (n,) px along columns.
            y: (n,) px along rows.
            gene: (n,) gene indices, 0..65535; negative for what is no gene.

        Returns:
            (n,) which were kept; a coordinate that is not finite is not inside.
        """
        kept = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height) & (gene >= 0)
        if not kept.all():
            x, y, gene = x[kept], y[kept], gene[kept]
            slice_index = slice_index if isinstance(slice_index, int) else slice_index[kept]
        self._count(slice_index, gene)
        first_row = np.broadcast_to(np.asarray(slice_index * (self.strips * STRIP_BINS), dtype=np.uint32), gene.shape)
        self._hold(gene, x * (1 / BIN_SIZE), y * (1 / BIN_SIZE), first_row)
        return kept

    def strips_of(self, slice_index: int, columns: npt.NDArray[np.intp], genes: int) -> Iterator[csr_array]:
        """The strips of a slice, top to bottom; every ``add`` must have been made.

        Args:
            slice_index: which slice.
            columns: for each gene index, its column, or -1 to leave the gene out.
            genes: number of columns.

        Yields:
            ``STRIP_BINS`` bin rows (the last strip: those left) x all bin columns, bins row-major, as uint16 counts.
        """
        if self._held:
            self._end_run(self._buffer[: self._held], in_memory=True)
            self._held = 0
        for strip in range(self.strips):
            first_row = (slice_index * self.strips + strip) * STRIP_BINS
            records = self._strip_records(slice_index * self.strips + strip)
            gene = columns[records["gene"]]
            if len(gene) and gene.min() < 0:
                records, gene = records[gene >= 0], gene[gene >= 0]
            yield rasterize(
                records["column"],
                records["row"] - np.uint32(first_row),
                gene,
                shape=(min(STRIP_BINS, self.bin_rows - strip * STRIP_BINS), self.bin_columns),
                genes=genes,
                bin_size=1,
            )

    def _count(self, slice_index: int | npt.NDArray[np.intp], gene: npt.NDArray[np.intp]) -> None:
        genes = max(self.gene_counts.shape[1], int(gene.max(initial=-1)) + 1)
        if genes > LARGEST_GENE + 1:
            raise InputError(f"there are more than {LARGEST_GENE + 1} genes; check the gene column of the transcripts")
        if genes > self.gene_counts.shape[1]:
            self.gene_counts = np.pad(self.gene_counts, ((0, 0), (0, genes - self.gene_counts.shape[1])))
        if isinstance(slice_index, int):
            self.gene_counts[slice_index] += np.bincount(gene, minlength=genes)
        else:
            counts = np.bincount(slice_index * genes + gene, minlength=self._slices * genes)
            self.gene_counts += counts.reshape(self._slices, genes)

    def _hold(
        self,
        gene: npt.NDArray[np.intp],
        column: npt.NDArray[np.floating[Any]],
        row: npt.NDArray[np.floating[Any]],
        first_row: npt.NDArray[np.uint32],
    ) -> None:
        """Put records into the buffer, and the buffer to disk whenever it is full."""
        done = 0
        while done < len(gene):
            target = self._buffer[self._held : self._held + len(gene) - done]
            part = slice(done, done + len(target))
            target["gene"] = gene[part]
            # Inside, bins are not negative, so that the assignment's cast to integers is a floor.
            target["column"] = column[part]
            target["row"] = row[part]
            target["row"] += first_row[part]
            self._held += len(target)
            done += len(target)
            if self._held == len(self._buffer):
                self._end_run(self._buffer, in_memory=False)
                self._held = 0

    def _end_run(self, records: Records, in_memory: bool) -> None:
        keys = records.view(SORT_KEY)
        keys.sort()
        strips = np.arange(self._slices * self.strips + 1, dtype=np.uint64)
        starts = np.searchsorted(keys, (strips * np.uint64(STRIP_BINS)) << ROW_SHIFT)
        offset = 0
        if not in_memory:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryFile(dir=self._scratch_folder)  # noqa: SIM115 - closed by close()
            offset = self._scratch.seek(0, os.SEEK_END)
            self._scratch.write(keys.data)
            self._scratch.flush()
        self._runs.append(_Run(starts, records if in_memory else None, offset))

    def _strip_records(self, strip: int) -> Records:
        parts = []
        for run in self._runs:
            first, last = int(run.starts[strip]), int(run.starts[strip + 1])
            if run.records is not None:
                parts.append(run.records[first:last])
            elif self._scratch is not None and last > first:
                parts.append(_read_records(self._scratch.fileno(), run.offset + RECORD.itemsize * first, last - first))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=RECORD)


def _read_records(descriptor: int, offset: int, count: int) -> Records:
    records = np.empty(count, dtype=RECORD)
    target, done = records.view(np.uint8).data, 0
    while done < len(target):
        read = os.preadv(descriptor, [target[done:]], offset + done)
        if read == 0:
            raise OSError("the scratch file of the transcripts ended early; another process has changed it")
        done += read
    return records
