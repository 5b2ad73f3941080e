"""A label map of anatomical regions at bin resolution, and the names of its labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from teramind.errors import InputError

LARGEST_LABEL = np.iinfo(np.uint16).max


def read_regions(
    labels: str | Path, names: str | Path | None, slices: int, bin_shape: tuple[int, int]
) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """Read a label map and its names.

    Args:
        labels: ``.npy`` or ``.tif`` of integers, (slices, bin rows, bin columns), or (bin rows, bin columns) for a
            single slice; 0 is no region. It is mapped, not loaded, where its format allows.
        names: CSV with the columns ``id`` and ``name``; None for the file beside ``labels`` with the ending ``.csv``.
        slices: slices of the atlas.
        bin_shape: bin rows and bin columns of the atlas.

    Returns:
        (slices, bin rows, bin columns) labels, and the name of each.

    Raises:
        InputError: if a file cannot be read, the shape is another, or a label has no name.
    """
    labels = Path(labels)
    array = _read_array(labels)
    if array.ndim == 2:
        array = array[None]
    if array.shape != (slices, *bin_shape):
        raise InputError(
            f"the label map {labels} has the shape {array.shape} and the atlas has {(slices, *bin_shape)} bins "
            "(slices, rows, columns); give one label a bin of 16 px"
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"the label map {labels} holds {array.dtype}; give integers")
    named = _read_names(Path(names) if names is not None else labels.with_suffix(".csv"))
    used: set[int] = set()
    for plane in array:  # one slice in memory at a time
        used.update(int(label) for label in np.unique(plane))
    if used and not 0 <= min(used) <= max(used) <= LARGEST_LABEL:
        raise InputError(f"the label map {labels} holds labels {min(used)} to {max(used)}; give 0 to {LARGEST_LABEL}")
    nameless = sorted(used - set(named) - {0})
    if nameless:
        raise InputError(f"the label {nameless[0]} of {labels} has no name; add it to the table of names")
    return array, named


def _read_array(path: Path) -> npt.NDArray[Any]:
    try:
        if path.suffix == ".npy":
            mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                is_plain = series.dataoffset is not None
            pixels: npt.NDArray[Any] = tifffile.memmap(path, mode="r") if is_plain else tifffile.imread(path)
            return pixels
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise InputError(f"the label map {path} cannot be read ({error}); give an .npy or .tif of integers") from error
    raise InputError(f"the label map {path} is neither .npy nor .tif; give one of these")


def _read_names(path: Path) -> dict[int, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return {int(row["id"]): row["name"] for row in rows}
    except OSError as error:
        raise InputError(f"the names of the regions cannot be read from {path} ({error.strerror})") from error
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table of regions; give a CSV with the columns id and name") from error
