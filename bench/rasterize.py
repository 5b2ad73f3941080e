"""Transcripts to sparse counts per bin: teramind.rasterize against scipy, on one full section.

20 M transcripts, 500 genes, 73,728 x 106,496 px, in two kinds:

- tissue: 70,000 cells in an ellipse that fills half of the image, each of one of 25 types with its own gene profile;
  transcripts scatter around their cell with a standard deviation of 3 um (28 px).
- uniform: every position and gene equally likely. Almost no bin repeats a gene.

The baseline is ``coo_array(...).tocsr()`` and ``sum_duplicates()``. "points" does the whole of our job, from float32
coordinates, with the bins computed in int32 (what scipy works fastest on). "int32" and "int64" are given bin and gene
indices that were computed before the clock started; int64 is what index arithmetic gives unless one takes care.
Best of n, all contenders taken in turn; the matrices are compared.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from scipy.sparse import coo_array

from teramind.atlas.binning import rasterize

HEIGHT, WIDTH, GENES, BIN = 73_728, 106_496, 500, 16
ROWS, COLUMNS = HEIGHT // BIN, WIDTH // BIN


def tissue(n, rng, cells=70_000, spread=28, types=25):
    radius, angle = np.sqrt(rng.random(cells)), rng.uniform(0, 2 * np.pi, cells)
    x = WIDTH * (0.5 + 0.4 * radius * np.cos(angle))
    y = HEIGHT * (0.5 + 0.4 * radius * np.sin(angle))
    profiles = rng.lognormal(0, 1.5, (types, GENES))
    steps = np.cumsum(profiles / profiles.sum(axis=1, keepdims=True), axis=1) + np.arange(types)[:, None]
    cell = rng.integers(0, cells, n)
    gene = np.searchsorted(steps.ravel(), cell % types + rng.random(n) * (1 - 1e-9)) % GENES
    scatter = spread * rng.standard_normal((2, n), dtype=np.float32)
    return x[cell].astype(np.float32) + scatter[0], y[cell].astype(np.float32) + scatter[1], gene.astype(np.int32)


def uniform(n, rng):
    x, y = rng.random((2, n), dtype=np.float32) * np.float32([[WIDTH], [HEIGHT]]) * np.float32(1 - 1e-6)
    return x, y, rng.integers(0, GENES, n, dtype=np.int32)


def with_scipy(bins, gene, ones):
    matrix = coo_array((ones, (bins, gene)), shape=(ROWS * COLUMNS, GENES)).tocsr()
    matrix.sum_duplicates()
    return matrix


def bins_of(x, y):
    return (y.astype(np.int32) // BIN) * COLUMNS + x.astype(np.int32) // BIN


def timed(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def measure(x, y, gene, repeats):
    """Best seconds by contender: scipy on points, on int32 and on int64 indices, ours on one thread and on two."""
    bins = bins_of(x, y)
    ones = np.ones(x.size, np.uint16)
    wide = bins.astype(np.int64), gene.astype(np.int64)
    best = {}
    for _ in range(repeats):
        for name, call in {
            "points": lambda: with_scipy(bins_of(x, y), gene, ones),
            "int32": lambda: with_scipy(bins, gene, ones),
            "int64": lambda: with_scipy(*wide, ones),
            1: lambda: rasterize(x, y, gene, (HEIGHT, WIDTH), GENES, threads=1),
            2: lambda: rasterize(x, y, gene, (HEIGHT, WIDTH), GENES, threads=2),
        }.items():
            seconds, matrix = timed(call)
            best[name] = min(seconds, best.get(name, np.inf))
            if name == "points":
                expected = matrix
            for part in ("indptr", "indices", "data"):
                if not np.array_equal(getattr(matrix, part), getattr(expected, part)):
                    raise SystemExit(f"{name}: {part} differs from scipy's")
            del matrix
    return best, expected.nnz


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transcripts", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    options = parser.parse_args()
    cpus, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{options.transcripts:,} transcripts, {ROWS * COLUMNS:,} bins, {GENES} genes; best of {options.repeats}")
    print(f"{cpus} CPUs, load {load:.1f}; ratios: to scipy from points, from int32, from int64 indices")
    print("kind         stored  scipy points    int32    int64  ours, 1 thread             ours, 2 threads")
    for generate in (tissue, uniform):
        best, stored = measure(*generate(options.transcripts, np.random.default_rng(0)), options.repeats)
        row = (
            f"{generate.__name__:8} {stored:10,} {best['points']:11.2f} s {best['int32']:6.2f} s {best['int64']:6.2f} s"
        )
        for threads in (1, 2):
            seconds = best[threads]
            row += f"  {seconds:6.3f} s" + "".join(
                f"{best[kind] / seconds:5.1f}" for kind in ("points", "int32", "int64")
            )
        print(row, flush=True)


if __name__ == "__main__":
    main()
