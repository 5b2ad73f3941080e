"""The tile graph against its definition, told tile by tile; its order, its foresight and its errors."""

from __future__ import annotations

import itertools
import random
import signal
import threading

import numpy as np
import pytest

from teramind.engine.plan import Rectangle, Tile, TilePlan, TileVersion, Unit
from teramind.errors import InputError


class Graph:
    """Which units there are and which of them read which version, straight from the definition."""

    def __init__(self, case):
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
                    box = tuple(case.patch * v for v in (min(ys), max(ys) + 1, min(xs), max(xs) + 1))
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
        (0, 0, (96, 128, 96, 128)),
        (0, 1, (96, 128, 128, 224)),
        (1, 0, (128, 224, 96, 128)),
        (1, 1, (128, 224, 128, 224)),
    ]
    assert pieces[1].local == Rectangle(96, 128, 0, 96)
    assert pieces[1].target == Rectangle(0, 32, 32, 128)


# ------------------------------------------------------------------------------------------------------------ threads


def test_a_pause_waits_for_units_in_flight_and_holds_back_waiting_claims():
    plan = TilePlan(32, 32, patch=4, tile=8, steps=3)
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
    plan, claims = TilePlan(4, 4, patch=4, tile=4, steps=2), []
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
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    plan = TilePlan(4, 4, patch=4, tile=4, steps=2)
    plan.claim()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(StopError):
            plan.claim(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_released_units_come_back_in_order():
    plan = TilePlan(4, 24, patch=4, tile=4, steps=3)
    units = [plan.claim()[0] for _ in range(4)]
    plan.complete([units[1]])
    plan.release([units[2], units[0], units[3]])
    assert (plan.in_flight, plan.live_tiles) == (0, 1)
    assert [plan.claim()[0] for _ in range(3)] == [units[0], units[2], units[3]]


# ---------------------------------------------------------------------------------------------------------- foresight


@pytest.mark.parametrize("batch", [1, 3])
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


# --------------------------------------------------------------------------------------------------- published plane


@pytest.mark.parametrize(("tile", "batch"), [(1024, 1), (512, 1), (256, 1), (256, 16)])
def test_one_window_of_the_published_plane(tile, batch):
    plan = TilePlan(73216, 105984, patch=64, tile=tile, steps=15)
    result = plan.simulate([1.0], batch)
    assert result.units == plan.remaining == plan.rows * plan.columns * 15
    assert result.makespan == result.units
    assert result.peak_live_tiles <= 16 * plan.line_tiles == 16 * plan.rows


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
    plan = TilePlan(24, 24, patch=4, tile=8, steps=4)
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
