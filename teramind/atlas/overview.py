"""A picture of an atlas: transcript density of every slice under a grid of pixel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from teramind.atlas.layout import BIN_SIZE, STRIP_BINS, ceil_div
from teramind.atlas.store import Atlas

# A panel's longer side, px: as much as fits beside its neighbours into a picture of this width, within these bounds.
_PICTURE = 3200
_SMALLEST_PANEL, _LARGEST_PANEL = 480, 1600
_MARGIN_LEFT, _MARGIN_TOP, _MARGIN = 76, 58, 20
_HEADER, _FOOTER = 48, 56
_LABEL_SPACE = 60  # px between grid lines, so that their labels do not touch

_BACKGROUND, _TEXT, _FAINT = (18, 18, 22), (235, 235, 235), (160, 160, 165)
_GRID_OPACITY = 0.28
_KNEE = 0.1  # transcripts per bin below which the scale turns linear, so that 0 has a place on it
# Black over violet and orange to pale yellow: lightness grows steadily, so that it reads in grey, too.
_COLOR_STOPS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))

Density = npt.NDArray[np.float64]


def draw_overview(atlas: Atlas) -> Image.Image:
    """Draw the transcripts per bin of every slice on a logarithmic scale, with a grid labelled in px.

    The labels say "um": Pillow's own font has no Greek.

    Large slices are averaged down to at most 1600 px a side; they are read strip by strip.

    Args:
        atlas: Any atlas.

    Returns:
        RGB.
    """
    panels = _Panels.fit(atlas)
    slices = [
        _density(atlas, index, panels.bins_a_pixel) for index in tqdm(range(atlas.slices), unit="slice", disable=None)
    ]
    brightest = max(float(density.max()) for density in slices)
    picture = Image.new("RGB", panels.picture, _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _draw_header(draw, atlas)
    for index, density in enumerate(slices):
        _draw_slice(picture, draw, atlas, panels, index, _log_share(density, brightest))
    _draw_footer(picture, draw, atlas, panels, brightest)
    return picture


def _draw_slice(
    picture: Image.Image, draw: ImageDraw.ImageDraw, atlas: Atlas, panels: _Panels, index: int, shares: Density
) -> None:
    left, top = panels.corner(index)
    pixels = _colors(shares).repeat(panels.pixels_a_bin, axis=0).repeat(panels.pixels_a_bin, axis=1)
    pixels = pixels[: panels.side[0], : panels.side[1]]
    rows, columns = (_grid(length, panels.px_a_pixel) for length in atlas.metadata.shape)
    _blend_grid(pixels, [y / panels.px_a_pixel for y in rows], [x / panels.px_a_pixel for x in columns])
    picture.paste(Image.fromarray(pixels), (left, top))
    _draw_labels(draw, (left, top), panels, (rows, columns))
    transcripts = atlas.metadata.slice_transcripts[index]
    title = f"slice {index}   z {atlas.slice_z[index]:g} um   {transcripts:,} transcripts"
    draw.text((left, top - _MARGIN_TOP + 6), title, fill=_TEXT, font=_font(16))


@dataclass(frozen=True)
class _Panels:
    """Where the slices lie in the picture.

    Attributes:
        bins_a_pixel: Bins averaged into a pixel of the picture, along each side.
        pixels_a_bin: Pixels of the picture a bin is drawn as; one of the two is 1.
        side: Height and width of a panel.
        columns: Panels side by side.
        rows: Panels one above the other.
    """

    bins_a_pixel: int
    pixels_a_bin: int
    side: tuple[int, int]
    columns: int
    rows: int

    @classmethod
    def fit(cls, atlas: Atlas) -> _Panels:
        height, width = atlas.metadata.bin_shape
        columns = min(atlas.slices, max(1, round(math.sqrt(atlas.slices * height / width))))
        longest = min(_LARGEST_PANEL, max(_SMALLEST_PANEL, _PICTURE // columns))
        bins_a_pixel = ceil_div(max(height, width), longest)
        pixels_a_bin = min(BIN_SIZE, max(1, longest // max(height, width)))
        px_a_pixel = BIN_SIZE * bins_a_pixel / pixels_a_bin
        side = math.ceil(atlas.shape[1] / px_a_pixel), math.ceil(atlas.shape[2] / px_a_pixel)
        return cls(bins_a_pixel, pixels_a_bin, side, columns, ceil_div(atlas.slices, columns))

    @property
    def px_a_pixel(self) -> float:
        """Px of the atlas in a pixel of the picture."""
        return BIN_SIZE * self.bins_a_pixel / self.pixels_a_bin

    @property
    def _pitch(self) -> tuple[int, int]:
        return self.side[0] + _MARGIN_TOP + _MARGIN, self.side[1] + _MARGIN_LEFT + _MARGIN

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of the picture."""
        down, across = self._pitch
        return max(across * self.columns + _MARGIN, 640), _HEADER + down * self.rows + _FOOTER

    def corner(self, index: int) -> tuple[int, int]:
        """X and y of a panel's first pixel."""
        row, column = divmod(index, self.columns)
        down, across = self._pitch
        return column * across + _MARGIN_LEFT, _HEADER + row * down + _MARGIN_TOP


def _density(atlas: Atlas, index: int, bins_a_pixel: int) -> Density:
    """Mean transcripts per bin in squares of bins, read in strips that hold whole blocks and whole squares."""
    rows, columns = (ceil_div(side, bins_a_pixel) for side in atlas.metadata.bin_shape)
    density = np.zeros((rows, columns))
    right, step = columns * bins_a_pixel * BIN_SIZE, STRIP_BINS * bins_a_pixel * BIN_SIZE
    for strip, top in enumerate(range(0, atlas.shape[1], step)):
        counts = atlas.count_window(index, index + 1, top, top + step, 0, right)[0]
        squares = counts.reshape(STRIP_BINS, bins_a_pixel, columns, bins_a_pixel).mean(axis=(1, 3))
        part = density[strip * STRIP_BINS : (strip + 1) * STRIP_BINS]
        part[...] = squares[: len(part)]
    return density


def _log_share(density: Density, brightest: float) -> Density:
    """0 where there is nothing, 1 at the brightest, logarithmic between."""
    if brightest == 0:
        return np.zeros_like(density)
    share: Density = np.log1p(density / _KNEE) / math.log1p(brightest / _KNEE)
    return share


def _colors(share: Density) -> npt.NDArray[np.uint8]:
    """RGB of shares from 0 to 1."""
    stops = np.linspace(0, 1, len(_COLOR_STOPS))
    channels = [np.interp(share, stops, [color[channel] for color in _COLOR_STOPS]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _grid(length: int, px_a_pixel: float) -> list[int]:
    """Round coordinates of grid lines over ``length`` px, at least a label apart."""
    least = _LABEL_SPACE * px_a_pixel
    power = 10 ** math.floor(math.log10(least))
    step = next(math.ceil(factor * power) for factor in (1, 2, 5, 10) if factor * power >= least)
    return list(range(0, length, step))


def _blend_grid(pixels: npt.NDArray[np.uint8], rows: Sequence[float], columns: Sequence[float]) -> None:
    for line in (*(pixels[int(row)] for row in rows), *(pixels[:, int(column)] for column in columns)):
        line[...] = np.rint(line * (1 - _GRID_OPACITY) + 255 * _GRID_OPACITY)


def _draw_labels(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], panels: _Panels, grid: tuple[Sequence[int], Sequence[int]]
) -> None:
    left, top = corner
    for y in grid[0]:
        at = top + int(y / panels.px_a_pixel)
        draw.line((left - 5, at, left - 1, at), fill=_FAINT)
        draw.text((left - 8, at), f"{y:,}", fill=_FAINT, font=_font(12), anchor="rm")
    for x in grid[1]:
        at = left + int(x / panels.px_a_pixel)
        draw.line((at, top - 5, at, top - 1), fill=_FAINT)
        draw.text((at, top - 8), f"{x:,}", fill=_FAINT, font=_font(12), anchor="ms" if x else "ls")


def _draw_header(draw: ImageDraw.ImageDraw, atlas: Atlas) -> None:
    height, width = atlas.metadata.shape
    text = f"{atlas.path.name}   {height:,} x {width:,} px   {atlas.pixel_size:g} um/px   {len(atlas.genes)} genes"
    draw.text((_MARGIN_LEFT, 10), text, fill=_TEXT, font=_font(18))
    draw.text((_MARGIN_LEFT, 33), "grid in px: choose a region as y0:y1,x0:x1", fill=_FAINT, font=_font(12))


def _draw_footer(
    picture: Image.Image, draw: ImageDraw.ImageDraw, atlas: Atlas, panels: _Panels, brightest: float
) -> None:
    """The colour scale, and a bar of a round length."""
    left, top, length = _MARGIN_LEFT, picture.height - _FOOTER + 8, 240
    shares = np.tile(np.linspace(0, 1, length), (12, 1))
    picture.paste(Image.fromarray(_colors(shares)), (left, top))
    ticks = [0.0, *(10.0**power for power in range(-1, 5) if 10.0**power < 0.7 * brightest), brightest]
    for value in ticks:
        at = left + round(float(_log_share(np.array([value]), brightest)[0]) * (length - 1))
        draw.line((at, top + 12, at, top + 16), fill=_FAINT)
        draw.text((at, top + 18), f"{value:.3g}", fill=_FAINT, font=_font(12), anchor="ma")
    draw.text((left + length + 12, top - 1), "transcripts per bin of 16 x 16 px", fill=_TEXT, font=_font(13))
    micron = panels.px_a_pixel * atlas.pixel_size  # a pixel of the picture
    bar = _round_down(0.2 * panels.side[1] * micron)
    start = left + length + 270
    if start + bar / micron + 100 < picture.width:
        draw.rectangle((start, top + 4, start + bar / micron, top + 8), fill=_TEXT)
        label = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} um"
        draw.text((start + bar / micron + 10, top - 1), label, fill=_TEXT, font=_font(13))


def _round_down(length: float) -> float:
    """The largest of 1, 2, 5, 10, ... that is not above ``length``."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= length)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
