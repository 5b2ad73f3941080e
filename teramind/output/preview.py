"""Pictures of images: composited stains with a scale bar, and panels side by side."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image, ImageDraw, ImageFont

from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.ngff import image_channels, image_pixel_size, open_levels

_GOLDEN_RATIO = 0.618034  # multiples of it, modulo one, keep apart however many there are


def composite(
    image: npt.NDArray[np.uint8], colors: Sequence[str], windows: Sequence[tuple[float, float]] | None = None
) -> npt.NDArray[np.uint8]:
    """Return the sum of the channels, each in its colour.

    Args:
        image: (C, h, w) uint8.
        colors: six hexadecimal digits for each channel.
        windows: the values shown as black and in full colour for each channel, 0 and 255 by default.

    Returns:
        (h, w, 3) uint8.
    """
    windows = windows or [(0, 255)] * len(colors)
    total = np.zeros((*image.shape[1:], 3), dtype=np.float32)
    for channel, color, (start, end) in zip(image, colors, windows, strict=True):
        rgb = np.array(list(bytes.fromhex(color)), dtype=np.float32)
        total += ((channel.astype(np.float32) - start) / (end - start)).clip(0, 1)[..., None] * rgb
    return (total.clip(0, 255) + 0.5).astype(np.uint8)


def color_labels(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Return a map of labels in colours that depend on the label alone; 0 is black.

    Args:
        labels: (h, w), integers from 0.

    Returns:
        (h, w, 3) uint8.
    """
    values, places = np.unique(labels, return_inverse=True)
    palette = [
        colorsys.hsv_to_rgb(value * _GOLDEN_RATIO % 1, 0.65, 1 if value % 2 else 0.75) if value else (0, 0, 0)
        for value in values.tolist()
    ]
    colors = (np.array(palette, dtype=np.float32) * 255).round().astype(np.uint8)
    colored: npt.NDArray[np.uint8] = colors[places.reshape(labels.shape)]
    return colored


def preview(
    image: zarr.Group | str | Path, *, z: int | None = None, max_side: int = 1024, scale_bar: bool = True
) -> Image.Image:
    """Return a picture of one slice of a multiscale image, in its channels' colours and contrast windows.

    It is made from the coarsest level that is fine enough, and reduced by whole-pixel averages.

    Args:
        image: the image's group or folder, OME-Zarr 0.4 or 0.5.
        z: the slice, by default the middle one.
        max_side: the picture's longer side in px at most.
        scale_bar: draw one.

    Raises:
        InputError: if this is not an OME-Zarr image, or has no such slice.
    """
    group = image if isinstance(image, zarr.Group) else zarr.open_group(Path(image), mode="r")
    levels = open_levels(group)
    slices = levels[0].shape[1]
    z = slices // 2 if z is None else z
    if not 0 <= z < slices:
        raise InputError(f"slice {z} is not in the image, which has slices 0 to {slices - 1}")
    level = max((n for n, array in enumerate(levels) if max(array.shape[2:]) >= max_side), default=0)
    channels = image_channels(group)
    pixels = np.asarray(levels[level][:, z])
    windows = [(channel.window_start, channel.window_end) for channel in channels]
    picture = Image.fromarray(composite(pixels, [channel.color for channel in channels], windows))
    picture, factor = _reduced(picture, max_side)
    if scale_bar:
        draw_scale_bar(picture, image_pixel_size(group)[2] * 2**level * factor)
    return picture


def save_preview(
    path: str | Path, image: zarr.Group | str | Path, *, z: int | None = None, max_side: int = 1024
) -> None:
    """Write `preview` as a PNG file, replacing an older one."""
    save_picture(path, preview(image, z=z, max_side=max_side))


def side_by_side(
    panels: Mapping[str, npt.NDArray[np.uint8]], *, pixel_size_um: float, max_side: int = 1024
) -> Image.Image:
    """Return panels beside each other under their titles, with one scale bar in the last.

    Args:
        panels: title -> (h, w, 3) uint8, or (h, w) for grey; all of one size, for instance `composite` of the truth and
            of the result, and `color_labels` of their cells.
        pixel_size_um: the width of a pixel in micrometres.
        max_side: each panel's longer side in px at most.

    Raises:
        InputError: if the panels differ in size.
    """
    if len({panel.shape[:2] for panel in panels.values()}) != 1:
        sizes = ", ".join(f"{title!r} {panel.shape[:2]}" for title, panel in panels.items())
        raise InputError(f"panels must be of one size to stand beside each other, but these are: {sizes or 'none'}")
    pictures = []
    for panel in panels.values():
        picture, factor = _reduced(Image.fromarray(panel).convert("RGB"), max_side)
        pictures.append(picture)
    draw_scale_bar(pictures[-1], pixel_size_um * factor)
    width, height = pictures[0].size
    gap, font = max(2, width // 100), _font(width)
    head = round(1.6 * font.size)
    sheet = Image.new("RGB", (len(pictures) * (width + gap) - gap, head + height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(zip(panels, pictures, strict=True)):
        left = number * (width + gap)
        sheet.paste(picture, (left, head))
        draw.text((left + width / 2, head / 2), title, fill="black", font=font, anchor="mm")
    return sheet


def draw_scale_bar(picture: Image.Image, pixel_size_um: float) -> None:
    """Draw a bar of a round length with its label into the lower right corner, in place.

    Args:
        picture: RGB.
        pixel_size_um: the width of one of its pixels in micrometres.
    """
    width, height = picture.size
    length = scale_bar_length(width * pixel_size_um)
    bar = length / pixel_size_um
    font, margin = _font(width), max(2, width // 40)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} {_micrometres(font)}"
    thickness = max(2, width // 160)
    draw = ImageDraw.Draw(picture)
    right, bottom = width - margin, height - margin
    for outline, color in ((max(1, thickness // 3), "black"), (0, "white")):  # readable on any tissue
        corners = right - bar - outline, bottom - thickness - outline, right + outline, bottom + outline
        draw.rectangle(corners, fill=color)
    middle = right - bar / 2, bottom - thickness - max(2, thickness // 2)
    draw.text(
        middle, label, fill="white", font=font, anchor="mb", stroke_width=max(1, thickness // 3), stroke_fill="black"
    )


def scale_bar_length(width_um: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most a quarter of the picture's width."""
    power = 10.0 ** math.floor(math.log10(width_um / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Write a picture as a PNG file, replacing an older one, whole or not at all."""
    with appears_whole(path) as partial:
        picture.save(partial, format="PNG", optimize=True)


def _reduced(picture: Image.Image, max_side: int) -> tuple[Image.Image, int]:
    """Return the picture averaged over the least n x n pixels that make it fit, and n."""
    factor = -(-max(picture.size) // max_side)
    return picture.reduce(factor), factor


def _font(width: int) -> ImageFont.FreeTypeFont:
    """Return a font for a picture of this width: DejaVu where the system has it, else the one inside Pillow."""
    size = max(11, width // 36)
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("this build of Pillow has no FreeType; install Pillow's own wheel to draw labels")
    return font


def _micrometres(font: ImageFont.FreeTypeFont) -> str:
    """Return the unit's symbol as far as the font has it: Pillow's own has ASCII only."""
    return "um" if bytes(font.getmask("µ")) == bytes(font.getmask("\uffff")) else "µm"
