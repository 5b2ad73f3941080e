"""Runs for the plan to be tried on: odd sizes, regions, borders and skipped tiles, drawn by hand and at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from teramind.engine.plan import TilePlan


@dataclass(frozen=True)
class Case:
    """A run, its sizes in patches; ``output`` and ``bounds`` as y0, y1, x0, x1."""

    height: int
    width: int
    tile: int
    steps: int
    windows: int = 1
    output: tuple[int, int, int, int] | None = None
    bounds: tuple[int, int, int, int] | None = None
    skipped: float = 0.0
    seed: int = 0
    patch: int = 4  # px

    @property
    def skip(self):
        if not self.skipped:
            return None
        shape = (self.windows, -(-self.height // self.tile), -(-self.width // self.tile))
        return np.random.default_rng(self.seed).random(shape) < self.skipped

    def plan(self, **more) -> TilePlan:
        boxes = {"output": self.output, "bounds": self.bounds}
        return TilePlan(
            self.height * self.patch,
            self.width * self.patch,
            patch=self.patch,
            tile=self.tile * self.patch,
            steps=self.steps,
            windows=self.windows,
            skip=self.skip,
            **{name: box and [value * self.patch for value in box] for name, box in boxes.items()},
            **more,
        )


CASES = [
    Case(1, 1, tile=1, steps=1),
    Case(1, 1, tile=3, steps=4, windows=3),
    Case(1, 9, tile=2, steps=5),
    Case(11, 1, tile=1, steps=3, windows=2),
    Case(7, 5, tile=2, steps=6, windows=2),
    Case(5, 13, tile=3, steps=2, skipped=0.3, seed=1),
    Case(9, 9, tile=1, steps=7, windows=2, skipped=0.5, seed=2),
    Case(6, 6, tile=2, steps=3, skipped=1.0),
    Case(20, 17, tile=3, steps=4, output=(7, 9, 6, 11)),
    Case(20, 17, tile=1, steps=5, output=(9, 10, 8, 9), windows=2),
    Case(20, 17, tile=6, steps=3, output=(4, 8, 0, 3)),
    Case(20, 23, tile=4, steps=9, output=(0, 2, 20, 23)),
    Case(20, 17, tile=2, steps=4, output=(7, 9, 6, 11), skipped=0.4, seed=3, windows=2),
    Case(20, 17, tile=3, steps=4, output=(7, 12, 6, 11), bounds=(7, 12, 6, 11)),
    Case(20, 17, tile=3, steps=4, output=(8, 9, 8, 11), bounds=(7, 12, 6, 11), skipped=0.2, seed=4),
]


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    height, width = draw.randint(1, 12), draw.randint(1, 12)

    def box(y0, y1, x0, x1):
        y, x = sorted(draw.sample(range(y0, y1 + 1), 2)), sorted(draw.sample(range(x0, x1 + 1), 2))
        return (*y, *x)

    bounds = box(0, height, 0, width) if draw.random() < 0.3 else None
    output = box(*(bounds or (0, height, 0, width))) if draw.random() < 0.6 else None
    return Case(
        height, width, tile=draw.randint(1, 4), steps=draw.randint(1, 6), windows=draw.randint(1, 3),
        output=output, bounds=bounds, skipped=draw.choice([0.0, 0.1, 0.6]), seed=seed,
    )  # fmt: skip


CASES += [random_case(seed) for seed in range(40)]


@pytest.fixture(params=range(len(CASES)), ids=lambda number: f"case{number}")
def case(request) -> Case:
    """All of them, or with ``indirect`` those whose numbers are given."""
    return CASES[request.param]
