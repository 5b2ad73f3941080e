"""A scratch file for state that does not fit in memory, with one thread that writes and one that reads ahead."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teramind.files import named_error

Block = NDArray[Any]
BUFFERS = 2  # blocks of a worker on their way to the disk, and as many on their way back
PAGE = 4096  # slots start on pages of the disk


class Scratch:
    """Blocks of at most ``slot_bytes`` on a disk, in a file that vanishes with the process, however it ends.

    ``store`` returns while the block is still being written, unless two already are; ``prefetch`` starts reading one
    that ``load`` will want. Safe to use from several threads, if each slot is used by one at a time.

    Attributes:
        written_bytes: bytes written so far.
        read_bytes: bytes read so far.
    """

    def __init__(self, folder: str | os.PathLike[str], slot_bytes: int, workers: int = 1) -> None:
        """Make the file.

        Args:
            folder: where the file is made.
            slot_bytes: size of the largest block.
            workers: how many store and load at once.
        """
        self.folder = Path(folder)
        self.slot_bytes = -(-slot_bytes // PAGE) * PAGE
        # Open as long as this object is; it has no name, so nothing is left of it.
        self._file = tempfile.TemporaryFile(prefix=".teramind-scratch-", dir=self.folder, buffering=0)  # noqa: SIM115
        self._free: list[int] = []
        self._slots = 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="scratch-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="scratch-reader")
        self._write_buffers = threading.Semaphore(BUFFERS * workers)
        self._most_reads = BUFFERS * workers
        self._writes: dict[int, Future[None]] = {}
        self._reads: dict[int, Future[Block]] = {}
        self._shapes: dict[int, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
        self._failure: OSError | None = None
        self.written_bytes = self.read_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Size of the slots that hold a block."""
        return len(self._shapes) * self.slot_bytes

    def store(self, block: Block) -> int:
        """Write a block; the slot it goes to. The block must not change afterwards.

        Raises:
            OSError: where an earlier write failed.
        """
        self._write_buffers.acquire()
        with self._lock:
            slot = self._free.pop() if self._free else self._slots
            self._slots = max(self._slots, slot + 1)
            self._shapes[slot] = block.shape, block.dtype
            self._writes[slot] = self._writer.submit(self._write, slot, np.ascontiguousarray(block))
        if self._failure:
            raise self._failure
        return slot

    def prefetch(self, slot: int) -> None:
        """Start reading a block, if a buffer for it is free."""
        with self._lock:
            if slot not in self._reads and len(self._reads) < self._most_reads and slot in self._shapes:
                self._reads[slot] = self._reader.submit(self._read, slot)

    def load(self, slot: int) -> Block:
        """Read a block; its slot stays taken until ``release``.

        Raises:
            OSError: where writing or reading it failed.
        """
        with self._lock:
            pending = self._reads.pop(slot, None) or self._reader.submit(self._read, slot)
        return pending.result()

    def release(self, slot: int) -> None:
        """Forget a block."""
        with self._lock:
            pending = [self._writes.pop(slot, None), self._reads.pop(slot, None)]
        for future in pending:
            if future:
                future.exception()  # waits: the slot may be used again only when nobody touches it
        with self._lock:
            del self._shapes[slot]
            self._free.append(slot)

    def close(self) -> None:
        """End the threads and give the disk space back."""
        self._writer.shutdown()
        self._reader.shutdown()
        self._file.close()

    def _write(self, slot: int, block: Block) -> None:
        try:
            view = memoryview(block.data).cast("B")
            offset = slot * self.slot_bytes
            while view:
                count = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[count:], offset + count
                self.written_bytes += count
        except OSError as error:
            self._failure = named_error(error, self.folder / "scratch file", self.slot_bytes)
            raise self._failure from None
        finally:
            self._write_buffers.release()

    def _read(self, slot: int) -> Block:
        with self._lock:
            writing = self._writes.pop(slot, None)
            shape, dtype = self._shapes[slot]
        if writing:
            writing.result()
        block = np.empty(shape, dtype)
        view, offset = memoryview(block.data).cast("B"), slot * self.slot_bytes
        while view:
            count = os.preadv(self._file.fileno(), [view], offset)
            if not count:
                raise OSError(errno.EIO, "the scratch file ends early", str(self.folder))
            view, offset = view[count:], offset + count
            self.read_bytes += count
        return block
