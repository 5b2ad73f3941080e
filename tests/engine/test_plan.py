"""The tile graph against two independent models: dependencies counted tile by tile, and pixels of a toy sampler."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from teramind.engine.plan import PieceKind, Rectangle, Tile, TilePlan, TileVersion, Unit
from teramind.errors import InputError

PATCH = 4


@dataclass(frozen=True)
class Case:
    """Sizes in patches; `output` and `bounds` as y0, y1, x0, x1."""

    height: int
    width: int
    tile: int
    steps: int
    windows: int = 1
    output: tuple[int, int, int, int] | None = None
    bounds: tuple[int, int, int, int] | None = None
    skipped: float = 0.0
    seed: int = 0

    @property
    def skip(self):
        if not self.skipped:
            return None
        shape = (self.windows, -(-self.height // self.tile), -(-self.width // self.tile))
        return np.random.default_rng(self.seed).random(shape) < self.skipped

    def plan(self, **more) -> TilePlan:
        px = [None if box is None else [PATCH * value for value in box] for box in (self.output, self.bounds)]
        return TilePlan(
            PATCH * self.height, PATCH * self.width, patch=PATCH, tile=PATCH * self.tile, steps=self.steps,
            windows=self.windows, output=px[0], bounds=px[1], skip=self.skip, **more,
        )  # fmt: skip


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


ALL_CASES = CASES + [random_case(seed) for seed in range(40)]
case_id = repr


class Graph:
    """Which units there are and which of them read which version, straight from the definition."""

    def __init__(self, case: Case):
        whole = (0, case.height, 0, case.width)
        bounds = case.bounds or whole
        output = case.output or bounds
        self.case = case
        self.rows, self.columns = -(-case.height // case.tile), -(-case.width // case.tile)
        skip = case.skip
        self.boxes = {}
        for step in range(case.steps):
            rings = case.steps - 1 - step
            active = set(
                itertools.product(
                    range(max(output[0] - rings, bounds[0]), min(output[1] + rings, bounds[1])),
                    range(max(output[2] - rings, bounds[2]), min(output[3] + rings, bounds[3])),
                )
            )
            for row, column in itertools.product(range(self.rows), range(self.columns)):
                inside = [p for p in active if p[0] // case.tile == row and p[1] // case.tile == column]
                if inside:
                    ys, xs = zip(*inside, strict=True)
                    box = tuple(PATCH * v for v in (min(ys), max(ys) + 1, min(xs), max(xs) + 1))
                    for window in range(case.windows):
                        if skip is None or not skip[window, row, column]:
                            self.boxes[Unit(window, row, column, step)] = box
        region = active_extent(output, bounds, case.steps - 1)
        self.rows_first = region[1] - region[0] >= region[3] - region[2]
        self.readers = {unit: set(self.near(unit, unit.step + 1)) for unit in self.boxes}  # of the version it makes
        self.needs = {unit: set(self.near(unit, unit.step - 1)) for unit in self.boxes}
        self.own: dict[Tile, set[Unit]] = {}
        for unit in self.boxes:
            self.own.setdefault(Tile(*unit[:3]), set()).add(unit)

    def near(self, unit: Unit, step: int):
        for row, column in itertools.product(
            range(unit.row - 1, unit.row + 2), range(unit.column - 1, unit.column + 2)
        ):
            other = Unit(unit.window, row, column, step)
            if other in self.boxes:
                yield other

    def priority(self, unit: Unit):
        place = (unit.row, unit.column) if self.rows_first else (unit.column, unit.row)
        return -unit.step, unit.window, *place


def active_extent(output, bounds, rings):
    return (
        max(output[0] - rings, bounds[0]), min(output[1] + rings, bounds[1]),
        max(output[2] - rings, bounds[2]), min(output[3] + rings, bounds[3]),
    )  # fmt: skip


class Checker:
    """Follows a run and asserts at every event what the definition says about it."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.left = set(graph.boxes)  # neither claimed nor done
        self.claimed: set[Unit] = set()
        self.done: set[Unit] = set()
        self.kept: set[Unit] = set()  # done, and what they made is still to be read

    def ready(self) -> list[Unit]:
        return sorted((u for u in self.left if self.graph.needs[u] <= self.done), key=self.graph.priority)

    def claim(self, units: list[Unit]):
        for unit in units:
            assert unit in self.left, "handed out twice, or not a unit"
            assert self.graph.needs[unit] <= self.done, "handed out before its dependencies"
            overwritten = unit._replace(step=unit.step - 2)  # its result shares a buffer with this unit's
            assert self.graph.readers.get(overwritten, set()) <= self.done, "overwrites what is still to be read"
        self.left -= set(units)
        self.claimed |= set(units)
        boxes = [self.graph.boxes[unit] for unit in units]
        assert len({(u.window, u.step, b[1] - b[0], b[3] - b[2]) for u, b in zip(units, boxes, strict=True)}) <= 1

    def complete(self, units: list[Unit], events):
        last = self.graph.case.steps - 1
        self.claimed -= set(units)
        self.done |= set(units)
        self.kept |= {unit for unit in units if unit.step < last}
        assert sorted(events.finished) == sorted(Tile(*unit[:3]) for unit in units if unit.step == last)
        free = {unit for unit in self.kept if self.graph.readers[unit] <= self.done}
        self.kept -= free
        assert sorted(events.freed) == sorted(map(made_by, free)), "freed at the wrong moment"

    def live(self) -> int:
        return sum(map(self.is_live, self.graph.own.items()))

    def is_live(self, item) -> bool:
        tile, own = item
        if not own & (self.claimed | self.done):
            return False
        last_read = min(len(own), self.graph.case.steps - 1)  # version
        return not {*own, *self.graph.near(Unit(*tile, 0), last_read)} <= self.done


def made_by(unit: Unit) -> TileVersion:
    return TileVersion(*unit[:3], unit.step + 1)


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("case", ALL_CASES, ids=case_id)
def test_every_unit_once_after_its_dependencies_and_no_version_lost(case, workers):
    graph = Graph(case)
    plan, checker, draw = case.plan(), Checker(graph), random.Random(workers)
    assert plan.remaining == len(graph.boxes)
    peak = 0
    flying: list[list[Unit]] = []
    while True:
        while len(flying) < workers:
            limit = draw.choice([1, 1, 1, 4])
            units = plan.claim(limit, timeout=0)
            if not units:
                assert not checker.ready(), "nothing handed out though a unit is ready"
                break
            if limit == 1:
                assert units == checker.ready()[:1]
            checker.claim(units)
            flying.append(units)
        assert plan.in_flight == sum(map(len, flying))
        assert plan.live_tiles == checker.live()
        peak = max(peak, plan.live_tiles)
        if not flying:
            break
        units = flying.pop(draw.randrange(len(flying)))
        checker.complete(units, plan.complete(units))
        assert sorted(plan.held()) == sorted(map(made_by, checker.kept))
    assert checker.done == set(graph.boxes)
    assert plan.remaining == plan.live_tiles == 0
    assert plan.peak_live_tiles == peak
    assert plan.claim() == []
    for tile, own in graph.own.items():
        assert plan.completed()[tile] == len(own)


# ------------------------------------------------------------------------------------------------------------- pixels


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
        total = int(sum((padded[y : y + 2 * PATCH, x : x + 2 * PATCH].astype(object) * WEIGHTS).flat)) % PRIME
        new[y : y + PATCH, x : x + PATCH] = (core[y : y + PATCH, x : x + PATCH] * 3 + total + step) % PRIME
    return new


def whole_plane(case: Case) -> np.ndarray:
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

    case: Case
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


def assert_equal_to_whole(case: Case, output: np.ndarray, expected: np.ndarray):
    y0, y1, x0, x1 = (PATCH * v for v in (case.output or case.bounds or (0, case.height, 0, case.width)))
    np.testing.assert_array_equal(output[:, y0:y1, x0:x1], expected[:, y0:y1, x0:x1])


@pytest.mark.parametrize("case", ALL_CASES, ids=case_id)
def test_pixels_equal_a_run_without_tiles(case):
    """Of a region too: its context has all the pixels it depends on, and the pieces hold them at the right version."""
    expected = whole_plane(case)
    for workers in (1, 5):
        engine = ToyEngine(case, case.plan())
        engine.go(random.Random(workers), workers)
        assert engine.plan.remaining == 0
        assert_equal_to_whole(case, engine.output, expected)


@pytest.mark.parametrize("case", ALL_CASES[::2], ids=case_id)
def test_a_cut_anywhere_continues_to_the_same_pixels(case):
    expected = whole_plane(case)
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
    assert_equal_to_whole(case, engine.output, expected)


def test_context_is_no_larger_than_it_must_be():
    """Every pixel of version 0 that an exact region reads matters: P/2 + (steps - 1) * P on each side."""
    case = Case(20, 20, tile=3, steps=4, output=(9, 11, 8, 10))
    plan, read = case.plan(), set()
    while units := plan.claim():
        for piece in plan.input_pieces(units[0]):
            if piece.kind == PieceKind.NOISE:
                read |= {*itertools.product(range(*piece.plane[:2]), range(*piece.plane[2:]))}
        plan.complete(units)
    reach = 3 * PATCH + PATCH // 2
    ys, xs = range(9 * PATCH - reach, 11 * PATCH + reach), range(8 * PATCH - reach, 10 * PATCH + reach)
    assert read == {*itertools.product(ys, xs)}


@pytest.mark.parametrize(("side", "factor"), [(1024, 3.81), (8192, 1.24)])
def test_extra_work_of_a_region(side, factor):
    plan = TilePlan(73216, 105984, patch=64, tile=1024, steps=15, output=(2048, 2048 + side, 4096, 4096 + side))
    assert plan.extra_work == pytest.approx(factor, abs=0.005)


def test_pieces_of_an_inner_unit():
    plan = TilePlan(256, 256, patch=64, tile=128, steps=2, output=(128, 192, 128, 192))
    while unit := plan.claim()[0]:
        if unit.step == 1:
            break
        plan.complete([unit])
    assert plan.active_rectangle(0) == (64, 256, 64, 256)
    assert plan.compute_rectangle(unit) == (128, 192, 128, 192)
    pieces = plan.input_pieces(unit)
    assert [(p.row, p.column, p.plane) for p in pieces] == [
        (0, 0, (96, 128, 96, 128)), (0, 1, (96, 128, 128, 224)), (1, 0, (128, 224, 96, 128)), (1, 1, (128, 224, 128, 224)),
    ]  # fmt: skip
    assert pieces[1].local == Rectangle(96, 128, 0, 96)
    assert pieces[1].target == Rectangle(0, 32, 32, 128)


# ------------------------------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("case", [CASES[4], CASES[12], CASES[6]], ids=case_id)
def test_threads(case, workers):
    """Real threads with random delays: every unit once, and the same pixels."""
    engine, units_left, failures = ToyEngine(case, case.plan()), set(Graph(case).boxes), []

    def work(seed):
        draw = random.Random(seed)
        try:
            while units := engine.plan.claim(draw.randint(1, 3)):
                for unit in units:
                    units_left.remove(unit)
                time.sleep(draw.random() * 1e-3)
                for unit in units:
                    engine.write(unit, engine.run(unit))
                engine.settle(engine.plan.complete(units))
        except BaseException as error:
            failures.append(error)
            engine.plan.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not units_left
    assert_equal_to_whole(case, engine.output, whole_plane(case))


def test_a_pause_waits_for_units_in_flight_and_holds_back_waiting_claims():
    plan = Case(8, 8, tile=2, steps=3).plan()
    first, claims = plan.claim(3), []
    assert len(first) == 3
    assert not plan.pause(timeout=0.01)
    waiting = threading.Thread(target=lambda: claims.append(plan.claim()))
    waiting.start()
    threading.Timer(0.05, plan.complete, [first]).start()
    assert plan.pause()
    assert plan.in_flight == 0
    assert plan.claim(timeout=0.01) == []
    assert not claims
    plan.resume()
    waiting.join(5)
    assert len(claims[0]) == 1


def test_close_ends_waiting_claims():
    plan, claims = Case(1, 1, tile=1, steps=2).plan(), []
    unit = plan.claim()
    waiting = threading.Thread(target=lambda: claims.append(plan.claim()))
    waiting.start()
    plan.close()
    waiting.join(5)
    assert claims == [[]]
    assert plan.claim() == []
    plan.complete(unit)
    assert plan.remaining == 1


def test_a_signal_reaches_python_while_a_claim_waits():
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    plan = Case(1, 1, tile=1, steps=2).plan()
    plan.claim()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Stop):
            plan.claim(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_released_units_come_back_in_order():
    plan = Case(1, 6, tile=1, steps=3).plan()
    units = [plan.claim()[0] for _ in range(4)]
    plan.complete([units[1]])
    plan.release([units[2], units[0], units[3]])
    assert (plan.in_flight, plan.live_tiles) == (0, 1)
    assert [plan.claim()[0] for _ in range(3)] == [units[0], units[2], units[3]]


# ---------------------------------------------------------------------------------------------------------- foresight


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", ALL_CASES[4:20], ids=case_id)
def test_peek_is_what_one_worker_claims_and_changes_nothing(case, batch):
    plan, untouched = case.plan(), case.plan()
    draw = random.Random(0)
    while plan.remaining:
        ahead = plan.peek(20, batch)
        assert len(ahead) == min(20, plan.remaining)
        for _ in range(draw.randint(1, 12)):
            units = plan.claim(batch, timeout=0)
            assert units == untouched.claim(batch, timeout=0)
            assert units == ahead[: len(units)] or len(ahead) < len(units)
            ahead = ahead[len(units) :]
            rest = plan.peek(len(ahead), batch)  # with units in flight
            assert rest == ahead
            assert plan.complete(units) == untouched.complete(units)
    np.testing.assert_array_equal(plan.completed(), untouched.completed())
    assert plan.peak_live_tiles == untouched.peak_live_tiles


def test_batches_are_full():
    """All but the units at the ends of lines and of the run come in whole batches."""
    plan, sizes = TilePlan(64 * 40, 64 * 40, patch=64, tile=64, steps=15, windows=2), []
    while units := plan.claim(8):
        plan.complete(units)
        sizes.append(len(units))
    assert sum(sizes) == 2 * 1600 * 15
    assert np.mean(sizes) > 7.5
    assert plan.peak_live_tiles <= 17 * 40


# ----------------------------------------------------------------------------------------------------- the published plane


@pytest.mark.parametrize(("tile", "batch"), [(1024, 1), (512, 1), (256, 1), (256, 16)])
def test_one_window_of_the_published_plane(tile, batch):
    plan = TilePlan(73216, 105984, patch=64, tile=tile, steps=15)
    result = plan.simulate([1.0], batch)
    assert result.units == plan.remaining == plan.rows * plan.columns * 15
    assert result.makespan == result.units
    assert result.peak_live_tiles <= 16 * plan.rows


@pytest.mark.parametrize("batch", [1, 4])
def test_25_windows_on_8_workers(batch):
    plan = TilePlan(73216, 105984, patch=64, tile=1024, steps=15, windows=25)
    result = plan.simulate([1.0] * 8, batch)
    assert result.makespan <= 1.1 * result.units / 8
    assert result.peak_live_tiles <= 17 * plan.rows


def test_uneven_workers_share_small_windows():
    plan = TilePlan(1024, 1024, patch=64, tile=256, steps=15, windows=25)
    seconds = [1.0, 1.0, 1.0, 2.5]
    result = plan.simulate(seconds)
    assert result.makespan <= 1.1 * result.units / sum(1 / s for s in seconds)
    assert sum(b / s for b, s in zip(result.busy, seconds, strict=True)) == pytest.approx(result.units)
    assert plan.remaining == result.units


def test_a_simulation_starts_from_where_the_plan_is():
    plan = Case(6, 6, tile=2, steps=4).plan()
    for _ in range(10):
        plan.complete(plan.claim())
    plan.claim(2)
    result = plan.simulate([0.5])
    assert (result.units, result.makespan, result.efficiency) == (9 * 4 - 10, 13.0, 1.0)
    assert (plan.remaining, plan.in_flight) == (26, 2)


def test_live_tiles_do_not_grow_with_the_longer_side():
    peaks = [TilePlan(h, 512, patch=64, tile=64, steps=15).simulate([1.0]).peak_live_tiles for h in (2048, 4096, 16384)]
    assert len(set(peaks)) == 1
    turned = TilePlan(512, 4096, patch=64, tile=64, steps=15)
    assert turned.simulate([1.0]).peak_live_tiles == peaks[0]


# ------------------------------------------------------------------------------------------------------------- errors


GOOD = {"height": 256, "width": 192, "patch": 64, "tile": 128, "steps": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 0}, "patch of 0 px"),
        ({"patch": 63}, "patch of 63 px"),
        ({"tile": 100}, "take 64 or 128"),
        ({"tile": 200}, "take 192 or 256"),
        ({"tile": 0}, "take 64 or 128"),
        ({"height": 250}, "height of 250 px"),
        ({"width": 0}, "width of 0 px"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"windows": 0}, "0 windows"),
        ({"output": (0, 64, 0, 256)}, "output 0:64,0:256"),
        ({"output": (64, 64, 0, 64)}, "empty"),
        ({"output": (0, 60, 0, 64)}, "multiples of 64 px"),
        ({"bounds": (-64, 64, 0, 64)}, "bounds -64:64,0:64"),
        ({"bounds": (0, 64, 0, 64), "output": (0, 128, 0, 64)}, "beyond 0:64,0:64"),
        ({"skip": np.zeros((1, 2, 3), bool)}, r"shape \(1, 2, 3\)"),
        ({"skip": np.zeros((1, 2, 2))}, "booleans"),
        ({"completed": np.zeros((2, 2), int)}, "integers"),
        ({"completed": np.full((1, 2, 2), 4)}, "completed 4 of 3 steps"),
        ({"completed": np.full((1, 2, 2), -1)}, "completed -1 of 3"),
        ({"completed": np.array([[[2, 2], [0, 2]]])}, "2 steps, two more than a neighbour"),
        ({"completed": np.ones((1, 2, 2), int), "skip": np.ones((1, 2, 2), bool)}, "but is skipped"),
        ({"completed": np.ones((1, 2, 2), int), "output": (0, 64, 0, 64), "steps": 1}, "completed 1 of 0 steps"),
    ],
)
def test_what_cannot_be_planned(change, words):
    with pytest.raises(InputError, match=words):
        TilePlan(**{**GOOD, **change})


def test_calls_that_make_no_sense():
    plan = TilePlan(**GOOD)
    unit = plan.claim()[0]
    other = unit._replace(row=1)
    for call in (plan.complete, plan.release):
        with pytest.raises(RuntimeError, match="not claimed"):
            call([other])
    plan.complete([unit])
    with pytest.raises(RuntimeError, match="not claimed"):
        plan.complete([unit])
    for wrong in (unit._replace(row=2), unit._replace(step=3), unit._replace(window=-1)):
        for call in (plan.compute_rectangle, plan.input_pieces, lambda u: plan.complete([u])):
            with pytest.raises(IndexError):
                call(wrong)
    with pytest.raises(IndexError):
        plan.tile_rectangle(0, 2)
    for call in (
        lambda: plan.claim(0),
        lambda: plan.active_rectangle(3),
        lambda: plan.simulate([]),
        lambda: plan.simulate([0.0]),
        lambda: plan.simulate([1.0], batch=0),
        lambda: plan.peek(3, batch=0),
    ):
        with pytest.raises(InputError):
            call()
