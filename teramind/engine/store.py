"""The state of the tiles that are alive: in memory up to a limit, beyond it in a scratch file.

Of each tile one version is kept whole, which only its own next unit reads, and beside it the rims of the last two
versions, which are all that neighbours read. Rims are strips of their own and always in memory, so a halo costs what
it holds wherever the tile is; what is spilled is read once by its own unit and replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teramind.engine.frame import intersection
from teramind.engine.plan import Rectangle, Tile, TileVersion
from teramind.engine.scratch import Scratch

State = NDArray[np.floating]


class Strip(NamedTuple):
    """A rectangle of the plane and its state, (S, Z, h, w)."""

    rectangle: Rectangle
    values: State

    def copy_into(self, target: State, rectangle: Rectangle) -> int:
        """Copy what this holds of ``rectangle``, which is where ``target`` lies in the plane; the bytes copied."""
        shared = intersection(self.rectangle, rectangle)
        if not shared.area:
            return 0
        part = self.values[within(shared, self.rectangle)]
        target[within(shared, rectangle)] = part
        return part.nbytes


def within(part: Rectangle, whole: Rectangle) -> tuple[slice, slice, slice, slice]:
    """Where ``part`` lies in an (S, Z, h, w) array that covers ``whole``."""
    rows = slice(part.y0 - whole.y0, part.y1 - whole.y0)
    columns = slice(part.x0 - whole.x0, part.x1 - whole.x0)
    return slice(None), slice(None), rows, columns


def cut_rim(rectangle: Rectangle, values: State, width: int) -> list[Strip]:
    """The outermost ``width`` px of a tile, as contiguous strips: top, bottom, left, right, corners with the first."""
    y0, y1, x0, x1 = rectangle
    if rectangle.shape[0] <= 2 * width or rectangle.shape[1] <= 2 * width:
        return [Strip(rectangle, values.copy())]
    sides = [
        Rectangle(y0, y0 + width, x0, x1),
        Rectangle(y1 - width, y1, x0, x1),
        Rectangle(y0 + width, y1 - width, x0, x0 + width),
        Rectangle(y0 + width, y1 - width, x1 - width, x1),
    ]
    return [Strip(side, values[within(side, rectangle)].copy()) for side in sides]


@dataclass
class _Held:
    """What is kept of one tile."""

    version: int
    rectangle: Rectangle
    block: State | None  # None: in the scratch file
    slot: int | None = None
    rims: dict[int, list[Strip]] = field(default_factory=dict)


class SavedTile(NamedTuple):
    """What a snapshot holds of one tile; ``whole`` is None for a finished one."""

    tile: Tile
    version: int
    rectangle: Rectangle
    whole: State | None
    rims: dict[int, list[Strip]]  # without that of ``version`` where ``whole`` is there: it is cut from it again


class StateStore:
    """Tiles' state between their units; safe to use from several threads.

    Attributes:
        resident_bytes: state in memory now, rims included.
        peak_resident_bytes: the most there was.
        spilled_blocks: blocks that went to the scratch file.
    """

    def __init__(self, memory: int, scratch: Scratch, rim: int) -> None:
        """Start empty.

        Args:
            memory: bytes of whole tiles to keep in memory; rims are kept there in any case.
            scratch: where the rest goes.
            rim: px on each side that neighbours read, P/2.
        """
        self.memory = memory
        self.scratch = scratch
        self.rim = rim
        self.resident_bytes = self.peak_resident_bytes = self.spilled_blocks = 0
        self._whole_bytes = 0
        self._tiles: dict[Tile, _Held] = {}
        self._lock = threading.Lock()

    def put(self, tile: Tile, version: int, rectangle: Rectangle, values: State) -> None:
        """Keep a new version of a tile, (S, Z, h, w), in place of the one before; the caller gives the array away."""
        rim = cut_rim(rectangle, values, self.rim)
        with self._lock:
            before = self._tiles.get(tile)
            held = _Held(version, rectangle, values, rims=before.rims if before else {})
            held.rims[version] = rim
            self._tiles[tile] = held
            slot = self._let_go(before)
            self._count(sum(strip.values.nbytes for strip in rim))
            fits = self._whole_bytes + values.nbytes <= self.memory
            if fits:
                self._whole_bytes += values.nbytes
                self._count(values.nbytes)
            else:
                self.spilled_blocks += 1
        if slot is not None:
            self.scratch.release(slot)
        if not fits:
            held.slot = self.scratch.store(values)
            held.block = None

    def drop(self, tile: Tile) -> None:
        """Forget a tile's whole version, after its last unit; its rims stay for the neighbours."""
        with self._lock:
            held = self._tiles.get(tile)
            slot = self._let_go(held)
            if held and not held.rims:
                del self._tiles[tile]
        if slot is not None:
            self.scratch.release(slot)

    def free(self, freed: TileVersion) -> None:
        """Forget the rim of a version that nobody reads any more."""
        tile = Tile(*freed[:3])
        with self._lock:
            held = self._tiles.get(tile)
            rim = held.rims.pop(freed.version, []) if held else []
            self._count(-sum(strip.values.nbytes for strip in rim))
            if held and not held.rims and held.block is None and held.slot is None:
                del self._tiles[tile]

    @property
    def kept_bytes(self) -> int:
        """All state, wherever it is."""
        return self.resident_bytes + self.scratch.used_bytes

    def whole(self, tile: Tile) -> Strip:
        """The kept version of a tile, read back from the scratch file if it is there."""
        held = self._tiles[tile]
        if held.block is not None:
            return Strip(held.rectangle, held.block)
        if held.slot is None:
            raise RuntimeError(f"no state of {tile} is kept")
        return Strip(held.rectangle, self.scratch.load(held.slot))

    def rims(self, version: TileVersion) -> list[Strip]:
        """The rim of one version of a tile."""
        return self._tiles[Tile(*version[:3])].rims[version.version]

    def saved(self) -> Iterator[SavedTile]:
        """All that is kept, one tile at a time; nothing may change in between."""
        for tile, held in self._tiles.items():
            is_kept = held.block is not None or held.slot is not None
            rims = {version: rim for version, rim in held.rims.items() if not (is_kept and version == held.version)}
            yield SavedTile(tile, held.version, held.rectangle, self.whole(tile).values if is_kept else None, rims)

    def restore(self, saved: SavedTile) -> None:
        """Take back what ``saved`` told."""
        for rim in saved.rims.values():
            self._count(sum(strip.values.nbytes for strip in rim))
        self._tiles[saved.tile] = _Held(saved.version, saved.rectangle, None, rims=dict(saved.rims))
        if saved.whole is not None:
            self.put(saved.tile, saved.version, saved.rectangle, saved.whole)

    def prefetch(self, tile: Tile) -> None:
        """Start reading a tile that will be needed soon, if it is in the scratch file."""
        held = self._tiles.get(tile)
        if held and held.block is None and held.slot is not None:
            self.scratch.prefetch(held.slot)

    def _let_go(self, held: _Held | None) -> int | None:
        """Forget a whole version; the slot to release, if it has one. Called with the lock."""
        if held is None:
            return None
        if held.block is not None:
            self._whole_bytes -= held.block.nbytes
            self._count(-held.block.nbytes)
        slot, held.block, held.slot = held.slot, None, None
        return slot

    def _count(self, more: int) -> None:
        self.resident_bytes += more
        self.peak_resident_bytes = max(self.peak_resident_bytes, self.resident_bytes)
