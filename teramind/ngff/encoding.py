"""Shard files: from pixels to bytes on disk, synchronously, whole and at once.

zarr-python writes a shard by reading the old one first and by passing through its event loop; a file that one owner
writes once needs neither, so the bytes are made here. Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/
sharding-indexed/v1.0.html (inner chunks, then an index of 64-bit offsets and lengths and its CRC-32C).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from teramind.errors import InputError
from teramind.files import named_error

_EMPTY = np.uint64(2**64 - 1)  # offset and length of an inner chunk that is not stored


class ShardEncoder:
    """Writes the shards (or, without sharding, the chunks) of one (c, z, y, x) array in a local store.

    Stateless apart from its description of the array; several threads may use it at once.

    Attributes:
        sides: (h, w) of a whole shard in px.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._folder = local_folder(array)
        self._key = array.metadata.encode_chunk_key
        self._chunk: tuple[int, int] = (array.chunks[2], array.chunks[3])
        self._sharded = array.shards is not None
        outer = array.shards or array.chunks
        self.sides: tuple[int, int] = (outer[2], outer[3])
        compressor: Any = array.compressors[0]
        self._dtype = array.dtype
        self._compressor: Any = numcodecs.Zstd(compressor.level) if isinstance(compressor, ZstdCodec) else compressor

    def path(self, index: tuple[int, int, int, int]) -> Path:
        """Return the file of the shard at ``index`` (c, z and the shard's row and column)."""
        return self._folder / self._key(index)

    def write(self, index: tuple[int, int, int, int], pixels: npt.NDArray[Any]) -> Path | None:
        """Write a shard's pixels, (h, w), cut at the image's edge, and return its file.

        The file appears under its name only when it is whole, and replaces one that was there. Nothing is stored,
        and None returned, if all pixels have the fill value 0.

        Raises:
            OSError: with the file's name; for a full disk also with what was needed and what is free.
        """
        path = self.path(index)
        if not pixels.any():
            path.unlink(missing_ok=True)
            return None
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb", buffering=0) as file:
                self._encode(pixels, file)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise named_error(error, path, pixels.nbytes) from error
        return path

    def _encode(self, pixels: npt.NDArray[Any], file: BinaryIO) -> None:
        if not self._sharded:
            (chunk,) = self._chunks(pixels)
            _write_all(file, self._compressor.encode(chunk))
            return
        grid = tuple(side // inner for side, inner in zip(self.sides, self._chunk, strict=True))
        index = np.full((*grid, 2), _EMPTY, dtype="<u8")
        offset = 0
        present = [-(-size // inner) for size, inner in zip(pixels.shape, self._chunk, strict=True)]
        for place, chunk in zip(itertools.product(*map(range, present)), self._chunks(pixels), strict=True):
            if not chunk.any():
                continue
            encoded = self._compressor.encode(chunk)
            _write_all(file, encoded)
            index[place] = offset, len(encoded)
            offset += len(encoded)
        footer = index.tobytes()
        _write_all(file, footer + google_crc32c.value(footer).to_bytes(4, "little"))

    def _chunks(self, pixels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Yield contiguous whole chunks in row-major order; those over the image's edge are filled with 0."""
        height, width = self._chunk
        for y in range(0, pixels.shape[0], height):
            for x in range(0, pixels.shape[1], width):
                piece = pixels[y : y + height, x : x + width]
                if piece.shape == self._chunk:
                    yield np.ascontiguousarray(piece)
                else:
                    chunk = np.zeros(self._chunk, dtype=self._dtype)
                    chunk[: piece.shape[0], : piece.shape[1]] = piece
                    yield chunk


def local_folder(node: zarr.Group | zarr.Array[Any]) -> Path:
    """Return the folder of a group or an array.

    Raises:
        InputError: if its store is not a folder of this machine.
    """
    if not isinstance(node.store, LocalStore):
        raise InputError(f"{node.store_path} is not in a local folder; images are written to local folders only")
    return node.store.root / node.path


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered file, which may take less at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
