"""Finished rectangles in any order -> whole shards of every pyramid level, written once, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import zarr

from teramind.errors import InputError
from teramind.files import fsync
from teramind.ngff.assembly import Rectangle, ShardBuffer, mean_bin
from teramind.ngff.encoding import ShardEncoder, local_folder
from teramind.ngff.metadata import open_levels

Index = tuple[int, int, int, int]  # c, z, shard row, shard column


@dataclass(frozen=True)
class PendingShard:
    """A shard of which some pixels have not arrived.

    Attributes:
        level: 0 is the image itself.
        index: c, z, row and column of the shard in its level.
        pixels: (h, w) uint8, 0 where nothing has arrived; None if all that arrived was skipped.
        filled: (n, 4) int64, the disjoint rectangles y0, y1, x0, x1 that have arrived, relative to the shard.
    """

    level: int
    index: Index
    pixels: npt.NDArray[np.uint8] | None
    filled: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pending:
    """What `MultiscaleWriter.resume` needs beside the store itself: plain numbers and arrays, to be saved as one likes.

    Attributes:
        finished: for each level (C, Z, rows, columns) bool, the shards that are done.
        shards: the unfinished shards that hold something.
    """

    finished: list[npt.NDArray[np.bool_]]
    shards: list[PendingShard]


class MultiscaleWriter:
    """Fills an image made by `create_multiscale`, building its pyramid on the way.

    Every pixel of level 0 is given exactly once, by `write`, `write_block` or `skip`. A shard whose pixels have all
    arrived is encoded and written by a pool of threads, and its 2x2 means go into the shards of the next level, which
    are written in the same way. So each shard is written once and whole, and memory is that of the shards in flight.
    Calls may come from several threads. An error in the pool is raised by the next call and by `close`.

    Attributes:
        buffered_bytes: pixels held at the moment, those being written included.
        peak_buffered_bytes: the most there were.
        written_bytes: raw pixels in the shards written so far, all levels.
        stored_bytes: what those take on the disk.
    """

    def __init__(self, group_or_path: zarr.Group | str | Path, *, threads: int | None = None) -> None:
        """Open an image for writing.

        Args:
            group_or_path: the image's group or folder.
            threads: that encode and write, by default one a processor, at most 8. As many finished shards again
                may wait for one; then `write` does.
        """
        group = (
            group_or_path if isinstance(group_or_path, zarr.Group) else zarr.open_group(Path(group_or_path), mode="r+")
        )
        arrays = open_levels(group)
        self._shapes = [array.shape for array in arrays]
        self._encoders = [ShardEncoder(array) for array in arrays]
        self._finished = [np.zeros(self._grid(level), dtype=bool) for level in range(len(arrays))]
        self._shards: list[dict[Index, ShardBuffer]] = [{} for _ in arrays]
        self._root = local_folder(group)
        threads = threads or min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-writer")
        self._changed = threading.Condition()  # guards all that follows, and the shards above
        self._in_flight = 0
        self._most_in_flight = 2 * threads
        self._error: BaseException | None = None
        self._unsynced: list[Path] = []
        self._closed = False
        self.buffered_bytes = 0
        self.peak_buffered_bytes = 0
        self.written_bytes = 0
        self.stored_bytes = 0

    @classmethod
    def resume(cls, group_or_path: zarr.Group | str | Path, pending: Pending, *, threads: int | None = None) -> Self:
        """Go on with an image from a moment at which `pending` was called.

        What was given to the writer after that moment has to be given again; its shards are replaced. Those that
        were finished are left alone.

        Raises:
            InputError: if ``pending`` belongs to an image of another shape.
        """
        writer = cls(group_or_path, threads=threads)
        if [flags.shape for flags in pending.finished] != [flags.shape for flags in writer._finished]:
            raise InputError(f"the saved state does not belong to {writer._root}: their shards differ in number")
        for mine, saved in zip(writer._finished, pending.finished, strict=True):
            mine[...] = saved
        for shard in pending.shards:
            writer._restore(shard)
        for leftover in writer._root.rglob("*.partial"):  # of writes that were cut off
            leftover.unlink()
        return writer

    def write(self, c: int, z: int, y: int, x: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Take the finished pixels (h, w) of one plane, whose first lies at (y, x).

        Raises:
            ValueError: if they are not uint8, reach outside the image, or some were given before.
            OSError: if an earlier shard could not be written.
        """
        self._accept(range(c, c + 1), range(z, z + 1), _rectangle(y, x, pixels.shape), pixels[None, None])

    def write_block(self, z: int, y: int, x: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Take the finished pixels (C, Z, h, w) of all channels and some slices; errors as `write`."""
        channels, slices = pixels.shape[:2]
        if channels != self._shapes[0][0]:
            raise ValueError(f"{channels} channels were given for an image of {self._shapes[0][0]}")
        self._accept(range(channels), range(z, z + slices), _rectangle(y, x, pixels.shape[2:]), pixels)

    def skip(self, z: int, y: int, x: int, shape: Sequence[int]) -> None:
        """Leave a block of all channels at the fill value 0; a shard of nothing else is not stored.

        Args:
            z: first slice.
            y: first row.
            x: first column.
            shape: (Z, h, w) of the block.

        Raises:
            ValueError: if it reaches outside the image or some of it was given before.
            OSError: if an earlier shard could not be written.
        """
        self._accept(range(self._shapes[0][0]), range(z, z + shape[0]), _rectangle(y, x, shape[1:]), None)

    def flush(self) -> None:
        """Wait until every complete shard is on the disk itself, not only in the system's cache."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0)
            self._raise_error()
            unsynced, self._unsynced = self._unsynced, []
        folders = {folder for path in unsynced for folder in path.parents if folder.is_relative_to(self._root)}
        try:
            for _ in self._pool.map(fsync, [*unsynced, *sorted(folders)]):
                pass
        except OSError as error:
            self._error = self._error or error
            raise

    def pending(self) -> Pending:
        """Flush, and return the state of the unfinished shards; no other thread may write meanwhile.

        The pixels are not copied: save them before the next call that changes them.
        """
        self.flush()
        with self._changed:
            shards = [
                PendingShard(level, index, shard.pixels, shard.coverage.rectangles())
                for level, unfinished in enumerate(self._shards)
                for index, shard in unfinished.items()
            ]
            return Pending([flags.copy() for flags in self._finished], shards)

    def close(self) -> None:
        """Write what is complete and end the threads.

        Raises:
            RuntimeError: if pixels of the image have neither been written nor skipped.
            OSError: if a shard could not be written.
        """
        if self._closed:
            return
        try:
            self.flush()
            self._raise_incomplete()
        finally:
            self.abort()

    def abort(self) -> None:
        """End the threads and forget the unfinished shards; what is whole stays."""
        with self._changed:
            self._closed = True
            self._shards = [{} for _ in self._shapes]
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # the image is unfinished, and that error says why
            self.abort()

    def _accept(
        self, channels: range, slices: range, rectangle: Rectangle, pixels: npt.NDArray[np.uint8] | None
    ) -> None:
        """Spread a block over the shards of level 0 and hand the ones it completes to the pool."""
        y0, y1, x0, x1 = rectangle
        blocks = (channels.start, channels.stop), (slices.start, slices.stop), (y0, y1), (x0, x1)
        if any(not 0 <= start <= stop <= size for (start, stop), size in zip(blocks, self._shapes[0], strict=True)):
            raise ValueError(f"block {blocks} (c, z, y, x) reaches outside the image {self._shapes[0]}")
        if pixels is not None and pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.dtype}, but the image is uint8")
        if y0 == y1 or x0 == x1:
            return
        for c in channels:
            for z in slices:
                plane = None if pixels is None else pixels[c - channels.start, z - slices.start]
                for index in self._touched(0, c, z, rectangle):
                    with self._changed:
                        self._raise_error()
                        if self._closed:
                            raise ValueError(f"the writer of {self._root} is closed")
                        complete = self._put(0, index, rectangle, plane)
                    if complete is not None:
                        self._submit(index, complete)

    def _touched(self, level: int, c: int, z: int, rectangle: Rectangle) -> Iterator[Index]:
        """Yield the shards of a plane that a rectangle touches."""
        y0, y1, x0, x1 = rectangle
        height, width = self._encoders[level].sides
        rows, columns = range(y0 // height, -(-y1 // height)), range(x0 // width, -(-x1 // width))
        return ((c, z, row, column) for row in rows for column in columns)

    def _put(
        self, level: int, index: Index, rectangle: Rectangle, pixels: npt.NDArray[np.uint8] | None
    ) -> ShardBuffer | None:
        """Put what a shard needs of a rectangle into it; if that completes it, take it out. Called with the lock."""
        shard = self._shard(level, index)
        (top, left), (height, width) = shard.origin, shard.shape
        y0, y1 = max(rectangle[0], top), min(rectangle[1], top + height)
        x0, x1 = max(rectangle[2], left), min(rectangle[3], left + width)
        piece = None
        if pixels is not None:
            piece = pixels[y0 - rectangle[0] : y1 - rectangle[0], x0 - rectangle[2] : x1 - rectangle[2]]
        before = shard.nbytes
        shard.put((y0 - top, y1 - top, x0 - left, x1 - left), piece)
        self._count_bytes(shard.nbytes - before)
        if not shard.complete:
            return None
        self._finished[level][index] = True
        return self._shards[level].pop(index)

    def _shard(self, level: int, index: Index) -> ShardBuffer:
        """Return the unfinished shard at ``index``, a new one if nothing of it has arrived. Called with the lock."""
        if self._finished[level][index]:
            raise ValueError(f"shard {index} of level {level} was written before")
        if index not in self._shards[level]:
            height, width = self._encoders[level].sides
            origin = index[2] * height, index[3] * width
            image = self._shapes[level]
            shape = min(height, image[2] - origin[0]), min(width, image[3] - origin[1])
            self._shards[level][index] = ShardBuffer(origin, shape)
        return self._shards[level][index]

    def _submit(self, index: Index, shard: ShardBuffer) -> None:
        """Hand a complete shard of level 0 to the pool, waiting while too many are in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self._most_in_flight)
            self._in_flight += 1
        self._pool.submit(self._finish, index, shard)

    def _finish(self, index: Index, shard: ShardBuffer) -> None:
        """Write a shard of level 0 and what it completes in the levels above. Runs in the pool."""
        try:
            todo = [(0, index, shard)]
            while todo and self._error is None:
                level, index, shard = todo.pop()
                todo += [(level + 1, *parent) for parent in self._store(level, index, shard)]
        except BaseException as error:  # whatever it is, the next call raises it
            with self._changed:
                self._error = self._error or error
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def _store(self, level: int, index: Index, shard: ShardBuffer) -> list[tuple[Index, ShardBuffer]]:
        """Write one shard, pass its means to the next level, and return the shards these complete."""
        path = None if shard.pixels is None else self._encoders[level].write(index, shard.pixels)
        is_top = level + 1 == len(self._shapes)
        means = None if shard.pixels is None or is_top else mean_bin(shard.pixels)
        (top, left), (height, width) = shard.origin, shard.shape
        binned = _rectangle(top // 2, left // 2, (-(-height // 2), -(-width // 2)))
        complete = []
        with self._changed:
            if path is not None:
                self._unsynced.append(path)
                self.written_bytes += shard.nbytes
                self.stored_bytes += path.stat().st_size
            for above in () if is_top else self._touched(level + 1, index[0], index[1], binned):
                parent = self._put(level + 1, above, binned, means)
                if parent is not None:
                    complete.append((above, parent))
            self._count_bytes(-shard.nbytes)
        return complete

    def _restore(self, saved: PendingShard) -> None:
        """Fill a shard with what had arrived when it was saved."""
        with self._changed:
            shard = self._shard(saved.level, saved.index)
            for y0, y1, x0, x1 in saved.filled.tolist():
                shard.put((y0, y1, x0, x1), None if saved.pixels is None else saved.pixels[y0:y1, x0:x1])
            self._count_bytes(shard.nbytes)

    def _count_bytes(self, more: int) -> None:
        self.buffered_bytes += more
        self.peak_buffered_bytes = max(self.peak_buffered_bytes, self.buffered_bytes)

    def _grid(self, level: int) -> Index:
        channels, slices, height, width = self._shapes[level]
        rows, columns = self._encoders[level].sides
        return channels, slices, -(-height // rows), -(-width // columns)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _raise_incomplete(self) -> None:
        missing = np.argwhere(~self._finished[0])
        if len(missing):
            c, z, row, column = missing[0].tolist()
            raise RuntimeError(
                f"{len(missing)} of {self._finished[0].size} shards of {self._root} have pixels that were neither "
                f"written nor skipped, the first in channel {c}, slice {z}, shard row {row}, column {column}"
            )


def _rectangle(y: int, x: int, sides: Sequence[int]) -> Rectangle:
    return y, y + sides[0], x, x + sides[1]
