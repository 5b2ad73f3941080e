"""Transcripts to sparse counts per bin and gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from teramind import _core
from teramind.checks import integer_between, thread_count
from teramind.errors import InputError

MAX_SIDE = 2**31 - 1
MAX_GENES = 2**20
MAX_BINS = 2**32
MAX_POINTS = 2**32 - 1
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Dropped:
    """Transcripts that are in no bin.

    Attributes:
        points: Transcripts outside the image, or with a coordinate that is NaN or infinite.
        genes: Transcripts inside the image whose gene is not in the panel.
    """

    points: int
    genes: int

    @property
    def total(self) -> int:
        """All of them; none is counted twice."""
        return self.points + self.genes


@overload
def rasterize(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    gene: npt.ArrayLike,
    shape: tuple[int, int],
    genes: int,
    bin_size: int = ...,
    *,
    threads: int | None = ...,
    return_dropped: Literal[False] = ...,
) -> csr_array[Any, tuple[int, int]]: ...
@overload
def rasterize(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    gene: npt.ArrayLike,
    shape: tuple[int, int],
    genes: int,
    bin_size: int = ...,
    *,
    threads: int | None = ...,
    return_dropped: Literal[True],
) -> tuple[csr_array[Any, tuple[int, int]], Dropped]: ...
def rasterize(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    gene: npt.ArrayLike,
    shape: tuple[int, int],
    genes: int,
    bin_size: int = 16,
    *,
    threads: int | None = None,
    return_dropped: bool = False,
) -> csr_array[Any, tuple[int, int]] | tuple[csr_array[Any, tuple[int, int]], Dropped]:
    """Count transcripts per square bin and gene.

    Bin (i, j) holds the transcripts with ``i * bin_size <= y < (i + 1) * bin_size``, likewise j and x; the last row
    and column of bins may be partial. A transcript outside ``[0, H) x [0, W)``, or of a gene outside ``[0, genes)``,
    is left out and counted, never wrapped or clipped. The result is the same, bit for bit, for any number of threads
    and any order of the transcripts. Above its input and output a call takes at most 13 bytes a transcript and about
    0.5 MiB a thread. Arrays are read where they lie, whatever their strides; only a foreign byte order is copied.

    Args:
        x: (n,) columns in px: float32, float64 or any integer type.
        y: (n,) rows in px, of the same or another type.
        gene: (n,) gene of each transcript, any integer type.
        shape: (H, W) of the image in px.
        genes: Number of genes in the panel.
        bin_size: Side of a bin in px.
        threads: Threads at most; all CPUs this process may use if None.
        return_dropped: Also return how many transcripts were left out and why.

    Returns:
        (ceil(H / bin_size) * ceil(W / bin_size), genes) uint16 counts, bins row-major, columns sorted and without
        duplicates; indices are int32 as long as int32 can hold them. With ``return_dropped`` a pair with `Dropped`.

    Raises:
        InputError: An argument has the wrong shape or type, or more than 65,535 transcripts of a gene lie in one bin.
    """
    columns = _column("x", x, "iuf"), _column("y", y, "iuf"), _column("gene", gene, "iu")
    lengths = [column.size for column in columns]
    if len(set(lengths)) != 1:
        raise InputError(f"x, y and gene have {lengths} elements, but each transcript needs one of each.")
    if lengths[0] > MAX_POINTS:
        raise InputError(f"{lengths[0]} transcripts are more than the {MAX_POINTS} of one call; split the image.")
    if len(shape) != 2:
        raise InputError(f"shape is {shape!r}, but has to be (height, width) in px.")
    height = integer_between("the image's height", shape[0], 1, MAX_SIDE)
    width = integer_between("the image's width", shape[1], 1, MAX_SIDE)
    genes = integer_between("genes", genes, 1, MAX_GENES)
    bin_size = integer_between("bin_size", bin_size, 1, MAX_SIDE)
    bin_rows, bin_columns = -(-height // bin_size), -(-width // bin_size)
    if bin_rows * bin_columns > MAX_BINS:
        raise InputError(
            f"bin_size {bin_size} cuts {height} x {width} px into {bin_rows * bin_columns} bins, more than {MAX_BINS}; "
            "use larger bins or split the image."
        )
    try:
        counts, indices, row_pointer, outside, unknown = _core.rasterize(
            *columns,
            height=height,
            width=width,
            genes=genes,
            bin_size=bin_size,
            threads=thread_count(threads),
            wide_index=max(lengths[0], bin_rows * bin_columns) > _MAX_INT32,
        )
    except _core.CountOverflowError as error:
        bin_index, gene_index, count = error.args
        row, column = divmod(bin_index, bin_columns)
        raise InputError(
            f"Bin (row {row}, column {column}) holds {count} transcripts of gene {gene_index}, more than the 65535 a "
            "count can hold; use smaller bins or look for transcripts given twice."
        ) from error
    bins = csr_array((counts, indices, row_pointer), shape=(bin_rows * bin_columns, genes), copy=False)
    bins.has_canonical_format = True  # known here; finding out would read the whole matrix
    return (bins, Dropped(outside, unknown)) if return_dropped else bins


def _column(name: str, values: npt.ArrayLike, kinds: str) -> npt.NDArray[Any]:
    """Return ``values`` as a one-dimensional array of a type the core reads, without a copy where possible."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}, but has to be one-dimensional.")
    if array.size == 0:  # an empty list has no type of its own
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8 or array.dtype == np.float16:
        wanted = "an integer type" if kinds == "iu" else "float32, float64 or an integer type"
        raise InputError(f"{name} is of type {array.dtype}, but has to be of {wanted}.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
