"""The sparse counts of a strip, between a matrix of bins and the entries of the store.

An entry is three uint16: gene, bin step, count. The entries of a 64 x 64-bin block lie together, in order of bin
(row-major within the block) and gene. The *bin step* is the difference to the bin of the entry before in the same block
(of a block's first entry, to 0): it is mostly 0 or 1, which zstd packs into a third of what the bins themselves take.
Nothing here loops over blocks or bins in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from teramind.atlas.layout import STRIP_BINS, ceil_div

GENE, BIN_STEP, COUNT = range(3)
"""Rows of an array of entries."""
FIELDS = 3

Entries = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class BinCounts:
    """The non-zero counts of a run of blocks in one strip.

    Attributes:
        gene: uint16 (n,).
        row: Bin row within the strip, (n,).
        column: Bin column within the slice, (n,).
        count: uint16 (n,).
    """

    gene: npt.NDArray[np.uint16]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    count: npt.NDArray[np.uint16]


def encode_strip(counts: csr_array, columns: int) -> tuple[Entries, npt.NDArray[np.int64]]:
    """Bring the counts of a strip into block order.

    Args:
        counts: uint16 (rows * columns, genes), bins row-major, canonical (sorted columns, no duplicates).
        columns: Bins in a row.

    Returns:
        Entries (3, n) and offsets (blocks + 1,): block b holds entries offsets[b] to offsets[b + 1].
    """
    rows = counts.shape[0] // columns
    blocks = ceil_div(columns, STRIP_BINS)
    first = np.zeros((rows, blocks * STRIP_BINS), dtype=np.int64)
    length = np.zeros_like(first)
    first[:, :columns] = counts.indptr[:-1].reshape(rows, columns)
    length[:, :columns] = np.diff(counts.indptr).reshape(rows, columns)

    block_first, block_length = (_bins_by_block(field, blocks) for field in (first, length))
    occupied = np.flatnonzero(block_length)
    length_of_bin = block_length[occupied]
    end_of_bin = np.cumsum(length_of_bin)
    start_of_bin = end_of_bin - length_of_bin
    source = np.repeat(block_first[occupied] - start_of_bin, length_of_bin)
    source += np.arange(len(source))

    block, position = np.divmod(occupied, rows * STRIP_BINS)
    step = np.diff(position, prepend=0)
    new_block = np.diff(block, prepend=-1) != 0
    step[new_block] = position[new_block]

    entries = np.zeros((FIELDS, len(source)), dtype=np.uint16)
    entries[GENE] = counts.indices[source]
    entries[BIN_STEP, start_of_bin] = step
    entries[COUNT] = counts.data[source]
    offsets = np.zeros(blocks + 1, dtype=np.int64)
    np.cumsum(block_length.reshape(blocks, -1).sum(axis=1), out=offsets[1:])
    return entries, offsets


def decode_blocks(entries: Entries, offsets: npt.NDArray[np.int64], first_block: int) -> BinCounts:
    """Read the entries of neighbouring blocks of one strip.

    Args:
        entries: (3, n), the entries of all these blocks.
        offsets: (blocks + 1,), where each block's entries begin and end, counted from any origin.
        first_block: Place of the first of the blocks in the strip.
    """
    length = np.diff(offsets)
    held = np.flatnonzero(length)
    start = offsets[held] - offsets[0]
    # The running sum wraps at 2^16 and runs on from block to block; the difference to its value before the block is
    # the bin all the same, because bins stay below 2^12.
    running = np.cumsum(entries[BIN_STEP], dtype=np.uint16)
    before = running[start] - entries[BIN_STEP, start]
    position = (running - np.repeat(before, length[held])).astype(np.int64)
    row, column = np.divmod(position, STRIP_BINS)
    column += np.repeat((first_block + held) * STRIP_BINS, length[held])
    return BinCounts(gene=entries[GENE], row=row, column=column, count=entries[COUNT])


def _bins_by_block(values: npt.NDArray[np.int64], blocks: int) -> npt.NDArray[np.int64]:
    """(rows, blocks * 64), one value a bin, as one run: block by block, row-major within each."""
    return values.reshape(-1, blocks, STRIP_BINS).swapaxes(0, 1).ravel()
