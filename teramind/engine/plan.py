"""What is computed when: the graph of (window, tile, step) units of a run, and the rectangles that each of them reads.

A run has independent planes (one a z-window), each cut into tiles, and a number of DDIM steps. Unit (window, tile, s)
computes version s + 1 of the tile's state from version s of the tile and of a rim, half a patch wide, of its up to
eight neighbours. Version 0 is noise, a function of position alone, so it is computed where it is needed and never
stored. There is no barrier between steps: units are handed out **deepest step first**, then lowest window, then
position along the longer side of what is computed, then along the shorter. That keeps a band of tiles alive, about as
many lines of the shorter side as there are steps; ahead of it all is noise, behind it all is finished.

What has to be kept is told by two kinds of events. ``freed``: no unit will read this version of this tile any more.
``finished``: the last version of this tile is in; no unit reads it, and it may be dropped as soon as it is in the
output. They support two ways of keeping tiles:

- **Two buffers a tile**, version v in buffer ``v % 2``. Version v + 2 may be written over version v, because its unit
  is handed out only when all neighbours have completed v + 1, that is, have read v.
- **One buffer and rims.** Only a tile's own unit reads beyond the rim of P/2 px, so the inside may be updated in place;
  of the rim, version v is needed beside version v + 1 until ``freed`` names it, and never a third.

Units, versions and rectangles are tuples of integers, rectangles half open in pixels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teramind import _core
from teramind.errors import InputError

MOST_STEPS = 1000  # the diffusion was trained on as many


class Rectangle(NamedTuple):
    """Pixels ``y0:y1, x0:x1``, half open."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def area(self) -> int:
        """Number of pixels."""
        height, width = self.shape
        return height * width


class Unit(NamedTuple):
    """The work that takes one tile from version ``step`` to version ``step + 1``."""

    window: int
    row: int
    column: int
    step: int


class Tile(NamedTuple):
    """A tile of one window."""

    window: int
    row: int
    column: int


class TileVersion(NamedTuple):
    """A tile's state after ``version`` steps; it covers ``compute_rectangle`` of the unit of step ``version - 1``."""

    window: int
    row: int
    column: int
    version: int


class PieceKind(IntEnum):
    """Where a part of a unit's input comes from."""

    CONSTANT = 0  # beyond the bounds, or a skipped tile: -1 at every version
    NOISE = 1  # version 0
    STATE = 2  # stored version of a tile


class Piece(NamedTuple):
    """A part of what a unit reads: one rectangle in three frames.

    Attributes:
        kind: Where its pixels come from.
        row: The tile it lies in; -1 beyond the bounds.
        column: As ``row``.
        version: The version to read, the unit's step.
        plane: Where it lies in the plane.
        local: The same, seen from the corner of its tile (beyond the bounds: of the plane).
        target: The same, seen from the corner of the unit's input, which is half a patch beyond what it computes.
    """

    kind: PieceKind
    row: int
    column: int
    version: int
    plane: Rectangle
    local: Rectangle
    target: Rectangle


class Completion(NamedTuple):
    """What a completion lets go of; see the module's text.

    With several workers an event may be acted on late: another one may by then have written version v + 2 over the
    version v that was freed. So forget a version by its number, never "what is in this buffer".
    """

    freed: list[TileVersion]
    finished: list[Tile]


class Simulation(NamedTuple):
    """A rehearsed run: times in the unit of the durations given."""

    makespan: float
    busy: list[float]
    units: int
    peak_live_tiles: int

    @property
    def efficiency(self) -> float:
        """Part of the workers' time spent on units; 1 is ideal."""
        return sum(self.busy) / (self.makespan * len(self.busy)) if self.makespan else 1.0


class TilePlan:
    """The schedule of a run, shared by its workers. Every method may be called from any thread.

    Three kinds of run differ in two rectangles only: the whole plane (neither given), an exact region (``output``
    alone: rings of patches around it are computed too, one less each step, and thrown away), and a region with a
    constant around it (``output`` and ``bounds`` the same).

    Args:
        height: Height of the plane in px, a multiple of ``patch``.
        width: Width, likewise.
        patch: Side P of the network's patches in px, even. A unit reads P/2 px beyond what it computes.
        tile: Side of a tile in px, a multiple of ``patch``; the last of a row or column may be narrower.
        steps: DDIM steps, 1 to 1000.
        windows: Number of independent planes.
        output: The rectangle that is wanted, on the patch grid; all within ``bounds`` by default.
        bounds: Where the image ends, on the patch grid; the whole plane by default. Beyond it is a constant.
        skip: (windows, rows, columns) bool, tiles that count as done at every step and are a constant.
        completed: (windows, rows, columns) integers, the steps done of each tile in an earlier run, as told by
            :meth:`completed`; the state of the versions in :meth:`held` has to be there.

    Raises:
        InputError: A size off the grid, a rectangle outside the plane, or counts that no run can have come to.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        patch: int,
        tile: int,
        steps: int,
        windows: int = 1,
        output: Sequence[int] | None = None,
        bounds: Sequence[int] | None = None,
        skip: NDArray[np.bool_] | None = None,
        completed: NDArray[np.integer] | None = None,
    ) -> None:
        if patch < 2 or patch % 2:
            raise InputError(f"a patch of {patch} px has no half: give an even side")
        _check_tile(tile, patch)
        for name, length in (("height", height), ("width", width)):
            if length < patch or length % patch:
                raise InputError(f"a plane's {name} of {length} px is not a whole number of patches of {patch} px")
        if not 1 <= steps <= MOST_STEPS:
            raise InputError(f"{steps} steps cannot be planned: choose 1 to {MOST_STEPS}")
        if windows < 1:
            raise InputError(f"{windows} windows leave nothing to do: give at least 1")
        self.patch, self.tile, self.steps, self.windows = patch, tile, steps, windows
        self.rows, self.columns = -(-height // tile), -(-width // tile)
        plane = Rectangle(0, height, 0, width)
        self.bounds = plane if bounds is None else _rectangle("bounds", bounds, plane, patch)
        self.output = self.bounds if output is None else _rectangle("output", output, self.bounds, patch)
        shape = (windows, self.rows, self.columns)
        skip = None if skip is None else _array("skip", skip, shape, "b").astype(np.uint8)
        completed = None if completed is None else _counts(_array("completed", completed, shape, "iu"), steps)
        try:
            self._schedule = _core.TileSchedule(
                height=height, width=width, patch=patch, tile=tile, steps=steps, windows=windows,
                bounds=self.bounds, output=self.output, skip=skip, completed=completed,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"the tiles' state is not one of this run: {error}") from None

    def claim(self, limit: int = 1, timeout: float | None = None) -> list[Unit]:
        """Take the next units that are ready; waits, without the GIL, while none is or while the plan is paused.

        All units of a claim have the same window, step and compute shape, so that they make one batch; it ends early
        where the shape changes, at the narrower tiles that may end a line. For the sake of full batches the deepest
        step with ``limit`` units ready goes first; steps with fewer wait, unless their window has no tile left to
        start. With a limit of 1 this is the plain order of the module's text.

        Args:
            limit: The most units to take.
            timeout: Seconds to wait; 0 does not wait, None waits for as long as it takes. Who holds units that are
                not completed must not wait without a limit: they may be the ones that the next unit needs.

        Returns:
            The units; none when the time is up or there will be none any more (all done, or closed).
        """
        if limit < 1:
            raise InputError(f"cannot claim {limit} units: ask for at least 1")
        return [Unit(*unit) for unit in self._schedule.claim(limit, timeout)]

    def complete(self, units: Sequence[Unit]) -> Completion:
        """Report claimed units as done: their input is read and their result may be read by others.

        Returns:
            What may be forgotten and what is finished by this. Each is told once, to the caller whose completion was
            the last that it needed.

        Raises:
            RuntimeError: A unit is not claimed.
            IndexError: There is no such unit.
        """
        freed, finished = self._schedule.complete(units)
        return Completion([TileVersion(*version) for version in freed], [Tile(*tile) for tile in finished])

    def release(self, units: Sequence[Unit]) -> None:
        """Give claimed units back undone, for another worker.

        Raises:
            RuntimeError: A unit is not claimed.
            IndexError: There is no such unit.
        """
        self._schedule.release(units)

    def peek(self, limit: int, batch: int = 1) -> list[Unit]:
        """The next units to be claimed, for reading ahead; nothing changes.

        Exact for one worker that completes a claim of ``batch`` units before it makes the next. With more workers the
        units are nearly the same and their order differs: claimed ones are taken to complete before the next claim.
        """
        if batch < 1:
            raise InputError(f"cannot look ahead in batches of {batch}: give at least 1")
        return [Unit(*unit) for unit in self._schedule.peek(max(limit, 0), batch)]

    def pause(self, timeout: float | None = None) -> bool:
        """Hand out nothing more and wait until no unit is in flight: then the state is a cut that can be saved.

        Returns:
            Whether that came about within ``timeout`` seconds (None: as long as it takes). Paused it stays either way.
        """
        return bool(self._schedule.pause(timeout))

    def resume(self) -> None:
        """Hand out units again after :meth:`pause`."""
        self._schedule.resume()

    def close(self) -> None:
        """End it: every claim, waiting or to come, returns nothing. Units in flight may still be completed."""
        self._schedule.close()

    def completed(self) -> NDArray[np.uint16]:
        """(windows, rows, columns): steps done of each tile; a skipped tile has done all its steps.

        Units in flight count as not done. Together with the versions of :meth:`held` it is what ``completed=`` needs.
        """
        counts: NDArray[np.uint16] = self._schedule.completed()
        return counts

    def held(self) -> list[TileVersion]:
        """Stored versions that some unit will still read: at most two a tile, the last one of a finished tile not."""
        return [TileVersion(*version) for version in self._schedule.held()]

    def tile_rectangle(self, row: int, column: int) -> Rectangle:
        """A tile's place in the plane; IndexError if there is no such tile."""
        return Rectangle(*self._schedule.tile(row, column))

    def active_rectangle(self, step: int) -> Rectangle:
        """What a step has to compute: the output and a ring of patches for each step after it, within the bounds."""
        if not 0 <= step < self.steps:
            raise InputError(f"there is no step {step}: a run has steps 0 to {self.steps - 1}")
        return Rectangle(*self._schedule.active(step))

    def compute_rectangle(self, unit: Unit) -> Rectangle:
        """What a unit computes: its tile within the active rectangle of its step, a whole number of patches.

        Raises:
            IndexError: There is no such unit; the tile may not be needed at that step.
        """
        return Rectangle(*self._schedule.compute(unit))

    def input_pieces(self, unit: Unit) -> list[Piece]:
        """What a unit reads: its compute rectangle and half a patch around it, in up to nine parts without overlap.

        Raises:
            IndexError: There is no such unit.
        """
        return [
            Piece(PieceKind(kind), row, column, version, Rectangle(*plane), Rectangle(*local), Rectangle(*target))
            for kind, row, column, version, plane, local, target in self._schedule.input(unit)
        ]

    def simulate(self, seconds: Sequence[float], batch: int = 1) -> Simulation:
        """Rehearse the units that are left, on a copy of the plan.

        Args:
            seconds: For each worker, how long it needs for a unit.
            batch: Units a claim.
        """
        if not seconds or min(seconds) <= 0:
            raise InputError(f"workers that take {list(seconds)} s a unit cannot be simulated: give durations above 0")
        if batch < 1:
            raise InputError(f"cannot simulate batches of {batch}: give at least 1")
        return Simulation(*self._schedule.simulate(seconds, batch))

    @property
    def remaining(self) -> int:
        """Units not completed."""
        return int(self._schedule.counts()[0])

    @property
    def in_flight(self) -> int:
        """Units claimed and not completed."""
        return int(self._schedule.counts()[1])

    @property
    def live_tiles(self) -> int:
        """Tiles with a buffer: from the claim of their first unit until no unit will read them any more."""
        return int(self._schedule.counts()[2])

    @property
    def peak_live_tiles(self) -> int:
        """The most tiles alive at once since the plan was made."""
        return int(self._schedule.counts()[3])

    def pixels(self) -> tuple[int, int]:
        """Pixels to compute, over all windows and steps, and how many of them are done, by units or by being skipped.

        Units in flight count as not done.
        """
        completed, total, done = self.completed(), 0, 0
        for step in range(self.steps):
            active = self.active_rectangle(step)
            rows = _shared_lengths(active.y0, active.y1, self.tile, self.rows)
            columns = _shared_lengths(active.x0, active.x1, self.tile, self.columns)
            total += active.area * self.windows
            done += int(((completed > step).sum(axis=0) * np.outer(rows, columns)).sum())
        return total, done

    @property
    def line_tiles(self) -> int:
        """Tiles in a line of the shorter side of what is computed; about ``steps + 1`` lines are alive at once."""
        region = self.active_rectangle(0)
        rows = -(-region.y1 // self.tile) - region.y0 // self.tile
        columns = -(-region.x1 // self.tile) - region.x0 // self.tile
        height, width = region.shape
        return columns if height >= width else rows

    @property
    def extra_work(self) -> float:
        """Pixels computed for one pixel of the output, over all steps; 1 without context. Skipped tiles count too."""
        computed = sum(self.active_rectangle(step).area for step in range(self.steps))
        return computed / (self.steps * self.output.area)


def _shared_lengths(start: int, end: int, tile: int, count: int) -> NDArray[np.int64]:
    """How much of ``start:end`` lies in each of ``count`` tiles in a row."""
    first = np.arange(count) * tile
    lengths: NDArray[np.int64] = np.maximum(np.minimum(first + tile, end) - np.maximum(first, start), 0)
    return lengths


def _check_tile(tile: int, patch: int) -> None:
    if tile < patch or tile % patch:
        below = max(tile // patch, 1) * patch
        raise InputError(
            f"a tile of {tile} px is not a whole number of patches of {patch} px: take {below} or {below + patch}"
        )


def _rectangle(name: str, values: Sequence[int], within: Rectangle, patch: int) -> Rectangle:
    """Check that a rectangle has pixels, lies within another and starts and ends on patches."""
    box = Rectangle(*map(operator.index, values))
    if not (within.y0 <= box.y0 < box.y1 <= within.y1 and within.x0 <= box.x0 < box.x1 <= within.x1):
        raise InputError(f"{name} {_text(box)} is empty or reaches beyond {_text(within)}: give a rectangle inside")
    if any(value % patch for value in box):
        raise InputError(f"{name} {_text(box)} is off the patch grid: snap it to multiples of {patch} px")
    return box


def _text(box: Rectangle) -> str:
    return f"{box.y0}:{box.y1},{box.x0}:{box.x1}"


def _array(name: str, values: NDArray[np.generic], shape: tuple[int, int, int], kinds: str) -> NDArray[np.generic]:
    if values.shape != shape or values.dtype.kind not in kinds:
        raise InputError(
            f"{name} is {values.dtype} of shape {values.shape}: give windows x rows x columns = {shape}"
            f" {'booleans' if kinds == 'b' else 'integers'}"
        )
    return values


def _counts(values: NDArray[np.generic], steps: int) -> NDArray[np.uint16]:
    """Check the range before the cast, which would wrap around."""
    for extreme in (values.min(), values.max()):
        if not 0 <= extreme <= steps:
            raise InputError(f"a tile that has completed {extreme} of {steps} steps is not one of this run")
    return values.astype(np.uint16)
