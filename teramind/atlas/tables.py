"""Streaming reads of a transcript table: CSV, gzipped CSV or parquet, a few columns, block by block."""

from __future__ import annotations

import contextlib
import csv
import gzip
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

# Bytes of CSV parsed at once. 8 MiB is about 70,000 rows: large enough that the Python of a block costs nothing,
# small enough that parser, block and its arrays stay in tens of MB and near the caches.
CSV_BLOCK_BYTES = 8 << 20
PARQUET_BATCH_ROWS = 1 << 17

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
        with pa.OSFile(str(self.path)) as file:
            stream = pa.CompressedInputStream(file, "gzip") if self.path.suffix == ".gz" else file
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
                convert_options=pa_csv.ConvertOptions(include_columns=[*numbers, *words], column_types=types),
            )
            done = 0
            for batch in reader:
                yield batch
                position = file.tell()
                progress(position - done)
                done = position

    def _parquet_batches(self, numbers: list[str], words: list[str], progress: Progress) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, read_dictionary=words) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[*numbers, *words]):
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
    """A column of numbers as an array; a missing value becomes NaN (which lies nowhere, so it is counted outside)."""
    values: npt.NDArray[Any] = batch.column(name).to_numpy(zero_copy_only=False)
    return values


def word_column(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.intp], list[str]]:
    """A dictionary-encoded column as (codes, words); a missing value has the code ``len(words)``.

    Words stored as bytes, as in old Xenium bundles, are decoded as UTF-8.
    """
    column = batch.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in column.dictionary.to_pylist()]
    indices = column.indices.fill_null(len(words)) if column.null_count else column.indices
    return indices.to_numpy(zero_copy_only=False).astype(np.intp), words


def _csv_header(path: Path) -> list[str]:
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
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
