"""What a unit reads: the state of its tile and its rim, put together from what is kept, and its genes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teramind.engine.frame import Window
from teramind.engine.panel import Panel
from teramind.engine.plan import PieceKind, Rectangle, Tile, TilePlan, TileVersion, Unit
from teramind.engine.store import StateStore, within

OUTSIDE = -1.0  # the image beyond the frame, at every step

Noise = Callable[[int, Rectangle], NDArray[np.float32]]
"""(first image slice, rectangle) -> standard normals (S, Z, h, w)."""


class GeneSource(Protocol):
    """The part of an atlas that the engine reads."""

    def gene_entries(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.int32]:
        """Counts of the bins of a box in px that are not 0: (3, n) flat index in (z1-z0, h, w), gene, count."""


@dataclass
class StateReader:
    """Puts the state that a unit reads together.

    Attributes:
        halo_bytes_needed: bytes of neighbours' state that units needed so far.
        halo_bytes_read: bytes that were read for them.
    """

    plan: TilePlan
    store: StateStore
    windows: Sequence[Window]
    noise: Noise
    planes: tuple[int, int]  # (S, Z)
    dtype: np.dtype[np.floating]
    halo_bytes_needed: int = 0
    halo_bytes_read: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, unit: Unit) -> NDArray[np.floating]:
        """(S, Z, h+P, w+P) in the state's type."""
        y0, y1, x0, x1 = self.plan.compute_rectangle(unit)
        margin = self.plan.patch // 2
        whole = Rectangle(y0 - margin, y1 + margin, x0 - margin, x1 + margin)
        state = np.full((*self.planes, *whole.shape), OUTSIDE, self.dtype)
        needed = read = 0
        for piece in self.plan.input_pieces(unit):
            part = state[within(piece.plane, whole)]
            if piece.kind == PieceKind.NOISE:
                part[...] = self.noise(self.windows[unit.window].image_start, piece.plane)
            elif piece.kind == PieceKind.STATE and piece[1:3] == unit[1:3]:
                self.store.whole(Tile(*unit[:3])).copy_into(part, piece.plane)
            elif piece.kind == PieceKind.STATE:
                needed += part.nbytes
                for strip in self.store.rims(TileVersion(unit.window, piece.row, piece.column, piece.version)):
                    read += strip.copy_into(part, piece.plane)
        with self._lock:
            self.halo_bytes_needed += needed
            self.halo_bytes_read += read
        return state


@dataclass(frozen=True)
class GeneReader:
    """Reads the counts that a unit sees, in the order of the network's gene axis."""

    plan: TilePlan
    atlas: GeneSource
    panel: Panel
    windows: Sequence[Window]
    gene_slices: int

    def read(self, unit: Unit) -> NDArray[np.int32]:
        """(3, n): flat index of the bin in (Zg, (h+P)/16, (w+P)/16), gene of the network, count."""
        y0, y1, x0, x1 = self.plan.compute_rectangle(unit)
        margin = self.plan.patch // 2
        start = self.windows[unit.window].gene_start
        entries = self.atlas.gene_entries(
            start, start + self.gene_slices, y0 - margin, y1 + margin, x0 - margin, x1 + margin
        )
        return self.panel.select_entries(entries)
