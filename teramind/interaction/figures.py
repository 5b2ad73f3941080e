"""Figures like the paper's Fig. 3: expression, attention, attention over the nuclear stain, and their regression."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from teramind.atlas.layout import BIN_SIZE
from teramind.evaluate.extras import required
from teramind.interaction.image import SQUARE_LEVEL, MapImage
from teramind.interaction.statistics import UNIFORM, JointHistogram, PathwayStatistics
from teramind.interaction.underlay import Underlay
from teramind.ngff.pyramid import mean_of_squares
from teramind.output.preview import scale_bar_length

LARGEST_PANEL = 1000
"""Bins of the longer side of a panel at most; larger maps are shown from a coarser level."""
SMOOTHING = 1.0
"""Standard deviation of the Gaussian that planes are shown with, bins of the level that is shown."""
GENE_COLORS = ("#e5009c", "#00a651", "#2563eb", "#d97706", "#7c3aed", "#0891b2", "#dc2626", "#a3a300")
"""Of the genes that are drawn, ``MOST_DRAWN`` of them."""
COLUMNS = 4
"""Plots in a row."""

_BRIGHT = 99.8  # percentile of what is not 0 that is shown brightest
_HEXAGONS = (16, 60)  # across the plot, at least and at most
_LIGHT = 0.35  # of the colour's depth
_INK = "#57534e"
_PANEL, _GAP, _ABOVE, _BELOW = 4.2, 0.2, 0.62, 0.8  # inches: a panel's width, and what is beside, above and below
_ASPECT = (0.4, 1.5)  # of a panel, its height by its width
_PLOT, _MARGIN, _SIDE = 2.5, 0.55, 0.5  # inches: of the hexagons, of what is written beside them, of a marginal
_LONG = 12  # letters of a gene's name

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shown:
    """What is drawn of a slice.

    Attributes:
        title: of the figure.
        genes: names of those whose expression is drawn.
        of_genes: how many there are.
        expression: (K, h, w) log2(counts + 1).
        attention: (h, w) log2(G * a + 1) of the window, all genes together, where all of them are expressed.
        under: (n*h, n*w) nuclear stain, 0 to 1; None for none.
        under_name: what it is.
        pixel_size: um.
    """

    title: str
    genes: Sequence[str]
    of_genes: int
    expression: Plane
    attention: Plane
    under: Plane | None
    under_name: str
    pixel_size: float


def shown_slice(maps: MapImage, z: int, underlay: Underlay | None, genes: Sequence[str]) -> Shown:
    """Read what is drawn of slice ``z`` of the maps, at a level that fits a panel; expression of some genes alone."""
    level = maps.level_for(LARGEST_PANEL)
    attention = _masked_attention(maps, z, level)
    expression = [_smooth(np.log2(maps.read("expression", z, gene=gene, level=level) + 1)) for gene in genes]
    pixel_size = maps.bin_size * 2**level
    number = maps.first_slice + z
    finer = max(1, min(LARGEST_PANEL // max(attention.shape), BIN_SIZE * 2**level))
    fine = attention.shape[0] * finer, attention.shape[1] * finer
    under = underlay.read(number, maps.corner, pixel_size / finer, fine) if underlay else None
    return Shown(
        title=f"slice {number}, z = {maps.slice_z[z]:g} µm",
        genes=genes,
        of_genes=len(maps.genes),
        expression=np.stack(expression),
        attention=_smooth(np.log2(maps.panel_size * attention + 1)),
        under=under,
        under_name=underlay.name if underlay and under is not None else "",
        pixel_size=pixel_size,
    )


def _masked_attention(maps: MapImage, z: int, level: int) -> Plane:
    """Attention of the window in the squares that are regressed, 0 elsewhere; coarser levels are means of that."""
    together = maps.together(z)
    if level <= SQUARE_LEVEL:
        plane = maps.read("window", z, level=level)
        fine = _enlarged(together, 2 ** (SQUARE_LEVEL - level))
        return np.asarray(plane * fine[: plane.shape[0], : plane.shape[1]])
    plane = maps.read_squares("window", z) * together
    for _ in range(SQUARE_LEVEL, level):
        plane = mean_of_squares(plane)
    return plane


def slice_figure(shown: Shown) -> bytes:
    """Expression in one colour a gene, attention, and attention over the nuclear stain; PNG."""
    rows, columns = shown.attention.shape
    high = _PANEL * float(np.clip(rows / columns, *_ASPECT))
    width, height = 3 * _PANEL + 4 * _GAP, high + _ABOVE + _BELOW
    figure = _new_figure((width, height))
    panels = [
        figure.add_axes(((_GAP + n * (_PANEL + _GAP)) / width, _BELOW / height, _PANEL / width, high / height))
        for n in range(3)
    ]
    figure.text(_GAP / width, 1 - 0.12 / height, shown.title, fontsize=12, weight="bold", va="top")
    brightest = [_bright(plane) for plane in shown.expression]
    few = f" of {len(shown.genes)} of {shown.of_genes} genes" if len(shown.genes) < shown.of_genes else ""
    _show(panels[0], f"expression{few}, log2(counts + 1)", _mixed(shown, brightest), shown.pixel_size)
    _gene_legend(figure, shown.genes, brightest, ((_GAP + _PANEL / 2) / width, (_BELOW - 0.06) / height))
    most = _bright(shown.attention)
    _show(panels[1], "attention, log2(G·a + 1)", shown.attention, shown.pixel_size, cmap="inferno", vmin=0, vmax=most)
    over = f"attention over {shown.under_name}" if shown.under_name else "attention (no nuclear stain to draw it over)"
    picture = _over(shown, most)
    _show(panels[2], over, picture, shown.pixel_size * rows / len(picture))
    middle = (_GAP + _PANEL + _GAP + _PANEL + _GAP / 2) / width
    bar = figure.add_axes((middle - _PANEL / 2 / width, (_BELOW - 0.22) / height, _PANEL / width, 0.1 / height))
    _color_bar(figure, bar, "inferno", most, "attention, log2(G·a + 1)")
    return _png(figure)


def regression_figure(statistics: PathwayStatistics) -> bytes:
    """Hexagons of attention on expression with marginals and the line, one plot a gene, all slices together; PNG.

    The genes are those that have a histogram, ``COLUMNS`` in a row.
    """
    drawn = statistics.histograms
    overall = statistics.overall()
    if not overall[UNIFORM].n:
        figure = _new_figure((7, 1.2))
        figure.text(0.5, 0.5, "Nowhere are all genes expressed.", ha="center", va="center")
        return _png(figure)
    columns = min(COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    wide, high = _MARGIN + _PLOT + _SIDE + 0.3, _MARGIN + _PLOT + _SIDE + 0.6
    figure = _new_figure((wide * columns, high * rows))
    for number, (gene, histogram) in enumerate(drawn.items()):
        line, (row, column) = overall[gene], divmod(number, columns)
        title = f"{gene}\nslope {line.slope:.3f}, r {line.r:.3f}, n {line.n:,}"
        corner = column * wide + _MARGIN, (rows - 1 - row) * high + _MARGIN
        axes = _joint_axes(figure, *corner)
        _hexagons(axes, histogram, title, GENE_COLORS[number], (line.slope, line.intercept))
    return _png(figure)


def _joint_axes(figure: Any, left: float, bottom: float) -> tuple[Any, Any, Any]:
    """Axes for a plot whose corner is given in inches, and for the marginals above and beside it."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, _PLOT / width, _PLOT / height))
    above = figure.add_axes(
        (left / width, (bottom + _PLOT + 0.05) / height, _PLOT / width, _SIDE / height), sharex=axes
    )
    beside = figure.add_axes(
        ((left + _PLOT + 0.05) / width, bottom / height, _SIDE / width, _PLOT / height), sharey=axes
    )
    return axes, above, beside


def _hexagons(
    places: tuple[Any, Any, Any], histogram: JointHistogram, title: str, color: str, line: tuple[float, float]
) -> None:
    axes, above, beside = places
    x, y, weights = histogram.points()
    above.set_title(title, fontsize=10, loc="left")
    axes.set(xlabel="log2(expression + 1)", ylabel="log2(G·attention + 1)")
    for side in (above, beside):
        side.axis("off")
    least, most = _HEXAGONS
    across = histogram.edges(0, most, least)
    rows = round(len(across) / np.sqrt(3))  # so many make hexagons nearly regular
    up = histogram.edges(1, rows, rows // 2)
    axes.hexbin(
        x, y, C=weights, reduce_C_function=np.sum, gridsize=(len(across) - 1, len(up) - 1), bins="log", mincnt=1,
        extent=(across[0], across[-1], up[0], up[-1]), cmap=_ramp(color, _tint(color)), linewidths=0,
    )  # fmt: skip
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, line[0] * ends + line[1], color="black", linewidth=1.5)
    axes.set(xlim=_with_margin(across), ylim=_with_margin(up))
    above.hist(x, bins=across, weights=weights, color=color)
    halves = np.linspace(up[0], up[-1], 2 * len(up) - 1)
    beside.hist(y, bins=halves, weights=weights, color=_INK, orientation="horizontal")


def _with_margin(edges: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Limits of an axis: hexagons are centred on the first and the last edge too."""
    return float(2 * edges[0] - edges[1]), float(2 * edges[-1] - edges[-2])


def _show(axes: Any, title: str, picture: Any, pixel_size: float, **options: Any) -> None:
    """Draw a panel with a scale bar; what is long and narrow lies on a black ground."""
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_title(title, fontsize=10)
    height, width = picture.shape[:2]
    wide, high = max(width, height / _ASPECT[1]), max(height, width * _ASPECT[0])
    left, top = (width - wide - 1) / 2, (height - high - 1) / 2
    axes.set(xlim=(left, left + wide), ylim=(top + high, top), xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    length = scale_bar_length(wide * pixel_size)
    right, y = left + 0.96 * wide, top + high - 0.04 * wide
    outline = required("matplotlib.patheffects").withStroke(linewidth=2, foreground="black")
    ends = [right - length / pixel_size, right]
    axes.plot(ends, [y, y], color="white", linewidth=3, solid_capstyle="butt", path_effects=[outline])
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.text(
        sum(ends) / 2, y - 0.015 * wide, label, color="white", fontsize=9, ha="center", va="bottom",
        path_effects=[outline],
    )  # fmt: skip


def _gene_legend(figure: Any, genes: Sequence[str], brightest: Sequence[float], where: tuple[float, float]) -> None:
    """Colours of genes, and what is shown brightest."""
    patches = required("matplotlib.patches")
    handles = [
        patches.Patch(color=color, label=f"{gene} (0–{most:.2g})")
        for gene, most, color in zip(genes, brightest, GENE_COLORS, strict=False)
    ]
    columns = 2 if max(map(len, genes)) > _LONG else 3
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=where, ncols=columns, fontsize=8, frameon=False,
        handlelength=1, columnspacing=1,
    )  # fmt: skip


def _color_bar(figure: Any, axes: Any, cmap: Any, most: float, label: str) -> None:
    matplotlib = required("matplotlib")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), cmap)
    figure.colorbar(scale, cax=axes, orientation="horizontal", label=label)


def _mixed(shown: Shown, brightest: Sequence[float]) -> Plane:
    """(h, w, 3): genes in their colours, added; what is too bright keeps its hue."""
    colors = required("matplotlib.colors")
    total = np.zeros((*shown.attention.shape, 3), np.float32)
    for plane, most, color in zip(shown.expression, brightest, GENE_COLORS, strict=False):
        total += np.clip(plane / most, 0, 1)[..., None] * np.array(colors.to_rgb(color), np.float32)
    return np.asarray(total / np.maximum(1, total.max(axis=-1, keepdims=True)))


def _over(shown: Shown, most: float) -> Plane:
    """(n*h, n*w, 3): attention over the nuclear stain, the more opaque the higher it is."""
    matplotlib = required("matplotlib")
    share = np.clip(shown.attention / most, 0, 1)
    under = np.zeros_like(shown.attention) if shown.under is None else np.clip(shown.under / _bright(shown.under), 0, 1)
    share = _enlarged(share, len(under) // len(share))
    color = matplotlib.colormaps["inferno"](share)[..., :3].astype(np.float32)
    opacity = np.sqrt(share)[..., None]
    return np.asarray(color * opacity + under[..., None] * (1 - opacity), np.float32)


def _enlarged(plane: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


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
    """A figure without pyplot, which would keep it and choose a window system; axes are placed in inches."""
    return required("matplotlib.figure").Figure(figsize=size)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
