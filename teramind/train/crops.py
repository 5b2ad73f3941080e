"""Random crops of atlases, each a function of the seed and its number.

Any process can so make any crop alone: what a run sees does not depend on how many processes and threads load it, nor
on where it was interrupted.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from teramind.engine.frame import Window, windows
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.model.config import BIN_SIZE, ModelConfig
from teramind.train.timesteps import Quantile, uniform

CONTEXTS = ("crop", "atlas")
BEYOND = {"crop": 0.0, "atlas": -1.0}
"""What the network sees where there is no image: 0 as in the reference's training, -1 as when it generates."""


class Stream(enum.IntEnum):
    """What random numbers are for; each has its own under one seed."""

    TRAINING = 0
    HELD_OUT = 1
    DROPOUT = 2


def generator(seed: int, stream: Stream, number: int) -> np.random.Generator:
    """The random numbers that belong to a crop or a step."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, number, 0]))


class Volume(Protocol):
    """What crops are read from; an ``Atlas`` is one."""

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint16]:
        """(G, z1-z0, h/16, w/16) counts of a box in px, zero beyond the atlas."""

    def image_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """(S, z1-z0, h, w) pixels of a box, zero beyond the atlas."""


@dataclass(frozen=True)
class Area:
    """A part of an atlas that crops are taken from: whole crops inside ``place``, in any of the windows."""

    volume: Volume
    place: Rectangle
    windows: Sequence[Window]

    def positions(self, side: int) -> tuple[int, int]:
        """Rows and columns of the bin grid at which a crop may begin."""
        height, width = self.place.shape
        return max(0, (height - side) // BIN_SIZE + 1), max(0, (width - side) // BIN_SIZE + 1)

    def count(self, side: int) -> int:
        """How many different crops there are, turned and flipped ones not counted."""
        rows, columns = self.positions(side)
        return rows * columns * len(self.windows)


class Crop(NamedTuple):
    """A region of encoder patches in a crop, and how it is turned."""

    area: int
    window: Window
    y: int  # px, of the crop
    x: int
    row: int  # of the region, in patches from half a patch before the crop
    column: int
    turns: int  # quarter turns
    flip: bool


class Example(NamedTuple):
    """One region with its noise; or, stacked, a batch of them."""

    image: NDArray[np.uint8]  # (S, Z, h, w)
    inside: NDArray[np.bool_]  # (1, 1, h, w): within the crop
    genes: NDArray[np.uint16]  # (G, Zg, h/16, w/16)
    t: NDArray[np.int64]  # ()
    noise: NDArray[np.float32]  # (S, Z, h, w)


class Crops:
    """Crops of 4P x 4P px (2P for P = 128) with quarter turns and flips, every place of every area equally likely.

    Of a crop, padded by half a patch on each side, only a region of ``region`` x ``region`` encoder patches is looked
    at, 2 x 2 in the reference; so only that is read, and noise drawn for it. Beyond the crop there is nothing to see.

    With the context of the atlas, a crop is as large as what the boundary-aware path predicts of a region, and around
    it the region shows the atlas: as when the network generates, where only the rim of an atlas has nothing beyond.

    Args:
        areas: where crops may lie.
        config: of the network.
        seed: of places, turns, timesteps and noise.
        stream: which random numbers under that seed.
        region: encoder patches on a side.
        context: "crop" or "atlas", what is seen beyond a crop.
        timesteps: how often which timestep is drawn.

    Raises:
        InputError: where no area can hold a crop, or the region does not fit into one.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        config: ModelConfig,
        seed: int,
        stream: Stream,
        region: int = 2,
        context: str = "crop",
        timesteps: Quantile = uniform,
    ) -> None:
        self.areas, self.config, self.seed, self.stream, self.region = list(areas), config, seed, stream, region
        self.context, self.timesteps = context, timesteps
        self.patches = crop_patches(config) if context == "crop" else region - 1
        self.side = self.patches * config.patch_size
        if not 2 <= region <= self.patches + 1:
            raise InputError(
                f"a region of {region} encoder patches was asked for; a crop of {self.side} px allows "
                f"2 to {self.patches + 1}"
            )
        counts = [area.count(self.side) for area in self.areas]
        for area, count in zip(self.areas, counts, strict=True):
            if not count:
                height, width = area.place.shape
                raise InputError(
                    f"the part of an atlas to train or test on is {height} x {width} px, and a crop {self.side} x "
                    f"{self.side}: use a smaller patch_size, a larger atlas or another share of it"
                )
        self._edges = np.cumsum(counts)

    def draw(self, number: int) -> tuple[Crop, np.random.Generator]:
        """Place and turn of a crop, and the generator that its timestep and noise come from."""
        random = generator(self.seed, self.stream, number)
        place = int(random.integers(self._edges[-1]))
        area = int(np.searchsorted(self._edges, place, side="right"))
        place -= int(self._edges[area - 1]) if area else 0
        rows, columns = self.areas[area].positions(self.side)
        window, place = divmod(place, rows * columns)
        y, x = divmod(place, columns)
        row, column = random.integers(self.patches + 2 - self.region, size=2).tolist()
        turns, flip = random.integers([4, 2]).tolist()
        top, left = self.areas[area].place.y0, self.areas[area].place.x0
        crop = Crop(
            area, self.areas[area].windows[window], top + y * BIN_SIZE, left + x * BIN_SIZE, row, column, turns,
            bool(flip),
        )  # fmt: skip
        return crop, random

    def example(self, number: int, stratum: int, strata: int) -> Example:
        """Crop ``number``, with a timestep from one of ``strata`` equally likely parts of 0..999."""
        crop, random = self.draw(number)
        t = self.timesteps((stratum + random.random()) / strata)
        image, inside, genes = self.read(crop)
        noise = random.standard_normal(image.shape, np.float32)
        return Example(image, inside, genes, np.array(t), noise)

    def read(self, crop: Crop) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint16]]:
        """Image, inside and genes of a crop's region, as in ``Example``; zero beyond the context."""
        config, area = self.config, self.areas[crop.area]
        length = self.region * config.patch_size
        margin = config.patch_size // 2
        if self.context == "crop":
            context = Rectangle(crop.y, crop.y + self.side, crop.x, crop.x + self.side)
        else:
            context = area.place
        y, x = crop.y + crop.row * config.patch_size - margin, crop.x + crop.column * config.patch_size - margin
        rows = slice(max(y, context.y0), min(y + length, context.y1))
        columns = slice(max(x, context.x0), min(x + length, context.x1))
        place = _moved(rows, -y), _moved(columns, -x)
        image = np.zeros((config.stains, config.slices, length, length), np.uint8)
        inside = np.zeros((1, 1, length, length), np.bool_)
        genes = np.zeros((config.genes, config.gene_slices, length // BIN_SIZE, length // BIN_SIZE), np.uint16)
        z = crop.window.image_start
        image[:, :, *place] = area.volume.image_window(
            z, z + config.slices, rows.start, rows.stop, columns.start, columns.stop
        )
        inside[:, :, *place] = True
        z = crop.window.gene_start
        bins = _in_bins(place[0]), _in_bins(place[1])
        top, left = y + bins[0].start * BIN_SIZE, x + bins[1].start * BIN_SIZE
        bottom, right = y + bins[0].stop * BIN_SIZE, x + bins[1].stop * BIN_SIZE
        genes[:, :, *bins] = area.volume.gene_window(z, z + config.gene_slices, top, bottom, left, right)
        return turned(image, crop), turned(inside, crop), turned(genes, crop)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _in_bins(pixels: slice) -> slice:
    """The last bin of an atlas may be partial."""
    return slice(pixels.start // BIN_SIZE, -(-pixels.stop // BIN_SIZE))


def turned(values: NDArray[Any], crop: Crop) -> NDArray[Any]:
    """(..., h, w) after the crop's quarter turns, and then its flip from left to right."""
    values = np.rot90(values, crop.turns, axes=(-2, -1))
    return values[..., ::-1] if crop.flip else values


def crop_patches(config: ModelConfig) -> int:
    """Patches on a side of a crop, as in the reference: 512 px were the tiles it cut crops from."""
    return 2 if config.patch_size == 128 else 4


def stack(examples: Sequence[Example]) -> Example:
    """A batch: every array with a first axis of that many."""
    return Example(*(np.stack(parts) for parts in zip(*examples, strict=True)))


def areas_of(
    volume: Volume, shape: tuple[int, int, int], config: ModelConfig, held_out: float = 0.0
) -> tuple[Area, Area | None]:
    """The areas of an atlas to train on and to test on.

    Args:
        volume: to read from.
        shape: slices, height and width of the atlas.
        config: of the network.
        held_out: the share of the plane to test on, in all slices: the far end of its longer side.

    Raises:
        InputError: where the atlas has too few slices for the network.
    """
    slices, height, width = shape
    everywhere, _ = windows(config, slices, None)
    plane = Rectangle(0, height, 0, width)
    if not held_out:
        return Area(volume, plane, everywhere), None
    border = round(max(height, width) * (1 - held_out)) // BIN_SIZE * BIN_SIZE
    if height > width:
        parts = Rectangle(0, border, 0, width), Rectangle(border, height, 0, width)
    else:
        parts = Rectangle(0, height, 0, border), Rectangle(0, height, border, width)
    return Area(volume, parts[0], everywhere), Area(volume, parts[1], everywhere)
