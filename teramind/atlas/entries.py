"""The growing array of all counts: every shard written once, whole."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from teramind.atlas.blocks import FIELDS, Entries
from teramind.atlas.layout import ENTRIES, ceil_div

# Entries a chunk, the smallest piece that is read: some five blocks of tissue, 55 kB on disk. With half as many, reading
# a window takes as long and writing 1.5 times as long.
CHUNK = 2**15
# Entries a shard, one file: 25 MB in memory, about 7 MB on disk; some 400 files for the 50 slices of a mouse brain.
SHARD = 128 * CHUNK
# Level 3 is no smaller on the genes and takes 1.5 times as long.
ZSTD_LEVEL = 1


class EntryArray:
    """Appends entries to ``counts/entries`` of a store that is being written.

    They are collected until a shard is full. An atlas of fewer entries than a shard gets one chunk or shard of just its
    size, so that a small sample does not pay for an index of 128 chunks.
    """

    def __init__(self, root: zarr.Group) -> None:
        self._root = root
        self._buffer = np.empty((FIELDS, SHARD), dtype=np.uint16)
        self._filled = 0
        self._array: zarr.Array[Any] | None = None
        self._written = 0
        self.checksum = 0

    def __len__(self) -> int:
        return self._written + self._filled

    def append(self, entries: Entries) -> None:
        """Add entries (3, n) behind those that are there."""
        taken = 0
        while taken < entries.shape[1]:
            step = min(SHARD - self._filled, entries.shape[1] - taken)
            self._buffer[:, self._filled : self._filled + step] = entries[:, taken : taken + step]
            self._filled += step
            taken += step
            if self._filled == SHARD:
                self._flush()

    def finish(self) -> None:
        """Write what is left."""
        if self._filled or self._array is None:
            self._flush()

    def _flush(self) -> None:
        if self._array is None:
            self._array = self._create()
        piece = self._buffer[:, : self._filled]
        end = self._written + self._filled
        self._array.resize((FIELDS, end))
        self._array[:, self._written : end] = piece
        for values in piece:
            self.checksum = zlib.crc32(np.ascontiguousarray(values), self.checksum)
        self._written, self._filled = end, 0

    def _create(self) -> zarr.Array[Any]:
        chunk = min(CHUNK, max(1, self._filled))
        chunks = ceil_div(self._filled, chunk)
        return self._root.create_array(
            ENTRIES,
            shape=(FIELDS, 0),
            chunks=(FIELDS, chunk),
            shards=(FIELDS, chunks * chunk) if chunks > 1 else None,
            dtype=np.uint16,
            # No entry counts 0 transcripts: a chunk that is missing on disk is noticed by its fill value.
            fill_value=0,
            compressors=[ZstdCodec(level=ZSTD_LEVEL)],
            attributes={"fields": ["gene", "bin step", "count"]},
        )
