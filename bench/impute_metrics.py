"""Soft scores at six radii against a loop over spots with scipy.

20,000 measured and 20,000 predicted cells, 500 genes of which 15 % are seen in a cell, 30 types, 2,829 cells/mm2. The
baseline takes one spot at a time: cells in the ball, their sums, ``scipy.stats.spearmanr``. It runs on some spots and
is scaled to all of them. Ratios are of CPU time on one thread, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import numpy as np
from scipy.sparse import random_array
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from teramind.impute.cells import Cells
from teramind.impute.metrics import RADII, soft_scores
from teramind.impute.neighbourhoods import Neighbourhoods, nearby_pieces
from teramind.impute.ranks import correlate_rows, rank_rows

DENSITY = 2829  # cells/mm2


def tissue(cells, genes, generator):
    side = np.sqrt(cells / DENSITY)
    counts = random_array(
        (cells, genes),
        density=0.15,
        format="csr",
        rng=generator,
        data_sampler=lambda size: generator.poisson(2, size) + 1.0,
    )
    types = generator.integers(0, 30, cells).astype(str)
    return Cells(generator.random((cells, 2)) * side, types, counts, tuple(map(str, range(genes))))


def timed(function, *arguments, **options):
    """Seconds of CPU, of all threads, and the result."""
    start = time.process_time()
    result = function(*arguments, **options)
    return time.process_time() - start, result


def naive(truth, prediction, radius, spots):
    """The loop: seconds for all cells of the truth, in all and for ``spearmanr`` alone, and its values."""
    trees = [cKDTree(side.positions) for side in (truth, prediction)]
    values, correlating = [], 0.0
    start = time.process_time()
    for centre in truth.positions[spots]:
        sums = [
            np.asarray(side.counts[tree.query_ball_point(centre, radius)].sum(axis=0)).ravel()
            for side, tree in zip((truth, prediction), trees, strict=True)
        ]
        seconds, result = timed(spearmanr, *sums)
        correlating += seconds
        values.append(result.statistic)
    scale = len(truth) / len(spots)
    return (time.process_time() - start) * scale, correlating * scale, values


def ranking(truth, prediction, radius):
    """Seconds of our ranks and correlations alone."""
    sums = [np.empty((len(truth), side.counts.shape[1])) for side in (truth, prediction)]
    pieces = nearby_pieces(truth.positions)
    for side, kept in zip((truth, prediction), sums, strict=True):
        around = Neighbourhoods(side.positions, side.counts)
        for piece in pieces:
            kept[piece] = next(around.in_balls(truth.positions[piece], [radius]))
    return timed(lambda: [correlate_rows(*(rank_rows(side[piece]) for side in sums)) for piece in pieces])[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000, metavar="N")
    parser.add_argument("--genes", type=int, default=500, metavar="N")
    parser.add_argument("--naive-spots", type=int, default=1000, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    truth, prediction = (tissue(options.cells, options.genes, generator) for _ in range(2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{options.cells:,} + {options.cells:,} cells, {options.genes} genes; load {os.getloadavg()[0]:.1f}")
    start = time.perf_counter()
    seconds, scores = timed(soft_scores, truth, prediction, threads=options.threads)
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"six radii, three metrics, {options.threads} threads: {wall:.1f} s, {seconds:.1f} s of CPU")
    print(f"memory: {peak / 1024:,.0f} MB, of which {(peak - before) / 1024:,.0f} MB for scoring")
    print("radius  spearman  f1     composition")
    for radius in RADII:
        values = [score.value for score in scores if score.size == radius]
        print(f"{radius:<7} {values[0]:8.4f}  {values[1]:.3f}  {values[2]:.3f}")
    spots = generator.choice(options.cells, min(options.naive_spots, options.cells), replace=False)
    print("per-spot Spearman on one thread: the loop over spots, ours, ratio; then without neighbours and sums")
    for radius in (RADII[0], RADII[2], RADII[-1]):
        loop, loop_ranks, expected = naive(truth, prediction, radius, spots)
        ours, [score] = timed(soft_scores, truth, prediction, radii=[radius], metrics=["spearman"], threads=1)
        if not np.allclose(score.per_spot[spots], expected, atol=1e-12):
            raise SystemExit(f"radius {radius}: the values differ from scipy's")
        ranks = ranking(truth, prediction, radius)
        print(f"{radius:<6} {loop:6.1f} s {ours:6.2f} s {loop / ours:5.1f} x   ", end="")
        print(f"{loop_ranks:6.1f} s {ranks:6.2f} s {loop_ranks / ranks:5.1f} x")


if __name__ == "__main__":
    main()
