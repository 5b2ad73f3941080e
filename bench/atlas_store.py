"""The atlas store: bytes a stored count, speed of writing, time of a window.

Synthetic tissue, 500 genes, at a tenth of, at about, and at four times the density of a mouse brain imaged with
MERSCOPE. The time of a window is compared with that of making and filling its array from entries in memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from teramind.atlas.layout import ENTRIES, OFFSETS
from teramind.atlas.store import Atlas
from teramind.atlas.writer import STRIP_BINS, AtlasWriter

GENES = 500
SLICES = 4


def tissue(rng: np.random.Generator, bins: int, transcripts_a_bin: float) -> list[csr_array]:
    """The strips of a square slice: round cells of twenty types, each with its own profile of genes."""
    types = 20
    profiles = rng.gamma(0.3, 1.0, (types, GENES)).cumsum(axis=1)
    profiles /= profiles[:, -1:]
    number = int(bins**2 * transcripts_a_bin)
    cells = bins**2 // 25
    centre, kind = rng.integers(0, bins, (2, cells)), rng.integers(0, types, cells)
    cell = rng.integers(0, cells, number)
    row, column = np.clip(np.rint(centre[:, cell] + rng.normal(0, 2, (2, number))), 0, bins - 1).astype(int)
    gene = np.empty(number, dtype=int)
    for index in range(types):
        mine = kind[cell] == index
        gene[mine] = np.searchsorted(profiles[index], rng.random(int(mine.sum())))
    counts = csr_array((np.ones(number, np.uint16), (row * bins + column, gene)), shape=(bins**2, GENES))
    counts.sum_duplicates()
    return [counts[start * bins : (start + STRIP_BINS) * bins] for start in range(0, bins, STRIP_BINS)]


def seconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best and median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def write(path: Path, strips: list[csr_array], bins: int) -> None:
    with AtlasWriter(
        path,
        genes=[f"gene{index}" for index in range(GENES)],
        stains=[],
        slice_z=range(0, 100 * SLICES, 100),
        shape=(bins * 16, bins * 16),
        pixel_size=0.108,
        scaling=None,
        provenance={},
        overwrite=True,
    ) as writer:
        for index in range(SLICES):
            for strip in strips:
                writer.append_counts(index, strip)


def in_memory(window: np.ndarray) -> Callable[[], None]:
    """Make an array like ``window`` and fill it from its entries: what no reader can do without."""
    place = np.flatnonzero(window)
    count = window.ravel()[place]

    def fill() -> None:
        np.zeros_like(window).reshape(-1)[place] = count

    return fill


def measure(path: Path, bins: int, density: float, repeats: int, rng: np.random.Generator) -> None:
    """Write an atlas of one density and print its rows of the table."""
    strips = tissue(rng, bins, density)
    best, _ = seconds(lambda: write(path, strips, bins), 3)
    atlas = Atlas.open(path)
    stored = atlas.stored_counts
    files = [file for name in (ENTRIES, OFFSETS) for file in (path / name).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    row = f"{density:12.2f} {stored:9d} {size / stored:8.2f} {stored / best / 1e6:10.1f}"
    for side in (1024, 1024 + 64, 4096):

        def window(side: int = side) -> np.ndarray:
            y, x = (int(v) * 16 for v in rng.integers(0, bins - side // 16 + 1, 2))
            return atlas.gene_window(0, SLICES, y, y + side, x, x + side)

        fastest, median = seconds(window, repeats)
        _, memory = seconds(in_memory(window()), repeats)
        print(f"{row} {side:10d} {1e3 * fastest:7.1f} {1e3 * median:8.1f} {median / memory:9.1f}")
        row = " " * len(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=768, help="side of a slice, bins")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(
        f"{SLICES} slices of {arguments.bins} x {arguments.bins} bins, {GENES} genes; {arguments.repeats} windows each"
    )
    print(" points/bin    stored  B/count  write M/s  window px best ms  median  x memory")
    with tempfile.TemporaryDirectory() as folder:
        for density in (0.15, 1.5, 6.0):
            rng = np.random.default_rng(0)
            measure(Path(folder) / "atlas.zarr", arguments.bins, density, arguments.repeats, rng)


if __name__ == "__main__":
    main()
