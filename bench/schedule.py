"""The tile graph: units ordered a second, tiles alive and balance, on the published plane; and the cost seen by Python.

Usage: ``python bench/schedule.py``. The baseline is the same graph in plain Python (sets and a heap) on a small plane.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import time
from collections.abc import Callable

from teramind.engine.plan import TilePlan

PUBLISHED = {"height": 73216, "width": 105984, "patch": 64, "steps": 15}
SMALL = {"height": 64 * 60, "width": 64 * 90, "patch": 64, "tile": 64, "steps": 15}
REPEATS = 3


def plain_python(rows: int, columns: int, steps: int) -> None:
    """Order all units of one window with one worker."""
    done = dict.fromkeys(itertools.product(range(rows), range(columns)), 0)
    near = {
        (row, column): [
            place
            for place in itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1))
            if place in done
        ]
        for row, column in done
    }
    ready = [(0, column, row) for row, column in done]
    heapq.heapify(ready)
    while ready:
        depth, column, row = heapq.heappop(ready)
        done[row, column] = reached = 1 - depth
        if reached == steps:
            continue
        for place in near[row, column]:
            if done[place] == reached and all(done[other] >= reached for other in near[place]):
                heapq.heappush(ready, (-reached, place[1], place[0]))


def one_by_one(plan: TilePlan, batch: int) -> None:
    """Claim and complete all units from Python."""
    while units := plan.claim(batch):
        plan.complete(units)


def seconds(work: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return taken


def row(name: str, units: int, taken: list[float], baseline: float, rest: str = "") -> None:
    best, median = (units / value / 1e6 for value in (min(taken), statistics.median(taken)))
    print(f"{name:<40} {units:>11,} {best:>8.2f} {median:>8.2f} {best / baseline:>8.1f}  {rest}")


def main() -> None:
    print(f"{'':<40} {'units':>11} {'M/s best':>8} {'median':>8} {'x Python':>8}  of {REPEATS}")
    small = TilePlan(**SMALL)
    taken = seconds(lambda: plain_python(small.rows, small.columns, small.steps))
    baseline = small.remaining / min(taken) / 1e6
    row("plain Python, 60 x 90 tiles", small.remaining, taken, baseline)
    for batch in (1, 8):
        taken = seconds(lambda batch=batch: one_by_one(TilePlan(**SMALL), batch))
        row(f"claim({batch}), complete() from Python", small.remaining, taken, baseline)
    for tile, windows, workers, batch in ((256, 1, 1, 1), (256, 25, 1, 1), (256, 25, 8, 1), (256, 25, 8, 8)):
        plan = TilePlan(**PUBLISHED, tile=tile, windows=windows)
        taken = seconds(lambda plan=plan, work=([1.0] * workers, batch): plan.simulate(*work))
        result = plan.simulate([1.0] * workers, batch)
        name = f"simulated: {windows} windows, {workers} workers x {batch}"
        alive = f"{result.peak_live_tiles:,} tiles alive = {result.peak_live_tiles / plan.line_tiles:.2f} lines"
        row(name, result.units, taken, baseline, f"{alive}, {result.efficiency:.4f} busy")


if __name__ == "__main__":
    main()
