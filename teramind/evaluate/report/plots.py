"""Plots of a report."""

from __future__ import annotations

import io
import math
from typing import Any

from teramind.evaluate.evaluation import BASELINE, CEILING, CHANCE, CONTROL, MEAN, SAMPLE, Evaluation, Row
from teramind.evaluate.extras import required

TRUTH_COLOR = "#111111"
_COLORS = {SAMPLE: "#c2410c", MEAN: "#ea9a63", CEILING: "#15803d", CONTROL: "#a8a29e"}
_BASELINE_COLORS = ("#1d4ed8", "#0e7490", "#7c3aed", "#64748b")


def shown_rows(evaluation: Evaluation) -> list[Row]:
    """One sample, the mean, the ceiling, the baselines and the control: what fits into a plot."""
    others = [row for kind in (MEAN, CEILING, BASELINE, CONTROL) for row in evaluation.of_kind(kind)]
    return [*evaluation.samples[:1], *others]


def size_plot(evaluation: Evaluation) -> bytes:
    """Distribution of nuclear areas, PNG."""
    figure, (axes,) = _figure(1, (7.2, 3.4))
    edges = evaluation.area_edges
    shares = evaluation.area_shares
    axes.stairs(shares["truth"], edges, color=TRUTH_COLOR, fill=True, alpha=0.15, label="truth")
    axes.stairs(shares["truth"], edges, color=TRUTH_COLOR, linewidth=1.5)
    for row, color in _colored(shown_rows(evaluation)):
        axes.stairs(shares[row.name], edges, color=color, linewidth=1.3, label=row.name)
    axes.set(xlabel="nuclear area, µm²", ylabel="share of nuclei", xlim=(0, edges[-1]), ylim=(0, None))
    axes.legend(frameon=False)
    return _png(figure)


def slice_plot(evaluation: Evaluation) -> bytes:
    """Nuclei, F1 and PSNR of every slice, PNG."""
    figure, panels = _figure(3, (11, 3.2))
    rows = shown_rows(evaluation)
    z = list(rows[0].slices)
    marker = "o" if len(z) < 20 else None
    truth = [figures["true_nuclei"] for figures in rows[0].slices.values()]
    panels[0].plot(z, truth, color=TRUTH_COLOR, marker=marker, label="truth", zorder=3)
    for key, axes, label in zip(("nuclei", "f1", "psnr"), panels, ("nuclei", "nuclei F1", "PSNR, dB"), strict=True):
        for row, color in _colored(rows):
            values = [figures[key] for figures in row.slices.values()]
            axes.plot(z, values, color=color, marker=marker, markersize=4, linewidth=1.3, label=row.name)
        axes.set(xlabel="slice", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].set_ylim(0, 1)
    panels[0].set_ylim(0, None)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return _png(figure)


def f1_plot(evaluation: Evaluation) -> bytes:
    """Nuclei F1 of every image between chance and ceiling, PNG."""
    rows = shown_rows(evaluation)
    figure, (axes,) = _figure(1, (7.2, 0.5 + 0.38 * len(rows)))
    names, values = [row.name for row in rows], [_or_zero(row.nuclei["f1"]) for row in rows]
    bars = axes.barh(names, values, color=[color for _, color in _colored(rows)], height=0.62)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=4)
    chance = evaluation.of_kind(CHANCE)[0].nuclei["f1"]
    axes.axvline(_or_zero(chance), color=TRUTH_COLOR, linewidth=1, linestyle=":")
    axes.annotate("chance", (_or_zero(chance), 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    axes.set(xlim=(0, 1.05), xlabel="nuclei F1")
    axes.invert_yaxis()
    return _png(figure)


def seam_plot(evaluation: Evaluation) -> bytes:
    """Seam scores with two standard errors, PNG."""
    groups = [("truth", TRUTH_COLOR, evaluation.truth_seams)]
    groups += [(row.name, _COLORS[SAMPLE], row.seams) for row in evaluation.samples[:1]]
    groups.append(("stitched naively", "#b91c1c", evaluation.naive_seams))
    grids = list(evaluation.truth_seams)
    figure, (axes,) = _figure(1, (7.2, 0.8 + 0.5 * len(grids)))
    axes.axvline(1, color="#999999", linewidth=1)
    for number, (name, color, seams) in enumerate(groups):
        there = [(place, seams[grid]) for place, grid in enumerate(grids) if _is_there(seams.get(grid))]
        places = [place + 0.18 * (number - 1) for place, _ in there]
        errors = [2 * _or_zero(figures["error"]) for _, figures in there]
        scores = [figures["score"] for _, figures in there]
        axes.errorbar(scores, places, xerr=errors, fmt="o", markersize=4, color=color, capsize=3, label=name)
    axes.set_yticks(range(len(grids)), grids)
    axes.set(xlabel="seam score (1 is seamless; bars: two standard errors)", ylim=(len(grids) - 0.5, -0.5))
    axes.legend(frameon=False, loc="best")
    return _png(figure)


def _colored(rows: list[Row]) -> list[tuple[Row, str]]:
    left = iter(_BASELINE_COLORS * len(rows))
    return [(row, _COLORS.get(row.kind) or next(left)) for row in rows]


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure without pyplot, which would keep it and choose a window system."""
    figure = required("matplotlib.figure").Figure(figsize=size, layout="constrained")
    required("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=9)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _is_there(figures: dict[str, float] | None) -> bool:
    return figures is not None and not math.isnan(figures["score"])


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
