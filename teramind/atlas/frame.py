"""The frame of an atlas: its pixel grid, its extent, and how each section lies in it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from teramind.atlas.affine import Affine
from teramind.atlas.section import Section
from teramind.errors import InputError

# Rounding of the maps' products must not add a row of pixels to the extent.
EXTENT_TOLERANCE = 1e-3


class Extent(NamedTuple):
    """A rectangle of the atlas, in atlas microns, half open."""

    y0: float
    y1: float
    x0: float
    x1: float


@dataclass(frozen=True)
class Frame:
    """Where the sections lie on the atlas's pixel grid.

    Attributes:
        shape: (H, W) px of every slice.
        pixel_size: um.
        to_pixels: for each section, from its own microns to atlas px.
    """

    shape: tuple[int, int]
    pixel_size: float
    to_pixels: tuple[Affine, ...]


def plan_frame(
    sections: Sequence[Section],
    affines: Sequence[Affine] | None,
    pixel_size: float | None,
    extent: Extent | None,
) -> Frame:
    """Lay out the sections.

    With affines, a point goes from the microns of its section through the section's affine to *atlas microns*, and
    from there, divided by the pixel size, to px. Without, the atlas is registered to the images of the first section:
    its atlas microns are that section's image px times their size, and every section's microns are taken as those of
    the first (the stage of one instrument). A transcript is mapped by the product of these maps, and an image by the
    same product after the inverse of its own microns-to-pixels map, so that both stay together whatever the affine.

    The extent, given or the union of the images' corners, is snapped outward to whole px; its upper left corner is px
    (0, 0).

    Args:
        sections: in the order of the slices.
        affines: one a section, microns to atlas microns; None for no registration.
        pixel_size: um; None for that of the first section's images (their very grid, where there are no affines).
        extent: what of the atlas plane is wanted; None for all that the images cover (if there are images).

    Raises:
        InputError: if the affines are not one a section, the pixel size is not positive, or the extent is empty.
    """
    if affines is not None and len(affines) != len(sections):
        raise InputError(
            f"{len(affines)} affines were given for {len(sections)} folders; give one a folder, in their order"
        )
    own_size = sections[0].microns_to_image.pixel_size()
    size = own_size if pixel_size is None else pixel_size
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"the pixel size {size:g} um is not a positive number; give microns, for example 0.108")
    if affines is None:
        maps = [Affine.scale(own_size / size) @ sections[0].microns_to_image] * len(sections)
    else:
        maps = [Affine.scale(1 / size) @ affine for affine in affines]
    if extent is None:
        y0, y1, x0, x1 = _union(sections, maps)
    else:
        y0, y1, x0, x1 = (value / size for value in extent)
    if not (y0 < y1 and x0 < x1):
        raise InputError(
            f"the extent {y0:g}:{y1:g},{x0:g}:{x1:g} px is empty; give --extent Y0:Y1,X0:X1 in microns, "
            "Y0 < Y1 and X0 < X1"
        )
    top, left = math.floor(y0 + EXTENT_TOLERANCE), math.floor(x0 + EXTENT_TOLERANCE)
    bottom, right = math.ceil(y1 - EXTENT_TOLERANCE), math.ceil(x1 - EXTENT_TOLERANCE)
    to_corner = Affine.translation(-left, -top)
    return Frame((bottom - top, right - left), size, tuple(to_corner @ placed for placed in maps))


def _union(sections: Sequence[Section], maps: Sequence[Affine]) -> Extent:
    """The box, in px of the maps' target, around all images."""
    boxes = []
    for section, placed in zip(sections, maps, strict=True):
        height, width = section.image_shape
        boxes.append((placed @ section.microns_to_image.inverse()).bounds(0, height, 0, width))
    y0, y1, x0, x1 = zip(*boxes, strict=True)
    return Extent(min(y0), max(y1), min(x0), max(x1))


def parse_extent(text: str) -> Extent:
    """Read ``Y0:Y1,X0:X1`` (microns)."""
    number = r"\s*([-+0-9.eE]+)\s*"
    match = re.fullmatch(f"{number}:{number},{number}:{number}", text)
    try:
        if match is None:
            raise ValueError
        return Extent(*(float(word) for word in match.groups()))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not Y0:Y1,X0:X1 in microns") from None
