"""Where results go: states into the store, finished pixels into the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from teramind.engine.frame import Frame, Window, intersection
from teramind.engine.plan import Completion, Rectangle, Tile, TilePlan, Unit
from teramind.engine.store import StateStore
from teramind.output.ome_zarr import OutputWriter


class Sink:
    """Puts states into the store and finished pixels into the output."""

    def __init__(self, plan: TilePlan, store: StateStore, writer: OutputWriter, place: Placement) -> None:
        self.plan, self.store, self.writer, self.place = plan, store, writer, place
        self.progress: Callable[[int], None] = lambda _voxels: None

    def put(self, unit: Unit, values: NDArray[Any]) -> None:
        """See ``pipeline.Sink``."""
        rectangle = self.plan.compute_rectangle(unit)
        tile = Tile(*unit[:3])
        if unit.step == self.plan.steps - 1:
            self.place.write(self.writer, unit.window, rectangle, values)
            self.store.drop(tile)
        else:
            self.store.put(tile, unit.step + 1, rectangle, values)
        self.progress(values.size)

    def completed(self, completion: Completion) -> None:
        """See ``pipeline.Sink``."""
        for version in completion.freed:
            self.store.free(version)


@dataclass(frozen=True)
class Placement:
    """Where finished pixels go: from the plane of a window to the slices and pixels of the output."""

    frame: Frame
    windows: Sequence[Window]
    slices: tuple[int, int]  # first and end of the atlas slices that are written

    @property
    def voxels(self) -> int:
        """Voxels of one stain that are written."""
        return self.frame.output.area * (self.slices[1] - self.slices[0])

    def write(self, writer: OutputWriter, window: int, rectangle: Rectangle, pixels: NDArray[Any]) -> None:
        """Write (S, Z, h, w) pixels; what lies beyond the atlas or the slices asked for is left out."""
        y0, y1, x0, x1 = visible = intersection(rectangle, self.frame.output)
        z0, z1, depth = self._slices(window, pixels.shape[1])
        if not visible.area or not depth:
            return
        rows, columns = slice(y0 - rectangle.y0, y1 - rectangle.y0), slice(x0 - rectangle.x0, x1 - rectangle.x0)
        output = self.frame.output
        writer.write_block(z0, y0 - output.y0, x0 - output.x0, pixels[:, z1 : z1 + depth, rows, columns])

    def skip(self, writer: OutputWriter, window: int, rectangle: Rectangle, depth: int) -> None:
        """Leave a tile of a window, of ``depth`` slices, empty."""
        visible = intersection(rectangle, self.frame.output)
        z0, _, slices = self._slices(window, depth)
        if visible.area and slices:
            output = self.frame.output
            writer.skip(z0, visible.y0 - output.y0, visible.x0 - output.x0, (slices, *visible.shape))

    def visible_voxels(self, window: int, rectangle: Rectangle, depth: int) -> int:
        """Voxels of one stain that a tile of a window has in the output."""
        return intersection(rectangle, self.frame.output).area * self._slices(window, depth)[2]

    def _slices(self, window: int, depth: int) -> tuple[int, int, int]:
        """First output slice, first slice of the window, and how many, of what both have."""
        start = self.windows[window].image_start
        first, end = max(start, self.slices[0]), min(start + depth, self.slices[1])
        return first - self.slices[0], first - start, max(0, end - first)
