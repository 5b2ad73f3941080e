"""The array of all counts: written once, shard by shard; read in pieces, chunk by chunk."""

from __future__ import annotations

import os
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from teramind.atlas.blocks import FIELDS, Entries
from teramind.atlas.layout import ENTRIES, ceil_div
from teramind.errors import InputError
from teramind.ngff.encoding import local_folder

# Entries a chunk, the smallest piece that is read: some three blocks of tissue, 28 kB on disk. Halves read no faster
# and are written at two thirds of the speed; doubles are written as fast and read 1.2 times as slowly.
CHUNK = 2**14
# Entries a shard, one file: 25 MB in memory, about 7 MB on disk; some 400 files for the 50 slices of a mouse brain.
SHARD = 256 * CHUNK
# Level 3 is no smaller on the genes and takes 1.5 times as long.
ZSTD_LEVEL = 1


class EntryWriter:
    """Appends entries to ``counts/entries`` of a store that is being written.

    They are collected until a shard is full. An atlas of fewer entries than a shard gets one chunk or shard of just its
    size, so that a small sample does not pay for an index of 256 chunks.
    """

    def __init__(self, root: zarr.Group) -> None:
        self._root = root
        self._buffer = np.empty((FIELDS, SHARD), dtype=np.uint16)
        self._filled = 0
        self._array: zarr.Array[Any] | None = None
        self._written = 0

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
        end = self._written + self._filled
        self._array.resize((FIELDS, end))
        self._array[:, self._written : end] = self._buffer[:, : self._filled]
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
            fill_value=0,
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],  # 4 bytes a chunk, so that rot is noticed
            attributes={"fields": ["gene", "bin step", "count"]},
        )


class EntryReader:
    """Reads runs of entries, from several threads if need be.

    zarr-python takes about a millisecond for a read, most of it in its event loop, and a window of tissue is a dozen of
    them. Here the chunks are decoded directly, which makes a window five times as fast. Format of a shard:
    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/v1.0.html (inner chunks, then an index of
    64-bit offsets and lengths and its CRC-32C).

    Raises:
        InputError: The array is not as ``EntryWriter`` writes it.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        is_ours = array.dtype == np.uint16 and array.ndim == 2 and array.shape[0] == FIELDS
        compressors = array.compressors
        if not (is_ours and len(compressors) == 1 and isinstance(compressors[0], ZstdCodec)):
            raise InputError(f"{array.store_path} is not an array of counts in zstd: ingest the data again")
        self._folder = local_folder(array)
        self._key = array.metadata.encode_chunk_key
        self._chunk = array.chunks[1]
        self._sharded = array.shards is not None
        self._chunks_in_file = array.shards[1] // self._chunk if array.shards is not None else 1
        self._indices: dict[int, npt.NDArray[np.uint64]] = {}
        self._zstd: Any = numcodecs.Zstd()
        self._size = array.shape[1]

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, end: int) -> Entries:
        """Return entries ``start`` to ``end``, (3, end - start).

        Raises:
            InputError: A file is missing or damaged.
        """
        entries = np.empty((FIELDS, end - start), dtype=np.uint16)
        for number in range(start // self._chunk, ceil_div(end, self._chunk)):
            first = number * self._chunk
            low, high = max(start, first), min(end, first + self._chunk)
            entries[:, low - start : high - start] = self._decode(number)[:, low - first : high - first]
        return entries

    def _decode(self, number: int) -> Entries:
        file_number, place = divmod(number, self._chunks_in_file)
        path = self._folder / self._key((0, file_number))
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                offset, length = self._extent(descriptor, file_number, place)
                encoded = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
            decoded = np.frombuffer(self._zstd.decode(encoded), dtype="<u2")
            return decoded.reshape(FIELDS, self._chunk)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error}): copy the atlas again, or ingest again"
            ) from error

    def _extent(self, descriptor: int, file_number: int, place: int) -> tuple[int, int]:
        """Offset and length of a chunk in its file."""
        size = os.fstat(descriptor).st_size
        if not self._sharded:
            return 0, size
        if file_number not in self._indices:
            footer = os.pread(descriptor, self._chunks_in_file * 16 + 4, size - self._chunks_in_file * 16 - 4)
            if google_crc32c.value(footer[:-4]) != int.from_bytes(footer[-4:], "little"):
                raise ValueError("its index has another checksum")
            self._indices[file_number] = np.frombuffer(footer[:-4], dtype="<u8").reshape(-1, 2)
        offset, length = self._indices[file_number][place].tolist()
        if offset + length > size:  # so is the mark of a chunk that is not stored
            raise ValueError(f"its chunk {place} is not there")
        return offset, length
