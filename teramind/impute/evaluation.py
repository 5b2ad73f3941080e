"""Predictions beside the truth, and beside what knowing nothing scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.holes import STEEP
from teramind.impute.layout import LayoutScores, layout_scores, neighbour_types
from teramind.impute.metrics import Metric, Mode, soft_scores
from teramind.impute.nulls import null_predictions
from teramind.impute.planes import Plane
from teramind.impute.sections import find_sections

REPORTED: tuple[Metric, ...] = ("spearman", "f1", "composition")
NEAR = 0.05  # mm: cells this close to a plane across the slices lie beside it
DEFAULT_RADII = (0.03, 0.04, 0.05)

FORMAT, FORMAT_VERSION = "teramind-impute-scores", 2


@dataclass(frozen=True)
class Comparison:
    """Scores of several predictions of the same cells.

    Attributes:
        soft: name of a prediction or a null -> metric -> radius (mm) -> score.
        undefined: the same -> spots that were skipped.
        layout: name of a prediction -> scores of its positions.
        neighbour_types: name of a prediction -> difference in which types touch, 0 .. 1.
        genes: in common of truth and predictions.
    """

    soft: Mapping[str, Mapping[str, Mapping[float, float]]]
    undefined: Mapping[str, Mapping[str, Mapping[float, int]]]
    layout: Mapping[str, LayoutScores]
    neighbour_types: Mapping[str, float]
    genes: int

    def to_dict(self) -> dict[str, object]:
        """JSON-able, with a schema version."""
        return {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}

    def table(self) -> str:
        """Soft scores, one line a prediction; then layouts."""
        names, metrics = list(self.soft), list(next(iter(self.soft.values())))
        radii = list(self.soft[names[0]][metrics[0]])
        wide = max(map(len, names))
        lines = [" " * wide + "".join(f"  {metric:<{8 * len(radii) - 2}}" for metric in metrics)]
        lines.append(f"{'r / mm':{wide}}" + "".join(f"  {radius:<6g}" for _ in metrics for radius in radii))
        for name in names:
            values = (self.soft[name][metric][radius] for metric in metrics for radius in radii)
            lines.append(f"{name:{wide}}" + "".join(f"  {value:6.3f}" for value in values))
        lines += ["", f"{'layout':{wide}}  cells  density  spacing  (true)  copies (chance)  log-lik.  neighbours"]
        for name, scores in self.layout.items():
            lines.append(
                f"{name:{wide}}  x{scores.count_ratio:4.2f}  {scores.density_error:7.3f}  {scores.spacing:7.1f}"
                f"  {scores.true_spacing:6.1f}  {scores.copies:6.3f}   {scores.chance_copies:5.3f}"
                f"  {scores.log_likelihood:8.3f}"
                f"  {self.neighbour_types[name]:10.3f}"
            )
        return "\n".join(lines)


def compare(
    truth: Cells,
    predictions: Mapping[str, Cells],
    plane: Plane,
    *,
    given: Cells | None = None,
    radii: Sequence[float] = DEFAULT_RADII,
    mode: Mode = "paper",
    seed: int = 0,
    threads: int | None = None,
) -> Comparison:
    """Score predictions of the cells in a plane; the null baselines of the first are always there too.

    Args:
        truth: true cells with types and expression.
        predictions: by name, at least one.
        plane: in which positions are compared.
        given: cells that the predictions were made from, for the fraction of copies: those of the slices nearest to
            the plane count.
        radii: of neighbourhoods, mm.
        mode: rules of the soft scores.
        seed: of the nulls' shuffling.
        threads: at most; all CPUs if None.

    Raises:
        InputError: no predictions, no cells, no genes or no types in common.
    """
    if not predictions:
        raise InputError("there is no prediction to score")
    genes = [gene for gene in truth.genes if all(gene in set(cells.genes) for cells in predictions.values())]
    if not genes:
        raise InputError("the truth and the predictions share no gene")
    flat_truth = _flat(truth, plane)
    flat = {name: _flat(cells, plane) for name, cells in predictions.items()}
    first = next(iter(flat.values()))
    soft: dict[str, dict[str, dict[float, float]]] = {}
    undefined: dict[str, dict[str, dict[float, int]]] = {}
    for name, cells in (flat | null_predictions(flat_truth, first, seed)).items():
        scores = soft_scores(flat_truth, cells, radii=radii, metrics=REPORTED, mode=mode, genes=genes, threads=threads)
        soft[name] = {metric: {s.size: s.value for s in scores if s.metric == metric} for metric in REPORTED}
        undefined[name] = {metric: {s.size: s.undefined for s in scores if s.metric == metric} for metric in REPORTED}
    points = np.zeros((0, 2)) if given is None else plane.flatten(cells_beside(given, plane).positions)
    return Comparison(
        soft,
        undefined,
        {name: layout_scores(flat_truth.positions, cells.positions, points) for name, cells in flat.items()},
        {name: neighbour_types(flat_truth, cells) for name, cells in flat.items()},
        len(genes),
    )


def cells_beside(given: Cells, plane: Plane) -> Cells:
    """The cells that a prediction could copy: of the nearest slice on either side of a plane, or else near it."""
    offsets = plane.offsets(given.positions)
    near = np.abs(offsets) < NEAR
    if given.sections is None:
        return given[near]
    along = [s for s in find_sections(given) if abs(plane.normal[s.axis]) >= STEEP]
    if not along:
        return given[near]
    away = np.array([offsets[section.rows].mean() for section in along])
    sides = [np.flatnonzero(side) for side in (away <= 0, away > 0)]
    nearest = [along[rows[np.abs(away[rows]).argmin()]].rows for rows in sides if rows.size]
    return given[np.sort(np.concatenate(nearest))]


def _flat(cells: Cells, plane: Plane) -> Cells:
    return replace(cells, positions=plane.flatten(cells.positions))
