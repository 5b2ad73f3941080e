"""Figures like the paper's Fig. 3: expression, attention, attention over the nuclear stain, and their regression."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from teramind.evaluate.extras import required
from teramind.interaction.image import MapImage
from teramind.interaction.statistics import JointHistogram, PathwayStatistics
from teramind.interaction.underlay import Underlay
from teramind.output.preview import scale_bar_length

LARGEST_PANEL = 1000
"""Bins of the longer side of a panel at most; larger maps are shown from a coarser level."""
SMOOTHING = 1.0
"""Standard deviation of the Gaussian that planes are shown with, bins of the level that is shown."""
GENE_COLORS = ("#e5009c", "#00a651", "#2563eb", "#d97706", "#7c3aed", "#0891b2")

_BRIGHT = 99.8  # percentile of what is not 0 that is shown brightest
_HEXAGONS = 60  # across the plot
_LIGHT = 0.35  # of the colour's depth

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """What is drawn of a slice.

    Attributes:
        title: of the figure.
        genes: names.
        expression: (K, h, w) log2(counts + 1).
        attention: (h, w) log2(G * a + 1) of the window, all genes together, where all of them are expressed.
        under: (h, w) nuclear stain, 0 to 1; None for none.
        under_name: what it is.
        pixel_size: um.
    """

    title: str
    genes: Sequence[str]
    expression: Plane
    attention: Plane
    under: Plane | None
    under_name: str
    pixel_size: float


def shown_slice(maps: MapImage, z: int, underlay: Underlay | None) -> Shown:
    """Read what is drawn of slice ``z`` of the maps, at a level that fits a panel."""
    level = maps.level_for(LARGEST_PANEL)
    counts = np.stack([maps.read("expression", z, gene=gene, level=level) for gene in maps.genes])
    attention = maps.read("window", z, level=level) * (counts > 0).all(axis=0)
    pixel_size = maps.bin_size * 2**level
    number = maps.first_slice + z
    under = underlay.read(number, maps.corner, pixel_size, attention.shape) if underlay else None
    return Shown(
        title=f"slice {number}, z = {maps.slice_z[z]:g} µm",
        genes=maps.genes,
        expression=np.stack([_smooth(np.log2(plane + 1)) for plane in counts]),
        attention=_smooth(np.log2(maps.panel_size * attention + 1)),
        under=under,
        under_name=underlay.name if underlay and under is not None else "",
        pixel_size=pixel_size,
    )


def slice_figure(shown: Shown) -> bytes:
    """Expression in one colour a gene, attention, and attention over the nuclear stain; PNG."""
    figure = _new_figure((13.5, 4.9 * shown.attention.shape[0] / shown.attention.shape[1] * 0.9 + 1.3))
    panels = figure.subplots(1, 3)
    figure.suptitle(shown.title)
    brightest = [_bright(plane) for plane in shown.expression]
    _show(panels[0], "expression, log2(counts + 1)", _mixed(shown, brightest), shown.pixel_size)
    for number, (gene, most) in enumerate(zip(shown.genes, brightest, strict=True)):
        _color_bar(figure, panels[0], _ramp(gene_color(number)), most, gene)
    most = _bright(shown.attention)
    _show(panels[1], "attention, log2(G·a + 1)", shown.attention, shown.pixel_size, cmap="inferno", vmin=0, vmax=most)
    _color_bar(figure, panels[1], "inferno", most, "attention")
    over = f"attention over {shown.under_name}" if shown.under_name else "attention (no nuclear stain to draw it over)"
    _show(panels[2], over, _over(shown, most), shown.pixel_size)
    _color_bar(figure, panels[2], "inferno", most, "attention")
    return _png(figure)


def regression_figure(statistics: PathwayStatistics) -> bytes:
    """Hexagons of attention on expression with marginals and the line, one plot a gene, all slices together; PNG."""
    count = len(statistics.histograms)
    figure = _new_figure((4.6 * count, 4.6))
    overall = statistics.overall()
    parts = np.atleast_1d(figure.subfigures(1, count))
    for number, (part, (gene, histogram)) in enumerate(zip(parts, statistics.histograms.items(), strict=True)):
        line = overall[gene]
        title = f"{gene}\nslope {line.slope:.3f}, r {line.r:.3f}, n {line.n:,}"
        _hexagons(part, histogram, title, gene_color(number), (line.slope, line.intercept))
    return _png(figure)


def gene_color(number: int) -> str:
    """The colour of a pathway's gene."""
    return GENE_COLORS[number % len(GENE_COLORS)]


def _hexagons(part: Any, histogram: JointHistogram, title: str, color: str, line: tuple[float, float]) -> None:
    grid = part.add_gridspec(2, 2, width_ratios=(4, 1), height_ratios=(1, 4), hspace=0.05, wspace=0.05)
    axes = part.add_subplot(grid[1, 0])
    above, beside = part.add_subplot(grid[0, 0], sharex=axes), part.add_subplot(grid[1, 1], sharey=axes)
    x, y, weights = histogram.points()
    above.set_title(title, fontsize=10, loc="left")
    axes.set(xlabel="log2(expression + 1)", ylabel="log2(G·attention + 1)")
    for side in (above, beside):
        side.axis("off")
    if not len(x):
        axes.text(0.5, 0.5, "nowhere are all genes expressed", ha="center", transform=axes.transAxes)
        return
    axes.hexbin(
        x, y, C=weights, reduce_C_function=np.sum, gridsize=_HEXAGONS, bins="log", cmap=_ramp(color, _tint(color)),
        mincnt=1, linewidths=0,
    )  # fmt: skip
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, line[0] * ends + line[1], color="black", linewidth=1.5)
    above.hist(x, bins=_HEXAGONS, weights=weights, color=color)
    beside.hist(y, bins=_HEXAGONS, weights=weights, color="#57534e", orientation="horizontal")


def _show(axes: Any, title: str, picture: Any, pixel_size: float, **options: Any) -> None:
    """Draw a panel with a scale bar."""
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_title(title, fontsize=10)
    axes.axis("off")
    height, width = picture.shape[:2]
    length = scale_bar_length(width * pixel_size)
    right, y = 0.97 * width, 0.96 * height
    axes.plot([right - length / pixel_size, right], [y, y], color="white", linewidth=3, solid_capstyle="butt")
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.text(right - length / pixel_size / 2, y - 0.015 * height, label, color="white", ha="center", va="bottom")


def _color_bar(figure: Any, axes: Any, cmap: Any, most: float, label: str) -> None:
    matplotlib = required("matplotlib")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), cmap)
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.7, pad=0.02, aspect=40, label=label)


def _mixed(shown: Shown, brightest: Sequence[float]) -> Plane:
    """(h, w, 3): genes in their colours, added."""
    colors = required("matplotlib.colors")
    total = np.zeros((*shown.attention.shape, 3), np.float32)
    for number, (plane, most) in enumerate(zip(shown.expression, brightest, strict=True)):
        total += np.clip(plane / most, 0, 1)[..., None] * np.array(colors.to_rgb(gene_color(number)), np.float32)
    return np.clip(total, 0, 1)


def _over(shown: Shown, most: float) -> Plane:
    """(h, w, 3): attention over the nuclear stain, the more opaque the higher it is."""
    matplotlib = required("matplotlib")
    share = np.clip(shown.attention / most, 0, 1)
    color = matplotlib.colormaps["inferno"](share)[..., :3].astype(np.float32)
    under = np.zeros_like(shown.attention) if shown.under is None else shown.under
    opacity = np.sqrt(share)[..., None]
    return np.asarray(color * opacity + under[..., None] * (1 - opacity), np.float32)


def _ramp(color: str, low: str = "black") -> Any:
    return required("matplotlib.colors").LinearSegmentedColormap.from_list(color, [low, color])


def _tint(color: str) -> Any:
    """A colour's light shade: single points have to be seen on white."""
    return 1 - _LIGHT * (1 - np.array(required("matplotlib.colors").to_rgb(color)))


def _smooth(plane: npt.NDArray[Any]) -> Plane:
    return np.asarray(gaussian_filter(plane.astype(np.float32), SMOOTHING))


def _bright(plane: Plane) -> float:
    there = plane[plane > 0]
    return float(np.percentile(there, _BRIGHT)) if len(there) else 1.0


def _new_figure(size: tuple[float, float]) -> Any:
    """A figure without pyplot, which would keep it and choose a window system."""
    return required("matplotlib.figure").Figure(figsize=size, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
