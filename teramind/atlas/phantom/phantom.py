"""The phantom brain: windows of images, transcripts, cells and regions, each a function of seed and position."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teramind.atlas.layout import BIN_SIZE, STRIP_BINS, ceil_div
from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells, cells_in
from teramind.atlas.phantom.draws import LARGEST_SEED
from teramind.atlas.phantom.genes import GENES
from teramind.atlas.phantom.interaction import Interaction, find_interaction, interacting_cells, mark_bins
from teramind.atlas.phantom.morphology import Bodies, bodies_of
from teramind.atlas.phantom.regions import NAMES
from teramind.atlas.phantom.render import render_tile
from teramind.atlas.phantom.tile import Tile
from teramind.atlas.phantom.transcripts import background_transcripts, cell_transcripts
from teramind.checks import integer_between
from teramind.errors import InputError

STAINS = ("DAPI", "PolyT")

# Everything is made in squares of this many px, whole, and then cut: so a window is the crop of any larger one to the
# last bit, whatever the processor does with the ends of its vectors. Smaller ones waste more on cells that are shared.
TILE = 1024
# Tiles whose cells are kept: a row of windows comes back to the same ones.
KEPT_TILES = 4
# How far from its centre anything of a cell may lie, um: in the plane and in depth.
REACH, DEPTH_REACH = 34.0, 22.0
# Thickness of a section, um, where the slices lie that far apart.
SECTION = 10.0
SMALLEST_PIXEL, LARGEST_PIXEL = 0.05, 1.0
MAX_SIDE, MAX_SLICES, LARGEST_STEP = 2**20, 2**12, 500.0

CELL_FIELDS = np.dtype(
    [
        ("id", "<i8"),
        ("type", "u1"),
        ("region", "u1"),
        ("x", "<f4"),
        ("y", "<f4"),
        ("soma", "<f4"),
        ("nucleus_x", "<f4"),
        ("nucleus_y", "<f4"),
        ("nucleus_major", "<f4"),
        ("nucleus_minor", "<f4"),
        ("angle", "<f4"),
    ]
)
"""A row of ``Phantom.cells``."""


@dataclass(frozen=True)
class _Content:
    """The cells that may reach into a tile, and their bodies in its plane."""

    tile: Tile
    cells: Cells
    bodies: Bodies


class Phantom:
    """A procedural brain, without end in the plane; ``size`` and ``slices`` say which part is asked for.

    Every window is computed when it is asked for; nothing is stored but the cells of a few tiles. Not thread-safe.

    Args:
        seed: of anatomy, cells and transcripts, 0 to 2^56 - 1.
        size: height and width, px, or one number for both.
        slices: how many.
        pixel_size: um.
        z_step: distance of the slices, um.
        morphology_seed: of all that the genes do not decide about the look; ``seed`` if None.

    Attributes:
        genes: names.
        stains: names.
        region_names: label -> name.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        size: int | tuple[int, int] = 2048,
        slices: int = 8,
        pixel_size: float = 0.4,
        z_step: float = 10.0,
        morphology_seed: int | None = None,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        self.seed = integer_between("the seed", seed, 0, LARGEST_SEED)
        self.morphology_seed = (
            self.seed
            if morphology_seed is None
            else integer_between("the morphology seed", morphology_seed, 0, LARGEST_SEED)
        )
        self.shape = (
            integer_between("the number of slices", slices, 1, MAX_SLICES),
            integer_between("the height in px", height, 1, MAX_SIDE),
            integer_between("the width in px", width, 1, MAX_SIDE),
        )
        if not SMALLEST_PIXEL <= pixel_size <= LARGEST_PIXEL:
            raise InputError(f"a pixel of {pixel_size} um is out of range; give {SMALLEST_PIXEL} to {LARGEST_PIXEL} um")
        if not 0 < z_step <= LARGEST_STEP:
            raise InputError(f"slices {z_step} um apart are out of range; give up to {LARGEST_STEP:g} um")
        self.pixel_size, self.z_step = float(pixel_size), float(z_step)
        self.genes, self.stains, self.region_names = list(GENES), list(STAINS), dict(NAMES)
        self._anatomy = Anatomy(self.seed)
        self._contents: OrderedDict[tuple[int, int, int], _Content] = OrderedDict()

    @property
    def slice_z(self) -> list[float]:
        """Position of every slice, um."""
        return [index * self.z_step for index in range(self.shape[0])]

    def image_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]:
        """Pixels of both stains; 0 outside the phantom's size.

        Args:
            z0: first slice.
            z1: slice after the last one.
            y0: first row, px.
            y1: row after the last one.
            x0: first column, px.
            x1: column after the last one.

        Returns:
            uint8 (stains, z1 - z0, y1 - y0, x1 - x0).

        Raises:
            InputError: an end lies before its start.
        """
        image = np.zeros((len(STAINS), *_sides((z0, z1), (y0, y1), (x0, x1))), dtype=np.uint8)
        for z in range(z0, z1):
            for row, column in self._tile_places(z, y0, y1, x0, x1):
                window, part = _overlap((y0, y1, x0, x1), (row, column), self.shape[1:], 1)
                image[:, z - z0, *window] = self._tile_image(z, row, column)[:, *part]
        return image

    def transcripts(
        self, z: int, y0: int, y1: int, x0: int, x1: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.intp]]:
        """The transcripts of a window of a slice.

        Args:
            z: the slice.
            y0: first row, px.
            y1: row after the last one.
            x0: first column, px.
            x1: column after the last one.

        Returns:
            x and y, px of the frame, and the index of the gene; (n,) each. None lie outside the phantom's size.
        """
        parts = [self._tile_transcripts(z, row, column) for row, column in self._tile_places(z, y0, y1, x0, x1)]
        if not parts:
            return np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.intp)
        x, y, gene = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        inside = self._inside(x, y, y0, y1, x0, x1)
        return x[inside], y[inside], gene[inside]

    def cells(self, z: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.void]:
        """The cells with their centre in a window of a slice, whose nucleus or body the slice cuts.

        Args are those of ``transcripts``.

        Returns:
            (n,) of ``CELL_FIELDS``; lengths in px, places in px of the frame, the angle in rad from x towards y. The
            nucleus' semi-axes are those of the cut; 0 where the plane misses the nucleus.
        """
        parts = [self._tile_cells(z, row, column) for row, column in self._tile_places(z, y0, y1, x0, x1)]
        if not parts:
            return np.empty(0, CELL_FIELDS)
        rows = np.concatenate(parts)
        kept: npt.NDArray[np.void] = rows[self._inside(rows["x"], rows["y"], y0, y1, x0, x1)]
        return kept

    def region_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint16]:
        """Region label at the centre of every bin of 16 x 16 px; 0 is no region, and outside the phantom's size.

        Args are those of ``image_window``; those of the plane are multiples of 16.

        Returns:
            uint16 (z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16).

        Raises:
            InputError: a bound is no multiple of 16, or an end lies before its start.
        """
        _check_on_bins(y0, y1, x0, x1)
        slices, height, width = _sides((z0, z1), (y0, y1), (x0, x1))
        labels = np.zeros((slices, height // BIN_SIZE, width // BIN_SIZE), dtype=np.uint16)
        rows = np.arange(y0 // BIN_SIZE, y1 // BIN_SIZE)
        columns = np.arange(x0 // BIN_SIZE, x1 // BIN_SIZE)
        side = BIN_SIZE * self.pixel_size
        x, y = (columns[None] + 0.5) * side, (rows[:, None] + 0.5) * side
        for z in range(max(z0, 0), min(z1, self.shape[0])):
            for start in range(0, len(rows), STRIP_BINS):  # fields of a whole slice would take many times its labels
                part = slice(start, start + STRIP_BINS)
                labels[z - z0, part] = self._anatomy.region(x, y[part], z * self.z_step)
        outside_y = (rows < 0) | (rows * BIN_SIZE >= self.shape[1])
        outside_x = (columns < 0) | (columns * BIN_SIZE >= self.shape[2])
        labels[:, outside_y] = 0
        labels[:, :, outside_x] = 0
        return labels

    def interaction_window(
        self, pair: tuple[str, str], z0: int, z1: int, y0: int, y1: int, x0: int, x1: int
    ) -> npt.NDArray[np.uint8]:
        """Where two genes interact, at the resolution of bins: the truth for maps of gene-gene attention.

        Args:
            pair: names of the genes; see ``teramind.atlas.phantom.interaction``.
            z0: as ``region_window``, so are the others.
            z1: see there.
            y0: see there.
            y1: see there.
            x0: see there.
            x1: see there.

        Returns:
            uint8 (z1 - z0, (y1 - y0) / 16, (x1 - x0) / 16): 1 in bins of cells that take part, else 0.

        Raises:
            InputError: the genes do not interact; or as ``region_window``.
        """
        interaction = find_interaction(pair)
        _check_on_bins(y0, y1, x0, x1)
        slices, height, width = _sides((z0, z1), (y0, y1), (x0, x1))
        marked = np.zeros((slices, height // BIN_SIZE, width // BIN_SIZE), dtype=np.uint8)
        for z in range(z0, z1):
            for row, column in self._tile_places(z, y0, y1, x0, x1):
                window, part = _overlap((y0, y1, x0, x1), (row, column), self.shape[1:], BIN_SIZE)
                marked[z - z0][window] = self._tile_interaction(z, row, column, interaction)[part]
        return marked

    def _tile_places(self, z: int, y0: int, y1: int, x0: int, x1: int) -> list[tuple[int, int]]:
        """The tiles that a window touches, row by row."""
        _sides((y0, y1), (x0, x1))
        slices, height, width = self.shape
        if not 0 <= z < slices:
            return []
        rows = range(max(y0, 0) // TILE, ceil_div(min(y1, height), TILE))
        columns = range(max(x0, 0) // TILE, ceil_div(min(x1, width), TILE))
        return [(row, column) for row in rows for column in columns]

    def _inside(
        self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], y0: int, y1: int, x0: int, x1: int
    ) -> npt.NDArray[np.bool_]:
        _, height, width = self.shape
        inside: npt.NDArray[np.bool_] = (
            (y >= max(y0, 0)) & (y < min(y1, height)) & (x >= max(x0, 0)) & (x < min(x1, width))
        )
        return inside

    def _content(self, z: int, row: int, column: int) -> _Content:
        place = (z, row, column)
        if place not in self._contents:
            tile = Tile(z, z * self.z_step, row * TILE, column * TILE, TILE, self.pixel_size)
            heights = tile.z - DEPTH_REACH, tile.z + DEPTH_REACH
            rows, columns = ((low - REACH, high + REACH) for low, high in (tile.y_range, tile.x_range))
            cells = cells_in(self._anatomy, self.seed, (heights, rows, columns))
            self._contents[place] = _Content(tile, cells, bodies_of(cells, self.morphology_seed, tile.z))
            if len(self._contents) > KEPT_TILES:
                self._contents.popitem(last=False)
        return self._contents[place]

    def _section(self, z: int) -> tuple[float, float]:
        """Lower and upper face of a slice's section, um: sections do not overlap."""
        half = min(SECTION, self.z_step) / 2
        return z * self.z_step - half, z * self.z_step + half

    def _tile_image(self, z: int, row: int, column: int) -> npt.NDArray[np.uint8]:
        content = self._content(z, row, column)
        return render_tile(content.tile, self._anatomy, content.cells, content.bodies, self.morphology_seed)

    def _tile_transcripts(
        self, z: int, row: int, column: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.intp]]:
        content = self._content(z, row, column)
        found = cell_transcripts(content.cells, self.seed, *self._section(z))
        loose = background_transcripts(content.tile, self._anatomy, self.seed)
        x, y, gene = (np.concatenate(pair) for pair in zip(found, loose, strict=True))
        x, y = (x / self.pixel_size).astype(np.float32), (y / self.pixel_size).astype(np.float32)
        inside = content.tile.holds(x, y)
        return x[inside], y[inside], gene[inside]

    def _tile_interaction(self, z: int, row: int, column: int, interaction: Interaction) -> npt.NDArray[np.bool_]:
        content = self._content(z, row, column)
        low, high = self._section(z)
        in_section = (content.cells.z >= low) & (content.cells.z < high)
        taking_part = interacting_cells(content.cells, interaction)
        return mark_bins(content.cells.take(taking_part & in_section), content.tile)

    def _tile_cells(self, z: int, row: int, column: int) -> npt.NDArray[np.void]:
        content = self._content(z, row, column)
        cells, bodies, scale = content.cells, content.bodies, 1 / self.pixel_size
        rows = np.empty(len(cells), dtype=CELL_FIELDS)
        rows["id"], rows["type"], rows["region"] = cells.id, cells.type, cells.region
        rows["x"], rows["y"], rows["soma"] = cells.x * scale, cells.y * scale, bodies.soma * scale
        rows["nucleus_x"], rows["nucleus_y"] = bodies.x * scale, bodies.y * scale
        rows["nucleus_major"], rows["nucleus_minor"] = bodies.major * scale, bodies.minor * scale
        rows["angle"] = bodies.angle
        cut: npt.NDArray[np.bool_] = (bodies.major > 0) | (bodies.soma > 0)
        kept: npt.NDArray[np.void] = rows[content.tile.holds(rows["x"], rows["y"]) & cut]
        return kept


def _overlap(
    window: tuple[int, int, int, int], tile: tuple[int, int], shape: tuple[int, int], unit: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What a window and a tile share within the phantom's size, as slices of the window and of the tile, in units."""
    in_window, in_tile = [], []
    for (start, end), number, side in zip((window[:2], window[2:]), tile, shape, strict=True):
        low = max(start, number * TILE, 0) // unit
        high = ceil_div(min(end, (number + 1) * TILE, side), unit)
        in_window.append(slice(low - start // unit, high - start // unit))
        in_tile.append(slice(low - number * TILE // unit, high - number * TILE // unit))
    return (in_window[0], in_window[1]), (in_tile[0], in_tile[1])


def _check_on_bins(y0: int, y1: int, x0: int, x1: int) -> None:
    if any(bound % BIN_SIZE for bound in (y0, y1, x0, x1)):
        raise InputError(f"the window {y0}:{y1},{x0}:{x1} px does not lie on bins of {BIN_SIZE} px")


def _sides(*ranges: tuple[int, int]) -> tuple[int, ...]:
    for start, end in ranges:
        if end < start:
            raise InputError(f"a window cannot run from {start} to {end}: its end lies before its start")
    return tuple(end - start for start, end in ranges)
