"""Pictures of a report: truth, result and their difference, of a whole slice and of places in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture

from teramind.engine.plan import Rectangle
from teramind.evaluate.evaluation import BASELINE, SAMPLE
from teramind.evaluate.extras import required
from teramind.evaluate.measure import Image, Plan, Result
from teramind.evaluate.nuclei import Labeller, match_nuclei, measure
from teramind.evaluate.nuclei.segment import Labels, Plane
from teramind.evaluate.nuclei.table import reduced, reduction
from teramind.evaluate.sources import ImageSource, Pixels
from teramind.evaluate.zooms import Zoom
from teramind.ngff.colors import stain_colors
from teramind.output.preview import composite, side_by_side

OVERVIEW_SIDE = 640
ZOOM_SIDE = 384
_STRIP = 1024  # px read at once
MATCHED, MISSED, EXTRA = (90, 220, 110), (255, 80, 80), (255, 205, 60)

Rgb = npt.NDArray[np.uint8]
_Kind = TypeVar("_Kind", bound=np.generic)


def overview(plan: Plan, result: Result) -> tuple[int, Picture.Image]:
    """The middle slice of the truth, of the first sample, and their difference; and which slice that is."""
    z = (plan.extent.slices[0] + plan.extent.slices[1] - 1) // 2
    factor = max(1, -(-max(plan.extent.place.shape) // OVERVIEW_SIDE))
    truth, sample = (_shrunk(image.source, z, plan.extent.place, factor) for image in (result.truth, result.images[0]))
    panels = {
        "truth": _coloured(plan, truth),
        result.images[0].source.name: _coloured(plan, sample),
        f"difference in {plan.stains[plan.nuclear]}": difference_picture(truth[plan.nuclear], sample[plan.nuclear]),
    }
    return z, side_by_side(panels, pixel_size_um=plan.pixel_size * factor, max_side=OVERVIEW_SIDE)


def zoom_picture(plan: Plan, result: Result, zoom: Zoom) -> Picture.Image:
    """One place: truth, first sample, the best baseline, their difference, and which nuclei were found."""
    shown = [result.truth, *_shown_images(result)]
    pixels = [image.source.read(zoom.z, zoom.place) for image in shown]
    scale = max(1, round(ZOOM_SIDE / max(zoom.place.shape)))
    nuclear = plan.nuclear
    panels = {
        image.source.name: _enlarged(_coloured(plan, part), scale) for image, part in zip(shown, pixels, strict=True)
    }
    panels[f"difference in {plan.stains[nuclear]}"] = _enlarged(
        difference_picture(pixels[0][nuclear], pixels[1][nuclear]), scale
    )
    panels["nuclei"] = nuclei_picture(plan, result.truth, shown[1], zoom, scale)
    return side_by_side(panels, pixel_size_um=plan.pixel_size / scale, max_side=2 * ZOOM_SIDE)


def difference_picture(truth: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8]) -> Rgb:
    """Red where the image is brighter than the truth, blue where it is darker, white where they agree."""
    difference = image.astype(np.float32) - truth
    fade = (np.abs(difference) / 128).clip(0, 1)[..., None]
    tone = np.where(difference[..., None] > 0, np.array([178, 24, 43]), np.array([33, 102, 172]))
    return np.asarray(255 + fade * (tone - 255.0), dtype=np.uint8)


def nuclei_picture(plan: Plan, truth: Image, image: Image, zoom: Zoom, scale: int) -> Rgb:
    """Outlines over the true nuclear stain: true nuclei that were found or missed, and nuclei found where none is."""
    around = plan.extent.padded(zoom.place, plan.margin)
    planes, labels = zip(
        *(_segmented(plan, one.source, one.label, zoom.z, around) for one in (truth, image)), strict=True
    )
    tables = [measure(label, plane, plan.segmented_pixel_size) for label, plane in zip(labels, planes, strict=True)]
    matches = match_nuclei(tables[0].places, tables[1].places, plan.radius_um)
    found = _numbers(labels[0])[matches.truth]
    extra = np.delete(_numbers(labels[1]), matches.found)
    factor = reduction(plan.pixel_size) * scale
    top, left = ((zoom.place.y0 - around.y0) * scale, (zoom.place.x0 - around.x0) * scale)
    h, w = (side * scale for side in zoom.place.shape)
    grey = _enlarged(truth.source.read(zoom.z, zoom.place)[plan.nuclear], scale)
    picture = np.stack([(grey * 0.8).astype(np.uint8)] * 3, axis=-1)
    layers = (
        (MATCHED, labels[0], found),
        (MISSED, labels[0], np.setdiff1d(_numbers(labels[0]), found)),
        (EXTRA, labels[1], extra),
    )
    for color, label, numbers in layers:
        chosen = np.where(np.isin(label, numbers), label, 0)
        picture[_outlines(chosen, factor)[top : top + h, left : left + w]] = color
    return np.asarray(picture, dtype=np.uint8)


def _shown_images(result: Result) -> list[Image]:
    """The first sample, and of the baselines the one with the highest F1."""
    sample = next(image for image in result.images if image.kind == SAMPLE)
    baselines = [image for image in result.images if image.kind == BASELINE]
    best = sorted(baselines, key=lambda image: -np.nan_to_num(image.nuclei.f1))[:1]
    return [sample, *best]


def _segmented(plan: Plan, source: ImageSource, label: Labeller, z: int, place: Rectangle) -> tuple[Plane, Labels]:
    plane = reduced(source.read(z, place)[plan.nuclear], reduction(plan.pixel_size))
    return plane, label(plane)


def _numbers(labels: Labels) -> npt.NDArray[np.int32]:
    """The labels that occur, in the order of the table that ``measure`` makes."""
    numbers = np.unique(labels)
    return np.asarray(numbers[numbers > 0])


def _outlines(labels: Labels, factor: int) -> npt.NDArray[np.bool_]:
    enlarged = _enlarged(labels, factor)
    return np.asarray(required("skimage.segmentation").find_boundaries(enlarged, mode="inner"))


def _coloured(plan: Plan, pixels: Pixels) -> Rgb:
    return composite(pixels, stain_colors(plan.stains))


def _enlarged(pixels: npt.NDArray[_Kind], scale: int) -> npt.NDArray[_Kind]:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _shrunk(source: ImageSource, z: int, place: Rectangle, factor: int) -> Pixels:
    """A slice averaged over squares of pixels, read in strips; incomplete squares at the far edges are left out."""
    width = place.shape[1] // factor * factor
    rows = max(1, _STRIP // factor) * factor
    strips: Sequence[Pixels] = [
        _averaged(source, z, Rectangle(y, min(y + rows, place.y1), place.x0, place.x0 + width), factor)
        for y in range(place.y0, place.y1, rows)
    ]
    return np.concatenate(strips, axis=1)


def _averaged(source: ImageSource, z: int, strip: Rectangle, factor: int) -> Pixels:
    height = strip.shape[0] // factor * factor
    pieces = []
    step = max(1, 4 * _STRIP // factor) * factor
    for x in range(strip.x0, strip.x1, step):
        pixels = source.read(z, Rectangle(strip.y0, strip.y0 + height, x, min(x + step, strip.x1)))
        stains, h, w = pixels.shape
        squares = pixels.reshape(stains, h // factor, factor, w // factor, factor)
        pieces.append((squares.mean(axis=(2, 4), dtype=np.float32) + 0.5).astype(np.uint8))
    return np.concatenate(pieces, axis=2)
