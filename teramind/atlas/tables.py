"""Streaming reads of a transcript table: CSV, gzipped CSV or parquet, a few columns, block by block."""

from __future__ import annotations

import contextlib
import csv
import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from teramind.errors import InputError

# Bytes of CSV that one thread parses at once, about 35,000 rows.
CSV_BLOCK_BYTES = 4 << 20
# Bytes of CSV that all threads parse together.
CSV_SEGMENT_BYTES = 64 << 20
# Rows of a batch: arrays of half a MB, which the caches hold.
BATCH_ROWS = 1 << 16

Item = TypeVar("Item")
Progress = Callable[[int], object]


class TranscriptTable:
    """A table of transcripts on disk, read as a stream of record batches.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet``.

    Attributes:
        columns: the names of all columns, in order.
        size: what ``batches`` counts up to in its progress calls: bytes of the file (rows if parquet).

    Raises:
        InputError: if the file is missing, or its header (its footer, if parquet) cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        if not path.is_file():
            raise InputError(f"there is no transcript table {path}; check the folder")
        with _damage_named(path):
            if self.is_parquet:
                metadata = pq.read_metadata(path)
                self.columns = list(metadata.schema.to_arrow_schema().names)
                self.size = int(metadata.num_rows)
            else:
                self.columns = _csv_header(path)
                self.size = path.stat().st_size

    def require(self, *names: str) -> None:
        """Refuse a table without these columns.

        Raises:
            InputError: naming the missing columns and the ones found.
        """
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise InputError(
                f"{self.path} has no column {' and no column '.join(missing)}; its columns are "
                f"{', '.join(self.columns)}"
            )

    def batches(
        self, numbers: Sequence[str], words: Sequence[str], progress: Progress | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Read columns as record batches, the next one while the caller works on the last.

        Args:
            numbers: columns to read as float64 (in a parquet file: as they are stored).
            words: columns to read dictionary-encoded; every batch has a dictionary of its own.
            progress: called with what was read since the last call, up to ``size`` in all.

        Raises:
            InputError: if the file is truncated or a row cannot be parsed.
        """
        open_stream = self._parquet_batches if self.is_parquet else self._csv_batches
        with _damage_named(self.path):
            yield from read_ahead(open_stream(list(numbers), list(words), progress or (lambda _: None)))

    def _csv_batches(self, numbers: list[str], words: list[str], progress: Progress) -> Iterator[pa.RecordBatch]:
        types: dict[str, pa.DataType] = dict.fromkeys(numbers, pa.float64())
        types |= dict.fromkeys(words, pa.dictionary(pa.int32(), pa.string()))
        convert = pa_csv.ConvertOptions(include_columns=[*numbers, *words], column_types=types)
        with pa.OSFile(str(self.path)) as file:
            if self.path.suffix == ".gz":
                read = pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES)
                stream = pa_csv.open_csv(pa.CompressedInputStream(file, "gzip"), read, convert_options=convert)
                yield from _with_position(stream, file.tell, progress)
                return
            # Segment by segment, pyarrow parses with all threads; its stream of the whole file parses with one.
            read = pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES, column_names=self.columns)
            done = 0
            for start, end in _csv_segments(self.path):
                rows = pa_csv.read_csv(file.get_stream(start, end - start), read, convert_options=convert)
                # What one thread parsed is a chunk; as one, all batches of the segment share a dictionary.
                yield from rows.unify_dictionaries().combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
                progress(end - done)
                done = end

    def _parquet_batches(self, numbers: list[str], words: list[str], progress: Progress) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, read_dictionary=words) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[*numbers, *words]):
                yield batch
                progress(batch.num_rows)


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items while a thread makes the next one; it holds one item beyond the caller's."""
    iterator = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending = pool.submit(next, iterator, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, iterator, end)
            yield item


def number_column(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    """A column of floats as an array; a missing value becomes NaN (which lies nowhere, so it is counted outside)."""
    return _as_array(batch.column(name), missing=float("nan"))


def word_column(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.intp], list[str]]:
    """A dictionary-encoded column as (codes, words); a missing value has the code ``len(words)``.

    Words stored as bytes, as in old Xenium bundles, are decoded as UTF-8.
    """
    column = batch.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in column.dictionary.to_pylist()]
    return _as_array(column.indices, missing=len(words)).astype(np.intp), words


def _as_array(column: pa.Array, missing: float) -> npt.NDArray[Any]:
    """The values of a primitive column; through DLPack, because ``to_numpy`` imports pandas where that is installed."""
    return np.from_dlpack(column.fill_null(missing) if column.null_count else column)


def _with_position(
    stream: Iterable[pa.RecordBatch], position: Callable[[], int], progress: Progress
) -> Iterator[pa.RecordBatch]:
    """Pass on the batches, telling how far in the file they brought the reader."""
    done = 0
    for batch in stream:
        yield batch
        reached = position()
        progress(reached - done)
        done = reached


def _csv_segments(path: Path) -> Iterator[tuple[int, int]]:
    """Cut the rows of a CSV file into (start, end) in bytes, at ends of lines; no field may hold a line break."""
    with path.open("rb") as file:
        file.readline()
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        while start < size:
            file.seek(min(start + CSV_SEGMENT_BYTES, size))
            file.readline()
            yield start, file.tell()
            start = file.tell()


def _csv_header(path: Path) -> list[str]:
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow and gzip say about a damaged file into one sentence that names it."""
    try:
        yield
    except (pa.ArrowException, EOFError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's own, not a damaged stream's
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is truncated or garbled ({reason}); copy the file again from the instrument"
        ) from error
