"""A toy sampler on the plan's own rectangles and events: the same pixels as a run without tiles."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from teramind.engine.plan import PieceKind, Tile, TilePlan, TileVersion, Unit

PATCH = 4  # of the cases
PRIME = 2**31 - 1
OUTSIDE = -1
POISON = -(10**9)
WEIGHTS = np.random.default_rng(5).integers(1, PRIME // (4 * PATCH * PATCH), (2 * PATCH, 2 * PATCH))


def noise(window: int, box) -> np.ndarray:
    y, x = np.mgrid[box[0] : box[1], box[2] : box[3]]
    return (window * 7919 + y * 104729 + x * 1299709) % PRIME


def toy_step(padded: np.ndarray, step: int) -> np.ndarray:
    """Change every patch as a whole by any pixel within half a patch of it."""
    assert not (padded == POISON).any(), "read a pixel that was never written"
    side = PATCH // 2
    core = padded[side:-side, side:-side]
    new = np.empty_like(core)
    for y, x in itertools.product(range(0, core.shape[0], PATCH), range(0, core.shape[1], PATCH)):
        total = (padded[y : y + 2 * PATCH, x : x + 2 * PATCH] * WEIGHTS).sum() % PRIME  # below 2^62
        new[y : y + PATCH, x : x + PATCH] = (core[y : y + PATCH, x : x + PATCH] * 3 + total + step) % PRIME
    return new


@pytest.fixture
def expected(case) -> np.ndarray:
    """(windows, height, width): the run without tiles, on all of the bounds."""
    y0, y1, x0, x1 = (PATCH * v for v in (case.bounds or (0, case.height, 0, case.width)))
    skip = case.skip
    planes = []
    for window in range(case.windows):
        out = np.zeros((case.height * PATCH, case.width * PATCH), bool)
        if skip is not None:
            side = case.tile * PATCH
            out = np.kron(skip[window], np.ones((side, side), bool))[: out.shape[0], : out.shape[1]]
        state = np.where(out, OUTSIDE, noise(window, (0, case.height * PATCH, 0, case.width * PATCH)))
        for step in range(case.steps):
            padded = np.pad(state[y0:y1, x0:x1], PATCH // 2, constant_values=OUTSIDE)
            state[y0:y1, x0:x1] = np.where(out[y0:y1, x0:x1], OUTSIDE, toy_step(padded, step))
        planes.append(state)
    return np.stack(planes)


@dataclass
class ToyEngine:
    """Runs a plan with two buffers a tile, each with the number of the version in it, poisoned beyond that version."""

    case: Any
    plan: TilePlan
    buffers: dict[tuple[Tile, int], tuple[int, np.ndarray]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    output: np.ndarray = field(init=False)

    def __post_init__(self):
        self.output = np.full((self.case.windows, self.case.height * PATCH, self.case.width * PATCH), OUTSIDE)

    def state(self, tile: Tile, version: int) -> np.ndarray:
        found, pixels = self.buffers[tile, version % 2]
        assert found == version, "the version to read was overwritten"
        return pixels

    def run(self, unit: Unit) -> np.ndarray:
        height, width = self.plan.compute_rectangle(unit).shape
        padded = np.full((height + PATCH, width + PATCH), POISON)
        for piece in self.plan.input_pieces(unit):
            target = padded[slices(piece.target)]
            assert target.shape == piece.plane.shape == piece.local.shape
            assert (target == POISON).all(), "two pieces overlap"
            assert piece.version == unit.step
            if piece.kind == PieceKind.CONSTANT:
                target[...] = OUTSIDE
            elif piece.kind == PieceKind.NOISE:
                target[...] = noise(unit.window, piece.plane)
            else:
                tile = Tile(unit.window, piece.row, piece.column)
                target[...] = self.state(tile, piece.version)[slices(piece.local)]
        return toy_step(padded, unit.step)

    def place(self, unit: Unit) -> tuple[slice, slice]:
        """Where a unit's result lies in the buffer of its tile."""
        y0, y1, x0, x1 = self.plan.compute_rectangle(unit)
        corner = self.plan.tile_rectangle(unit.row, unit.column)
        return slices((y0 - corner.y0, y1 - corner.y0, x0 - corner.x0, x1 - corner.x0))

    def write(self, unit: Unit, result: np.ndarray):
        pixels = np.full((self.case.tile * PATCH,) * 2, POISON)
        pixels[self.place(unit)] = result
        with self.lock:
            self.buffers[Tile(*unit[:3]), (unit.step + 1) % 2] = unit.step + 1, pixels

    def settle(self, events):
        for tile in events.finished:
            unit = Unit(*tile, self.case.steps - 1)
            box = slices(self.plan.compute_rectangle(unit))
            self.output[tile.window][box] = self.state(tile, self.case.steps)[self.place(unit)]
        gone = [*events.freed, *(TileVersion(*tile, self.case.steps) for tile in events.finished)]
        with self.lock:
            for *tile, version in gone:
                slot = Tile(*tile), version % 2
                if slot in self.buffers and self.buffers[slot][0] == version:  # else overwritten by now
                    del self.buffers[slot]

    def keep_only(self, held: list[TileVersion]):
        keep = {(Tile(*tile), version % 2): version for *tile, version in held}
        self.buffers = {slot: kept for slot, kept in self.buffers.items() if keep.get(slot) == kept[0]}

    def go(self, draw: random.Random, workers: int, units: float = float("inf")):
        """Up to `units` units, with `workers` in flight, each read when claimed and written when completed."""
        flying = []
        while units > 0 or flying:
            while units > 0 and len(flying) < workers and (claim := self.plan.claim(1, timeout=0)):
                units -= 1
                flying.append((claim, self.run(claim[0])))
            if not flying:
                return
            claim, result = flying.pop(draw.randrange(len(flying)))
            self.write(claim[0], result)
            self.settle(self.plan.complete(claim))


def slices(box) -> tuple[slice, slice]:
    return slice(*box[:2]), slice(*box[2:])


def assert_output(case, output: np.ndarray, expected: np.ndarray):
    y0, y1, x0, x1 = (PATCH * v for v in (case.output or case.bounds or (0, case.height, 0, case.width)))
    np.testing.assert_array_equal(output[:, y0:y1, x0:x1], expected[:, y0:y1, x0:x1])


def test_pixels_equal_a_run_without_tiles(case, expected):
    """Of a region too: its context has all the pixels it depends on, and the pieces hold them at the right version."""
    for workers in (1, 5):
        engine = ToyEngine(case, case.plan())
        engine.go(random.Random(workers), workers)
        assert engine.plan.remaining == 0
        assert_output(case, engine.output, expected)


def test_a_cut_anywhere_continues_to_the_same_pixels(case, expected):
    draw = random.Random(case.seed)
    engine = ToyEngine(case, case.plan())
    while engine.plan.remaining:
        engine.go(draw, workers=3, units=draw.randint(1, 1 + engine.plan.remaining // 2))
        assert engine.plan.pause(timeout=0)
        before = engine.plan
        engine.keep_only(before.held())
        engine.plan = case.plan(completed=before.completed())
        assert engine.plan.remaining == before.remaining
        assert engine.plan.live_tiles == engine.plan.peak_live_tiles == before.live_tiles
        assert engine.plan.held() == before.held()
    assert_output(case, engine.output, expected)


def test_context_is_no_larger_than_it_must_be():
    """Every pixel of version 0 that an exact region reads matters: P/2 + (steps - 1) * P on each side."""
    plan, read = TilePlan(80, 80, patch=4, tile=12, steps=4, output=(36, 44, 32, 40)), set()
    while units := plan.claim():
        for piece in plan.input_pieces(units[0]):
            if piece.kind == PieceKind.NOISE:
                read |= {*itertools.product(range(*piece.plane[:2]), range(*piece.plane[2:]))}
        plan.complete(units)
    reach = 3 * 4 + 2
    ys, xs = range(36 - reach, 44 + reach), range(32 - reach, 40 + reach)
    assert read == {*itertools.product(ys, xs)}


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("case", [4, 6, 12], indirect=True)
def test_threads(case, workers, expected):
    """Real threads with random delays: every unit once, and the same pixels."""
    engine, seen, failures = ToyEngine(case, case.plan()), [], []
    units = engine.plan.remaining

    def work(seed):
        draw = random.Random(seed)
        try:
            while claim := engine.plan.claim(draw.randint(1, 3)):
                seen.extend(claim)
                time.sleep(draw.random() * 1e-3)
                for unit in claim:
                    engine.write(unit, engine.run(unit))
                engine.settle(engine.plan.complete(claim))
        except BaseException as error:
            failures.append(error)
            engine.plan.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(seen) == len(set(seen)) == units
    assert_output(case, engine.output, expected)
