"""Where a run takes place: the region on the patch grid, and the z-windows.

The frame is anchored at (0, 0) of the atlas; patches and tiles lie on grids from there. Its extent is rounded up to
whole patches; beyond it the image is -1 and there are no genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.model.config import ModelConfig
from teramind.ranges import parse_ranges

Border = Literal["exact", "constant"]
BORDERS = ("exact", "constant")


def as_rectangle(roi: str | Sequence[int], height: int, width: int) -> Rectangle:
    """A region of an atlas: ``y0:y1,x0:x1`` in level-0 px, half open, or these four numbers."""
    if not isinstance(roi, str):
        if len(roi) != 4:
            raise InputError(f"the region {tuple(roi)} has {len(roi)} numbers; it takes y0, y1, x0, x1")
        roi = describe(Rectangle(*map(int, roi)))
    [(y0, y1), (x0, x1)] = parse_ranges(roi, {"y": height, "x": width})
    return Rectangle(y0, y1, x0, x1)


def as_slices(slices: str | Sequence[int], count: int) -> tuple[int, int]:
    """Slices of an atlas: ``a:b``, half open, or these two numbers."""
    if not isinstance(slices, str):
        if len(slices) != 2:
            raise InputError(f"the slices {tuple(slices)} are {len(slices)} numbers; they take first and end")
        slices = f"{slices[0]}:{slices[1]}"
    [(first, end)] = parse_ranges(slices, {"z": count})
    return first, end


def describe(rectangle: Rectangle) -> str:
    """As text, in the form that ``as_rectangle`` reads."""
    return f"{rectangle.y0}:{rectangle.y1},{rectangle.x0}:{rectangle.x1}"


@dataclass(frozen=True)
class Frame:
    """The pixels a run works on.

    Attributes:
        extent: the atlas image.
        plane: the extent rounded up to whole patches.
        target: what is generated: the region asked for, grown outward to the patch grid.
        bounds: where the image ends for the network: the plane ("exact" border: the target's context is computed too,
            so that a region equals the crop of the whole) or the target ("constant": the network sees -1 beyond it, as
            the reference implementation's does).
    """

    extent: Rectangle
    plane: Rectangle
    target: Rectangle
    bounds: Rectangle

    @classmethod
    def of(cls, height: int, width: int, patch: int, roi: Rectangle | None = None, border: Border = "exact") -> Frame:
        """The frame of an atlas of ``height`` x ``width`` px, or of the region ``roi`` of it."""
        if border not in BORDERS:
            raise InputError(f"border is {border!r}; it has to be one of {', '.join(BORDERS)}")
        extent = Rectangle(0, height, 0, width)
        wanted = roi or extent
        if intersection(wanted, extent) != wanted or not wanted.area:
            raise InputError(
                f"the region {describe(wanted)} is not inside the atlas, which spans {describe(extent)} px"
            )
        plane, target = snapped_outward(extent, patch), snapped_outward(wanted, patch)
        return cls(extent, plane, target, plane if border == "exact" else target)

    @property
    def output(self) -> Rectangle:
        """The target without what lies beyond the atlas: the pixels that are written."""
        return intersection(self.target, self.extent)


def intersection(first: Rectangle, second: Rectangle) -> Rectangle:
    """What two rectangles share; of zero height or width where they do not meet."""
    y0, x0 = max(first.y0, second.y0), max(first.x0, second.x0)
    return Rectangle(y0, max(y0, min(first.y1, second.y1)), x0, max(x0, min(first.x1, second.x1)))


def snapped_outward(rectangle: Rectangle, grid: int) -> Rectangle:
    """Grown to multiples of ``grid``."""
    y0, y1, x0, x1 = rectangle
    return Rectangle(y0 // grid * grid, -(-y1 // grid) * grid, x0 // grid * grid, -(-x1 // grid) * grid)


@dataclass(frozen=True)
class Window:
    """A z-window: the gene slices it sees and the image slices it makes. Either may reach beyond the atlas."""

    gene_start: int  # first of Zg gene slices, -1 or less where the window begins with empty ones
    image_start: int  # first of the Z image slices


def producible(config: ModelConfig, slices: int) -> tuple[int, int]:
    """First and end of the image slices a model can make of an atlas: all for Zg 1 and 4, else not the outer two."""
    lost = _lost(config)
    if slices <= 2 * lost:
        raise InputError(
            f"the atlas has {slices} slice(s); a model of {config.gene_slices} gene slices cannot make the outer two"
        )
    return lost, slices - lost


def windows(config: ModelConfig, slices: int, wanted: tuple[int, int] | None) -> tuple[list[Window], tuple[int, int]]:
    """The windows that touch the wanted slices, and the slices that come out; windows are anchored at slice 0."""
    first, end = producible(config, slices)
    if wanted:
        start, stop = max(first, wanted[0]), min(end, wanted[1])
        if start >= stop:
            raise InputError(
                f"slices {wanted[0]}:{wanted[1]} cannot be made by a model of {config.gene_slices} gene slices; "
                f"from this atlas it makes {first}:{end}"
            )
        first, end = start, stop
    lost, depth = _lost(config), config.slices
    numbers = range((first - lost) // depth, -(-(end - lost) // depth))
    starts = [number * depth + lost for number in numbers]
    return [Window(start - config.z_kernel // 2, start) for start in starts], (first, end)


def _lost(config: ModelConfig) -> int:
    """Slices that windows of 8 and 16 cannot make at either end: their z-taps reach further than their padding."""
    return 0 if config.gene_slices in (1, 4) else 1
