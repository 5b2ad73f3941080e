"""What a change did: two images of the same noise compared, zone by zone, against what another seed does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import Atlas
from teramind.engine.frame import snapped_outward
from teramind.engine.plan import Rectangle
from teramind.evaluate.nuclei import Labeller, Matches, Nuclei, Segmenter, find_nuclei, match_nuclei
from teramind.evaluate.nuclei.table import reduced, reduction
from teramind.evaluate.sources import Extent, GeneratedImage
from teramind.interaction.areas import Area

EVERYWHERE, CHANGED = "everywhere", "where genes change"
"""Names of the zones that hold all bins, and those in which genes are changed."""
NUCLEI = "nuclei"
"""Name of the quantity that counts them."""
CONFIDENCE = 0.95

_WINDOW = 2048  # px that are worked on at once
_CALIBRATION_SIDE, _CALIBRATION_WINDOWS = 1024, 32
_Mask = npt.NDArray[np.bool_]


class Zones:
    """Parts of an atlas that effects are told of: all, where genes change, and the regions that it knows.

    Attributes:
        names: of the zones.
        main: the one in which genes change.
    """

    def __init__(self, atlas: Atlas, area: Area) -> None:
        self._atlas, self._area = atlas, area
        regions = sorted((atlas.region_names or {}).items())
        self._labels = {name: label for label, name in regions}
        self.main = EVERYWHERE if area.bounds() is None else CHANGED
        self.names = list(dict.fromkeys([EVERYWHERE, self.main, *self._labels]))

    def masks(self, z: int, place: Rectangle) -> dict[str, _Mask]:
        """Zone -> (h, w) pixels of a place in a slice that are in it."""
        whole = snapped_outward(place, BIN_SIZE)
        rows = slice(place.y0 - whole.y0, place.y1 - whole.y0)
        columns = slice(place.x0 - whole.x0, place.x1 - whole.x0)
        return {
            name: bins.repeat(BIN_SIZE, axis=0).repeat(BIN_SIZE, axis=1)[rows, columns]
            for name, bins in self._bins(z, whole).items()
        }

    def holding(self, z: int, extent: Rectangle, nuclei: Nuclei) -> dict[str, _Mask]:
        """Zone -> which nuclei of a slice have their centroid in it."""
        whole = snapped_outward(extent, BIN_SIZE)
        side = BIN_SIZE * self._atlas.pixel_size
        row = (nuclei.y / side).astype(np.int64) - whole.y0 // BIN_SIZE
        column = (nuclei.x / side).astype(np.int64) - whole.x0 // BIN_SIZE
        return {name: bins[row, column] for name, bins in self._bins(z, whole).items()}

    def _bins(self, z: int, whole: Rectangle) -> dict[str, _Mask]:
        """Zone -> (h, w) bins of a rectangle of whole bins."""
        bins = {EVERYWHERE: np.ones([side // BIN_SIZE for side in whole.shape], bool)}
        if self.main != EVERYWHERE:
            bins[self.main] = self._area.mask(z, z + 1, *whole)[0]
        if self._labels:
            labels = self._atlas.region_window(z, z + 1, *whole)[0]
            bins |= {name: labels == label for name, label in self._labels.items()}
        return bins


@dataclass
class Look:
    """How an image looks in a zone.

    Attributes:
        nuclei: how many.
        area: of all nuclei, um^2.
        pixels: of the zone.
        grey: (stains,) grey levels of all pixels.
    """

    nuclei: int = 0
    area: float = 0.0
    pixels: int = 0
    grey: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def quantities(self, stains: Sequence[str]) -> dict[str, float]:
        """Name -> value; NaN where there is nothing to take a mean of."""
        means = self.grey / self.pixels if self.pixels else np.full(len(stains), math.nan)
        size = self.area / self.nuclei if self.nuclei else math.nan
        return {
            NUCLEI: float(self.nuclei),
            "mean nuclear area, um^2": size,
            **{f"mean {stain}, grey levels": float(mean) for stain, mean in zip(stains, means, strict=True)},
        }


@dataclass
class Comparison:
    """Two images in a zone.

    Attributes:
        before: the one.
        after: the other.
        squares: (stains,) squared differences of all pixels.
        kept: nuclei that both have.
        kept_area: of these in the first and in the second, um^2.
        lost: nuclei that only the first has.
        gained: nuclei that only the second has.
    """

    before: Look
    after: Look
    squares: npt.NDArray[np.float64]
    kept: int = 0
    kept_area: tuple[float, float] = (0.0, 0.0)
    lost: int = 0
    gained: int = 0

    @property
    def difference(self) -> float:
        """Root of the mean squared difference over all stains, grey levels."""
        values = self.before.pixels * len(self.squares)
        return math.sqrt(self.squares.sum() / values) if values else math.nan

    def looks(self, stains: Sequence[str]) -> list[dict[str, float]]:
        """Of the one and of the other: name -> value. Nuclei that both have tell growth apart from loss."""
        return [
            look.quantities(stains) | {"mean area of nuclei in both, um^2": area / self.kept if self.kept else math.nan}
            for look, area in zip((self.before, self.after), self.kept_area, strict=True)
        ]

    def quantities(self) -> dict[str, float]:
        """What tells how much two images differ: 0 for equal ones."""
        return {
            "difference, grey levels (rms)": self.difference,
            "nuclei lost": float(self.lost),
            "nuclei gained": float(self.gained),
        }


class NucleiOfSlice(NamedTuple):
    """Nuclei of one slice in two images, and which are the same."""

    z: int
    before: Nuclei
    after: Nuclei
    matches: Matches


@dataclass(frozen=True)
class Scales:
    """How nuclei are found and matched.

    Attributes:
        segmenter: finds them.
        nuclear: index of the stain that shows them.
        radius_um: within which two are the same.
    """

    segmenter: Segmenter
    nuclear: int
    radius_um: float

    def calibrated(self, image: GeneratedImage, pixel_size: float) -> Labeller:
        """The segmentation, fitted to an image; with it both images of a comparison are segmented."""
        factor = reduction(pixel_size)
        windows = list(image.extent.windows(_CALIBRATION_SIDE))
        chosen = windows[:: -(-len(windows) // _CALIBRATION_WINDOWS)]
        planes = (reduced(image.read(z, place)[self.nuclear], factor) for z, place in chosen)
        return self.segmenter.calibrate(planes, pixel_size * factor)

    def find(self, image: GeneratedImage, label: Labeller, pixel_size: float) -> dict[int, Nuclei]:
        """Slice -> the nuclei of an image."""
        step = BIN_SIZE * reduction(pixel_size)
        margin = -(-int(np.ceil(self.segmenter.margin_um / pixel_size)) // step) * step
        parts: dict[int, list[Nuclei]] = {z: [] for z in range(*image.extent.slices)}
        for z, core in image.extent.windows(_WINDOW):
            around = image.extent.padded(core, margin)
            plane = image.read(z, around)[self.nuclear]
            parts[z].append(find_nuclei(plane, label, pixel_size, around, core))
        return {z: Nuclei.joined(found) for z, found in parts.items()}


class Measured(NamedTuple):
    """An image and its nuclei."""

    image: GeneratedImage
    nuclei: dict[int, Nuclei]


def compare(
    before: Measured, after: Measured, zones: Zones, scales: Scales
) -> tuple[dict[str, Comparison], list[NucleiOfSlice]]:
    """Compare two images of one extent.

    Returns:
        Zone -> comparison; and the nuclei slice by slice.
    """
    extent, stains = before.image.extent, len(before.image.stains)
    result = {
        name: Comparison(Look(grey=np.zeros(stains)), Look(grey=np.zeros(stains)), np.zeros(stains))
        for name in zones.names
    }
    for z, place in extent.windows(_WINDOW):
        _compare_pixels(result, before.image.read(z, place), after.image.read(z, place), zones.masks(z, place))
    slices = []
    for z in range(*extent.slices):
        first, second = before.nuclei[z], after.nuclei[z]
        matches = match_nuclei(first.places, second.places, scales.radius_um)
        slices.append(NucleiOfSlice(z, first, second, matches))
        _compare_nuclei(result, slices[-1], zones, extent)
    return result, slices


def _compare_pixels(
    result: dict[str, Comparison], before: npt.NDArray[Any], after: npt.NDArray[Any], masks: dict[str, _Mask]
) -> None:
    squares = np.square(after.astype(np.float64) - before)
    for name, mask in masks.items():
        one = result[name]
        count = int(mask.sum())
        for look, pixels in ((one.before, before), (one.after, after)):
            look.pixels += count
            look.grey += pixels[:, mask].sum(axis=1, dtype=np.float64)
        one.squares += squares[:, mask].sum(axis=1)


def _compare_nuclei(result: dict[str, Comparison], slice_: NucleiOfSlice, zones: Zones, extent: Extent) -> None:
    """A pair counts for the zone of its first nucleus."""
    here = [zones.holding(slice_.z, extent.place, nuclei) for nuclei in (slice_.before, slice_.after)]
    lost, gained = np.ones(len(slice_.before), bool), np.ones(len(slice_.after), bool)
    lost[slice_.matches.truth], gained[slice_.matches.found] = False, False
    for name, one in result.items():
        for look, nuclei, inside in zip((one.before, one.after), slice_[1:3], (h[name] for h in here), strict=True):
            look.nuclei += int(inside.sum())
            look.area += float(nuclei.area[inside].sum())
        pairs = here[0][name][slice_.matches.truth]
        one.kept += int(pairs.sum())
        areas = (slice_.before.area[slice_.matches.truth], slice_.after.area[slice_.matches.found])
        one.kept_area = one.kept_area[0] + float(areas[0][pairs].sum()), one.kept_area[1] + float(areas[1][pairs].sum())
        one.lost += int((lost & here[0][name]).sum())
        one.gained += int((gained & here[1][name]).sum())


@dataclass(frozen=True)
class Effect:
    """What a change did to a quantity in a zone, over several seeds.

    With and without the change an image has the same noise, so a seed gives one difference, and the mean of n of them
    is the effect. It is told as beyond noise if it passes two bars. Its confidence interval excludes 0: seeds agree.
    And it is larger than the noise floor, ``t * s * sqrt(2 / n)``, what two means of n images from unrelated noise
    differ by in 95 % of cases, where ``s`` is an image's standard deviation over seeds, pooled over those with and
    without the change: who had looked at other seeds would see it too. A difference in the number of nuclei has at
    least the counting error of the nuclei that were lost and gained, however well the seeds agree.

    What only tells how much two images differ (nuclei lost and gained, the root mean squared difference) is caused by
    the genes whenever it is not 0. It has no noise floor; what two seeds differ by is there as a yardstick.

    Attributes:
        zone: name.
        quantity: name and unit.
        before: mean without the change; NaN for what only tells a difference.
        after: mean with it.
        effect: mean over seeds of the difference that the change makes, from the same noise.
        low: lower end of its 95 % confidence interval (Student's t over seeds); NaN for one seed.
        high: upper end.
        p: chance of as large an effect or more, to either side, if there were none; NaN where there is no floor.
        noise_floor: see above; NaN for one seed, and for what only tells a difference.
        effect_size: effect over the standard deviation over seeds; NaN for one seed.
        beyond_noise: whether the interval excludes 0 and the effect is larger than the noise floor; None where there is
            no floor by definition.
        two_seeds: of what only tells a difference, the mean between two seeds without any change; NaN for others.
        seeds: how many.
    """

    zone: str
    quantity: str
    before: float
    after: float
    effect: float
    low: float
    high: float
    p: float
    noise_floor: float
    effect_size: float
    beyond_noise: bool | None
    two_seeds: float
    seeds: int


def summarise(
    changed: Sequence[dict[str, Comparison]], unchanged: Sequence[dict[str, Comparison]], stains: Sequence[str]
) -> list[Effect]:
    """Effects of a change.

    Args:
        changed: for each seed, zone -> image with the change against the one without it, from the same noise.
        unchanged: zone -> images of two seeds against each other, both without it.
        stains: names.
    """
    effects = []
    for zone in changed[0]:
        if not changed[0][zone].before.pixels:
            continue
        pairs = [one[zone] for one in changed]
        looks = [pair.looks(stains) for pair in pairs]
        turnover = sum(pair.lost + pair.gained for pair in pairs)
        for name in looks[0][0]:
            before, after = (np.array([look[side][name] for look in looks]) for side in (0, 1))
            effects.append(_paired(zone, name, before, after, turnover if name == NUCLEI else 0))
        distances = [pair.quantities() for pair in pairs]
        others = [one[zone].quantities() for one in unchanged]
        for name in distances[0]:
            two_seeds = float(np.mean([one[name] for one in others])) if others else math.nan
            effects.append(_distance(zone, name, np.array([one[name] for one in distances]), two_seeds))
    return effects


def _paired(
    zone: str, name: str, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], counted: int
) -> Effect:
    """Of a quantity of each image; ``counted`` events, over all seeds, made the difference."""
    difference = after - before
    effect, count = float(difference.mean()), len(before)
    error = max(_error(difference), math.sqrt(counted) / count)
    low, high = _interval(effect, error, count)
    spread = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / 2) if count > 1 else math.nan
    floor = _quantile(count) * spread * math.sqrt(2 / count)
    return Effect(
        zone=zone,
        quantity=name,
        before=float(before.mean()),
        after=float(after.mean()),
        effect=effect,
        low=low,
        high=high,
        p=_chance(effect, error, count),
        noise_floor=floor,
        effect_size=effect / spread if spread > 0 else math.nan,
        beyond_noise=not low <= 0 <= high and abs(effect) > floor,
        two_seeds=math.nan,
        seeds=count,
    )


def _distance(zone: str, name: str, values: npt.NDArray[np.float64], two_seeds: float) -> Effect:
    effect, nothing = float(values.mean()), math.nan
    low, high = _interval(effect, _error(values), len(values))
    return Effect(
        zone, name, nothing, nothing, effect, max(low, 0.0) if len(values) > 1 else low, high,
        p=nothing, noise_floor=nothing, effect_size=nothing, beyond_noise=None, two_seeds=two_seeds, seeds=len(values),
    )  # fmt: skip


def _error(values: npt.NDArray[np.float64]) -> float:
    """Of their mean; NaN for one value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _interval(mean: float, error: float, count: int) -> tuple[float, float]:
    reach = _quantile(count) * error
    return mean - reach, mean + reach


def _chance(mean: float, error: float, count: int) -> float:
    """Two-sided, by Student's distribution; NaN for one value."""
    if count < 2 or not math.isfinite(mean):
        return math.nan
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * student.sf(abs(mean) / error, count - 1))


def _quantile(count: int) -> float:
    """Of Student's distribution, two-sided; NaN for one value."""
    return float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) if count > 1 else math.nan
