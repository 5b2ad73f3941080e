"""The figures of MIMYR's paper: F1 spot by spot, true and imputed expression in one plane, volcano plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from teramind.impute.cells import Cells
from teramind.impute.differential import DifferentialTable
from teramind.impute.metrics import soft_scores
from teramind.impute.nulls import null_predictions
from teramind.impute.planes import Plane

RADIUS = 0.03  # mm, of the F1
SHOWN = ("imputed", "baseline", "drawn anew")
TYPES_SHOWN = 8  # the most frequent ones get a colour
PANEL = 3.2  # inches


def f1_density(path: Path, truth: Cells, predictions: dict[str, Cells], plane: Plane) -> None:
    """How the F1 of the spots of a slice is distributed, for each prediction and each null."""
    flat = {name: replace(cells, positions=plane.flatten(cells.positions)) for name, cells in predictions.items()}
    flat_truth = replace(truth, positions=plane.flatten(truth.positions))
    lines = {name: flat[name] for name in SHOWN} | null_predictions(flat_truth, flat["imputed"])
    figure, axes = _panels(1, width=1.8)
    grid = np.linspace(0, 1, 256)
    for name, cells in lines.items():
        [score] = soft_scores(flat_truth, cells, radii=[RADIUS], metrics=["f1"], threads=1)
        style = "-" if name in SHOWN else ":"
        axes[0].plot(grid, gaussian_kde(score.per_spot)(grid), style, label=f"{name} ({score.value:.2f})")
    axes[0].set(xlabel=f"F1 at r = {RADIUS} mm", ylabel="density of spots", xlim=(0, 1))
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def embedding(path: Path, truth: Cells, predictions: dict[str, Cells]) -> None:
    """Cells on the first two principal components of the true log counts, true and predicted, by type."""
    sides = {"true": truth} | {name: predictions[name] for name in ("imputed", "baseline")}
    logs = {name: np.log1p(cells.counts.toarray()) for name, cells in sides.items()}
    middle = logs["true"].mean(axis=0)
    directions = np.linalg.svd(logs["true"] - middle, full_matrices=False)[2][:2]
    names, sizes = np.unique(truth.types, return_counts=True)
    colored = names[np.argsort(-sizes)][:TYPES_SHOWN]
    figure, axes = _panels(len(sides))
    for axis, (name, values) in zip(axes, logs.items(), strict=True):
        x, y = directions @ (values - middle).T
        for kind in (None, *colored):
            rows = ~np.isin(sides[name].types, colored) if kind is None else sides[name].types == kind
            color = {"color": "0.8"} if kind is None else {}
            axis.scatter(x[rows], y[rows], s=2, linewidths=0, label="others" if kind is None else kind, **color)
        axis.set(title=f"{name}, {len(x):,} cells", xlabel="component 1", ylabel="component 2")
    for axis in axes[1:]:
        axis.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    axes[-1].legend(frameon=False, fontsize=6, markerscale=3)
    _save(figure, path)


def volcanoes(path: Path, true: list[DifferentialTable], found: list[DifferentialTable]) -> None:
    """Fold change and significance of each gene in the types that change most: true above, generated below."""
    by_type = {table.type: table for table in found}
    both = [table for table in true if table.type in by_type]
    chosen = sorted(both, key=lambda table: -len(table.found()))[:3]
    figure, axes = _panels(len(chosen), rows=2)
    for column, table in enumerate(chosen):
        sides = (("true", table), ("generated", by_type[table.type]))
        for axis, (title, side) in zip(axes[column :: len(chosen)], sides, strict=True):
            marked = np.isin(side.genes, sorted(side.found()))
            height = -np.log10(np.maximum(side.adjusted, 1e-50))
            axis.scatter(side.log2_fold_change, height, s=8, c=np.where(marked, "tab:red", "0.6"))
            axis.set(title=f"{table.type}, {title}", xlabel="log2 fold change", ylabel="-log10 adjusted p")
    _save(figure, path)


def _panels(columns: int, rows: int = 1, width: float = 1.0) -> tuple[Figure, list]:
    figure = Figure(figsize=(PANEL * width * columns, PANEL * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
