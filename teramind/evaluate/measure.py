"""The pass over all images: slice by slice, window by window, every image of a window after the other.

Memory holds one window of one image and what is kept of it, whatever the size of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import Atlas
from teramind.engine.frame import snapped_outward
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.conditioning import chance_matches
from teramind.evaluate.evaluation import SAMPLE
from teramind.evaluate.metrics.frechet import Encoder, FrechetDistance
from teramind.evaluate.metrics.seams import Grid, SeamSums, naively_stitched, network_grids
from teramind.evaluate.metrics.similarity import REACH, Box, SimilaritySums, psnr_of
from teramind.evaluate.nuclei import Labeller, Matches, Nuclei, NucleiSums, Segmenter, find_nuclei, match_nuclei
from teramind.evaluate.nuclei.segment import Plane
from teramind.evaluate.nuclei.table import reduced, reduction
from teramind.evaluate.sources import Extent, ImageSource, Pixels
from teramind.evaluate.zooms import ZoomChoice

CHANCE_REPEATS = 8
_LEAST_SHIFT_UM = 50.0  # several nuclei and their gaps
_CALIBRATION_WINDOWS, _CALIBRATION_SIDE = 32, 1024
_WINDOW_STEP = 256  # px: whole squares of every encoder, whole bins, whole pixels of what is segmented
_MOST_LOOKED_AT = 2000  # windows, in search of those with transcripts


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        atlas: the genes and regions; the truth is a source of its own.
        extent: what is compared.
        stains: names, in the order of the sources' channels.
        nuclear_stain: the one that shows nuclei.
        segmenter: finds them.
        radius_um: within which two are the same.
        encoders: of the Frechet distances.
        patch: P of the network, px.
        tile: of its runs, px.
        window: px that are worked on at once.

    Raises:
        InputError: a value cannot be.
    """

    atlas: Atlas
    extent: Extent
    stains: tuple[str, ...]
    nuclear_stain: str
    segmenter: Segmenter
    radius_um: float
    encoders: tuple[Encoder, ...]
    patch: int
    tile: int
    window: int

    def __post_init__(self) -> None:
        if self.nuclear_stain.casefold() not in [stain.casefold() for stain in self.stains]:
            raise InputError(
                f"nuclei are looked for in the stain {self.nuclear_stain}, but the images share "
                f"{', '.join(self.stains)} alone: give --nuclear-stain"
            )
        if not self.radius_um > 0:
            raise InputError(f"nuclei cannot be matched within {self.radius_um} um; give a radius above 0")
        if self.window < _WINDOW_STEP or self.window % _WINDOW_STEP:
            raise InputError(f"windows of {self.window} px cannot be worked on; give a multiple of {_WINDOW_STEP}")

    @property
    def nuclear(self) -> int:
        """Channel that shows the nuclei."""
        return [stain.casefold() for stain in self.stains].index(self.nuclear_stain.casefold())

    @cached_property
    def grids(self) -> list[Grid]:
        """Where seams are looked for."""
        return network_grids(self.patch, self.tile)

    @property
    def naive(self) -> Grid | None:
        """The grid that naive stitching is shown on: that of tiles, or of patches where no border of a tile is seen."""
        fitting = [grid for grid in self.grids[:2] if 2 * grid.period <= min(*self.extent.place.shape, self.window)]
        return fitting[0] if fitting else None

    @property
    def pixel_size(self) -> float:
        """Of the images, um."""
        return self.atlas.pixel_size

    @property
    def margin(self) -> int:
        """Of a window, px: enough for segmentation, seams and SSIM; whole pixels of the segmented image."""
        aside = max(grid.displacement for grid in self.grids) + 1
        least = max(self.segmenter.margin_um / self.pixel_size, aside, REACH)
        step = 16 * reduction(self.pixel_size)
        return -(-int(np.ceil(least)) // step) * step

    @property
    def segmented_pixel_size(self) -> float:
        """Of what is segmented, um."""
        return self.pixel_size * reduction(self.pixel_size)

    def seams(self) -> dict[str, SeamSums]:
        """Empty sums, one a grid."""
        pixels = self.extent.place.area * self.extent.depth
        return {grid.name: SeamSums(grid, pixels) for grid in self.grids}


@dataclass(frozen=True)
class Window:
    """A window of a slice.

    Attributes:
        z: slice of the atlas.
        core: px that it stands for.
        padded: px that are read.
    """

    z: int
    core: Rectangle
    padded: Rectangle

    def near(self, reach: int) -> Box:
        """The core and some px more where the image goes on, as rows and columns of the padded window."""
        y0, y1, x0, x1 = self.core
        top, bottom, left, right = self.padded
        rows = slice(max(y0 - reach, top) - top, min(y1 + reach, bottom) - top)
        return rows, slice(max(x0 - reach, left) - left, min(x1 + reach, right) - left)


@dataclass
class Image:
    """An image and what is kept of it.

    Attributes:
        source: its pixels.
        kind: "truth", or that of its row in the evaluation.
        note: what the reader should know of it.
    """

    source: ImageSource
    kind: str
    note: str = ""
    similarity: SimilaritySums = field(init=False)
    region_errors: RegionErrors = field(init=False)
    seams: dict[str, SeamSums] = field(init=False)
    distances: list[FrechetDistance] = field(init=False)
    nuclei: NucleiSums = field(init=False)
    label: Labeller = field(init=False)
    parts: list[Nuclei] = field(init=False)  # nuclei of the slice at hand

    def begin(self, plan: Plan) -> None:
        """Nothing is measured yet; fit the segmentation to the image."""
        self.similarity = SimilaritySums(plan.extent.depth, len(plan.stains))
        self.region_errors = RegionErrors()
        self.seams = plan.seams()
        self.distances = [FrechetDistance(encoder) for encoder in plan.encoders]
        self.nuclei = NucleiSums(plan.segmented_pixel_size**2)
        self.label = plan.segmenter.calibrate(_calibration(plan, self.source), plan.segmented_pixel_size)
        self.parts = []

    def collect_nuclei(self) -> Nuclei:
        """Those of the slice at hand, which ends with this."""
        nuclei, self.parts = Nuclei.joined(self.parts), []
        return nuclei


class RegionErrors:
    """Squared errors of each region."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 1))  # errors and values; a column for each label

    def update(self, labels: npt.NDArray[np.uint16], truth: Pixels, image: Pixels) -> None:
        """Take pixels (stains, h, w) with the labels (h, w) of their regions."""
        errors = np.square(truth.astype(np.float64) - image).sum(axis=0)
        flat, length = labels.ravel(), max(self._sums.shape[1], int(labels.max()) + 1)
        self._sums = np.pad(self._sums, ((0, 0), (0, length - self._sums.shape[1])))
        self._sums[0] += np.bincount(flat, errors.ravel(), length)
        self._sums[1] += len(truth) * np.bincount(flat, minlength=length)

    def psnr(self) -> dict[int, float]:
        """Label -> dB."""
        errors, values = self._sums
        return {label: psnr_of(errors[label] / values[label]) for label in np.flatnonzero(values).tolist()}


@dataclass
class Result:
    """What the pass found.

    Attributes:
        truth: the true image.
        images: those compared with it.
        naive: seams of the first sample if its tiles knew nothing of each other; None if there is no such grid.
        chance: pairs of true nuclei and displaced true nuclei: (slices, repeats).
        zooms: places to show.
    """

    truth: Image
    images: list[Image]
    naive: SeamSums | None
    chance: npt.NDArray[np.int64]
    zooms: ZoomChoice


def measure(plan: Plan, truth: Image, images: Sequence[Image], seed: int, progress: Callable[[int], None]) -> Result:
    """Compare images with the truth.

    Args:
        plan: what is measured.
        truth: the true image.
        images: the others; the first of them is the sample that is looked at most closely.
        seed: of the displacements for the level of chance.
        progress: called with the pixels of each plane of each window that is done.
    """
    for image in (truth, *images):
        image.begin(plan)
    pixels = plan.extent.place.area * plan.extent.depth
    naive = SeamSums(plan.naive, pixels) if plan.naive else None
    result = Result(
        truth,
        list(images),
        naive,
        np.zeros((plan.extent.depth, CHANCE_REPEATS), np.int64),
        ZoomChoice(plan.extent, plan.pixel_size),
    )
    for z in range(*plan.extent.slices):
        for window in _windows(plan, z):
            _measure_window(plan, result, window, progress)
        _end_slice(plan, result, z, seed)
    return result


def _windows(plan: Plan, z: int) -> Iterator[Window]:
    part = Extent((z, z + 1), plan.extent.place)
    for _, core in part.windows(plan.window):
        yield Window(z, core, plan.extent.padded(core, plan.margin))


def _measure_window(plan: Plan, result: Result, window: Window, progress: Callable[[int], None]) -> None:
    truth = result.truth.source.read(window.z, window.padded)
    occupied = _occupied(plan, window)
    labels = _region_pixels(plan, window)
    _measure_alone(plan, result.truth, truth, window, progress)
    for distance in result.truth.distances:
        distance.update(_crops(truth, window, occupied, distance.encoder.side))
    samples: list[Pixels] = []
    for image in result.images:
        pixels = image.source.read(window.z, window.padded)
        _measure_alone(plan, image, pixels, window, progress)
        index = window.z - plan.extent.slices[0]
        core = window.near(0)
        image.similarity.update(index, truth, pixels, core, window.near(REACH))
        if labels is not None:
            image.region_errors.update(labels, truth[:, *core], pixels[:, *core])
        for distance in image.distances:
            distance.update(_crops(pixels, window, occupied, distance.encoder.side))
        if image.kind == SAMPLE and len(samples) < 2:
            samples.append(pixels[:, *core])
    if result.naive is not None and samples:
        _measure_naive(result.naive, samples, window)


def _measure_alone(plan: Plan, image: Image, pixels: Pixels, window: Window, progress: Callable[[int], None]) -> None:
    """What needs no truth: seams and nuclei."""
    origin = window.padded.y0, window.padded.x0
    for sums in image.seams.values():
        sums.update(pixels, z=window.z, origin=origin, core=window.core)
    nuclei = find_nuclei(pixels[plan.nuclear], image.label, plan.pixel_size, window.padded, window.core)
    image.parts.append(nuclei)
    progress(window.core.area)


def _measure_naive(sums: SeamSums, samples: Sequence[Pixels], window: Window) -> None:
    origin = window.core.y0, window.core.x0
    other = samples[1] if len(samples) > 1 else None
    stitched = naively_stitched(samples[0], sums.grid.period, other, origin)
    sums.update(stitched, z=window.z, origin=origin, core=window.core)


def _end_slice(plan: Plan, result: Result, z: int, seed: int) -> None:
    """Match the nuclei of a slice, all of whose windows are done."""
    true = result.truth.collect_nuclei()
    regions = _regions_of(plan, z, true)
    for number, image in enumerate(result.images):
        found = image.collect_nuclei()
        matches = match_nuclei(true.places, found.places, plan.radius_um)
        both = None if regions is None else (regions, _regions_of(plan, z, found))
        image.nuclei.update(z, true, found, matches, both)
        if number == 0:
            result.zooms.update(z, true, found, matches)
    itself = np.arange(len(true))
    both = None if regions is None else (regions, regions)
    result.truth.nuclei.update(z, true, true, Matches(itself, itself, len(true), len(true)), both)
    height, width = (side * plan.pixel_size for side in plan.extent.place.shape)
    corner = plan.extent.place.y0 * plan.pixel_size, plan.extent.place.x0 * plan.pixel_size
    result.chance[z - plan.extent.slices[0]] = chance_matches(
        true.moved(-corner[0], -corner[1]), (height, width), plan.radius_um, _LEAST_SHIFT_UM, seed, CHANCE_REPEATS
    )


def _calibration(plan: Plan, source: ImageSource) -> Iterator[Plane]:
    """Parts of an image to fit the segmentation to, the same places of every image: random ones with transcripts."""
    factor = reduction(plan.pixel_size)
    windows = list(plan.extent.windows(_CALIBRATION_SIDE))
    order = np.random.default_rng(0).permutation(len(windows))[:_MOST_LOOKED_AT].tolist()
    chosen = 0
    for number in order:
        z, place = windows[number]
        if chosen == _CALIBRATION_WINDOWS:
            return
        if plan.atlas.count_window(z, z + 1, *snapped_outward(place, BIN_SIZE)).any():
            chosen += 1
            yield reduced(source.read(z, place)[plan.nuclear], factor)


def _occupied(plan: Plan, window: Window) -> npt.NDArray[np.uint32]:
    """Transcripts of each bin of the core, of which the first may begin before it."""
    counts = plan.atlas.count_window(window.z, window.z + 1, *snapped_outward(window.core, BIN_SIZE))
    return np.asarray(counts[0])


def _crops(pixels: Pixels, window: Window, occupied: npt.NDArray[np.uint32], side: int) -> Pixels:
    """Squares (n, stains, side, side) of the core that hold transcripts."""
    rows, columns = window.near(0)
    height, width = window.core.shape
    crops = []
    for y in range(0, height - side + 1, side):
        for x in range(0, width - side + 1, side):
            bins = occupied[y // BIN_SIZE : (y + side) // BIN_SIZE, x // BIN_SIZE : (x + side) // BIN_SIZE]
            if bins.any():
                top, left = rows.start + y, columns.start + x
                crops.append(pixels[:, top : top + side, left : left + side])
    return np.stack(crops) if crops else np.zeros((0, len(pixels), side, side), dtype=np.uint8)


def _region_pixels(plan: Plan, window: Window) -> npt.NDArray[np.uint16] | None:
    """Region of every pixel of the core."""
    if plan.atlas.region_names is None:
        return None
    whole = snapped_outward(window.core, BIN_SIZE)
    bins = plan.atlas.region_window(window.z, window.z + 1, *whole)[0]
    pixels = bins.repeat(BIN_SIZE, axis=0).repeat(BIN_SIZE, axis=1)
    y, x = window.core.y0 - whole.y0, window.core.x0 - whole.x0
    h, w = window.core.shape
    return np.asarray(pixels[y : y + h, x : x + w])


def _regions_of(plan: Plan, z: int, nuclei: Nuclei) -> Any:
    """Region of each nucleus, by its centroid; None without a map of regions."""
    if plan.atlas.region_names is None:
        return None
    whole = snapped_outward(plan.extent.place, BIN_SIZE)
    bins = plan.atlas.region_window(z, z + 1, *whole)[0]
    y, x = ((nuclei.places / plan.pixel_size - (whole.y0, whole.x0)) // BIN_SIZE).astype(np.int64).T
    return bins[y, x]
