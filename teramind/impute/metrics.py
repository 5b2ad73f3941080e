"""Soft scores: does the tissue around each measured cell look like the tissue predicted there?

Cells of a prediction have no partners among the measured ones. So both are summed over the neighbourhood of each
measured cell, a "spot": its expression (correlation, F1) and its types (composition).

Two sets of rules. "paper" is what the paper defines: the mean over spots of each spot's score; a spot at which it is
undefined (nothing varies in the truth) is skipped and counted; where nothing is predicted the score is 0. "reference"
repeats the released code, for comparison with its numbers: one correlation over all spots and genes together, 1e-15
added to the first predicted gene, and the nearest predicted cell left out of the nearest neighbours.

Neither says much alone: F1 tends to 1 with the number of cells in a ball whatever they are, and a correlation pooled
over spots rewards knowing where the tissue ends. Put the scores of ``teramind.impute.nulls`` beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from teramind.checks import integer_between, thread_count
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.neighbourhoods import Neighbourhoods, Sums, nearby_pieces
from teramind.impute.ranks import correlate_rows, rank_rows

Metric = Literal["spearman", "pearson", "f1", "precision", "recall", "composition"]
Mode = Literal["paper", "reference"]
METRICS: tuple[Metric, ...] = get_args(Metric)
CORRELATIONS: tuple[Metric, ...] = ("spearman", "pearson")
DETECTIONS: tuple[Metric, ...] = ("f1", "precision", "recall")
RADII = (0.03, 0.04, 0.05, 0.09, 0.12, 0.15)
"""Radii that the paper and its code report, mm."""

FIRST_GENE_BIAS = 1e-15  # what the reference adds to the first gene that it predicts


@dataclass(frozen=True)
class Score:
    """One metric at one size of neighbourhood.

    Attributes:
        metric: its name.
        size: radius in mm, or the number of neighbours.
        value: the score: the mean over spots (in mode "reference", a correlation is that of all spots together).
        per_spot: (spots,), NaN where undefined.
        genes: names of the genes that entered; empty for the composition.
    """

    metric: Metric
    size: float
    value: float
    per_spot: NDArray[np.float64]
    genes: tuple[str, ...]

    @property
    def undefined(self) -> int:
        """Spots that were skipped."""
        return int(np.isnan(self.per_spot).sum())


def soft_scores(
    truth: Cells,
    prediction: Cells,
    *,
    radii: Sequence[float] = RADII,
    neighbours: int | None = None,
    metrics: Sequence[Metric] = ("spearman", "f1", "composition"),
    mode: Mode = "paper",
    genes: Sequence[str] | None = None,
    spots: NDArray[np.intp] | None = None,
    threads: int | None = None,
) -> list[Score]:
    """Score a prediction against the measured cells.

    A gene enters if both have it and, for correlations, if some cell of either has a count of it.

    Args:
        truth: measured cells; positions (n, 2) within a plane, or (n, 3).
        prediction: cells predicted for the same place, positions in the same frame.
        radii: of the closed balls, mm, any order.
        neighbours: the number of nearest cells to take in place of balls; ``radii`` is then not read.
        metrics: which, of ``METRICS``.
        mode: the rules; see the module.
        genes: use no others.
        spots: rows of ``truth`` to score at; all if None.
        threads: at most; all CPUs if None. The scores do not depend on it.

    Returns:
        Scores, metric by metric, each in the order of the radii.

    Raises:
        InputError: no gene in common, types or expression missing for a metric, radii that are none.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode is {mode!r}; it has to be one of {', '.join(get_args(Mode))}")
    columns = _Columns.of(truth, prediction, metrics, genes)
    scorer = _Scorer(columns, tuple(metrics), mode, np.arange(len(truth)) if spots is None else spots)
    workers = thread_count(threads)
    if neighbours is not None:
        return scorer.run([integer_between("neighbours", neighbours, 1, len(truth) + len(prediction))], True, workers)
    ascending = sorted({float(radius) for radius in radii})
    if not ascending or not 0 < ascending[0] <= ascending[-1] < np.inf:
        raise InputError(f"radii are {list(radii)}; give at least one positive number of mm")
    # The reference's correlations need the sums at all spots at once: one radius at a time.
    groups = [[radius] for radius in ascending] if mode == "reference" else [ascending]
    results = [result for group in groups for result in scorer.run(group, False, workers)]
    return sorted(results, key=lambda result: metrics.index(result.metric))


@dataclass(frozen=True)
class _Columns:
    """Truth and prediction with genes, then types, side by side: one sum over neighbours serves all metrics."""

    truth: Neighbourhoods
    prediction: Neighbourhoods
    genes: tuple[str, ...]
    varied: NDArray[np.intp]  # the genes that enter correlations

    @classmethod
    def of(cls, truth: Cells, prediction: Cells, metrics: Sequence[Metric], genes: Sequence[str] | None) -> _Columns:
        if unknown := sorted(set(metrics) - set(METRICS)):
            raise InputError(f"there is no metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
        if truth.positions.shape[1] != prediction.positions.shape[1]:
            raise InputError("the truth and the prediction have positions of different dimension; project both")
        if not len(truth) or not len(prediction):
            raise InputError("scores need cells in both the truth and the prediction, and one of them has none")
        blocks: list[list[csr_array]] = [[], []]
        common: tuple[str, ...] = ()
        varied = np.zeros(0, dtype=np.intp)
        if set(metrics) - {"composition"}:
            common = _common_genes(truth, prediction, genes)
            counts = [cells.with_genes(common).require_counts("scoring expression") for cells in (truth, prediction)]
            for block, side in zip(blocks, counts, strict=True):
                block.append(side)
            varied = np.flatnonzero(_expressed(counts[0]) & _expressed(counts[1]))
            if not varied.size and set(metrics) & set(CORRELATIONS):
                raise InputError("no gene has counts in both the truth and the prediction; check what was predicted")
        if "composition" in metrics:
            of_truth, of_prediction = (cells.require_types("composition") for cells in (truth, prediction))
            names, codes = np.unique(np.concatenate([of_truth, of_prediction]), return_inverse=True)
            blocks[0].append(_one_hot(codes[: len(truth)], len(names)))
            blocks[1].append(_one_hot(codes[len(truth) :], len(names)))
        sides = [
            Neighbourhoods(cells.positions, csr_array(hstack(block, format="csr")))
            for cells, block in zip((truth, prediction), blocks, strict=True)
        ]
        return cls(sides[0], sides[1], common, varied)


@dataclass(frozen=True)
class _Scorer:
    """Scores at chosen spots, a piece of neighbouring spots at a time."""

    columns: _Columns
    metrics: tuple[Metric, ...]
    mode: Mode
    spots: NDArray[np.intp]

    def run(self, sizes: Sequence[float], nearest: bool, workers: int) -> list[Score]:
        """All metrics at all sizes (one size in mode "reference"): numbers of neighbours if ``nearest``, else radii."""
        centres = self.columns.truth.positions[self.spots]
        values = np.full((len(sizes), len(self.metrics), len(centres)), np.nan)
        pooled = [np.empty((len(centres), len(self.columns.varied))) for _ in range(2 * self._pools)]

        def score_piece(piece: NDArray[np.intp]) -> None:
            sums = self._nearest_sums if nearest else self._ball_sums
            for index, (true, predicted) in enumerate(sums(centres[piece], sizes)):
                values[index][:, piece] = self._scores(true, predicted)
                for kept, side in zip(pooled, self._varied(true, predicted), strict=False):
                    kept[piece] = side

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(score_piece, nearby_pieces(centres)))  # list() raises what a piece raised
        return [
            self._score(metric, size, values[index, row], pooled)
            for index, size in enumerate(sizes)
            for row, metric in enumerate(self.metrics)
        ]

    @property
    def _pools(self) -> bool:
        """Whether correlations are over all spots together."""
        return self.mode == "reference" and bool(set(self.metrics) & set(CORRELATIONS))

    def _ball_sums(self, centres: NDArray[np.float64], radii: Sequence[float]) -> Iterator[_AtSpots]:
        sides = (side.in_balls(centres, radii) for side in (self.columns.truth, self.columns.prediction))
        yield from zip(*sides, strict=True)

    def _nearest_sums(self, centres: NDArray[np.float64], neighbours: Sequence[float]) -> Iterator[_AtSpots]:
        for count in map(int, neighbours):
            true = self.columns.truth.of_nearest(centres, count, skip=1)
            yield true, self.columns.prediction.of_nearest(centres, count, skip=int(self.mode == "reference"))

    def _scores(self, true: Sums, predicted: Sums) -> NDArray[np.float64]:
        """(metrics, spots) from the sums at these spots."""
        genes = len(self.columns.genes)
        scores: dict[Metric, NDArray[np.float64]] = {}
        if set(self.metrics) & set(DETECTIONS):
            scores |= _detection(true[:, :genes] > 0, predicted[:, :genes] > 0, self.mode)
        if set(self.metrics) & set(CORRELATIONS):
            varied = self._varied(true, predicted)
            if "spearman" in self.metrics:
                scores["spearman"] = self._correlation(rank_rows(varied[0]), rank_rows(varied[1]))
            if "pearson" in self.metrics:
                scores["pearson"] = self._correlation(*varied)
        if "composition" in self.metrics:
            scores["composition"] = _cosine(true[:, genes:], predicted[:, genes:])
        return np.stack([scores[metric] for metric in self.metrics])

    def _varied(self, true: Sums, predicted: Sums) -> tuple[Sums, Sums]:
        """The columns that enter correlations."""
        kept = predicted[:, self.columns.varied]
        if self.mode == "reference":
            kept = kept.astype(np.float64)
            kept[:, :1] += FIRST_GENE_BIAS
        return true[:, self.columns.varied], kept

    def _correlation(self, true: Sums, predicted: Sums) -> NDArray[np.float64]:
        """Of each spot; in mode "paper" a prediction in which nothing varies (there is no cell, perhaps) scores 0."""
        values = correlate_rows(true, predicted)
        if self.mode == "paper":
            values[np.isnan(values) & (np.ptp(true, axis=1) > 0)] = 0
        return values

    def _score(
        self, metric: Metric, size: float, per_spot: NDArray[np.float64], pooled: list[NDArray[np.float64]]
    ) -> Score:
        names = self.columns.genes
        if metric == "composition":
            names = ()
        elif metric in CORRELATIONS:
            names = tuple(names[index] for index in self.columns.varied)
        if metric in CORRELATIONS and self._pools:
            flat = [side.reshape(1, -1) for side in pooled]
            value = float(correlate_rows(*(map(rank_rows, flat) if metric == "spearman" else flat))[0])
        else:
            defined = per_spot[~np.isnan(per_spot)]
            value = float(defined.mean()) if defined.size else float("nan")
        return Score(metric, size, value, per_spot, names)


_AtSpots = tuple[Sums, Sums]
"""Sums of the truth and of the prediction."""


def _common_genes(truth: Cells, prediction: Cells, genes: Sequence[str] | None) -> tuple[str, ...]:
    """Genes of both (and of ``genes``), in the order of the truth."""
    allowed = set(prediction.genes) if genes is None else set(prediction.genes) & set(genes)
    common = tuple(name for name in truth.genes if name in allowed)
    if not common:
        raise InputError(
            f"the truth and the prediction share no gene (for example {truth.genes[:3]} and {prediction.genes[:3]})"
        )
    return common


def _expressed(counts: csr_array) -> NDArray[np.bool_]:
    """(genes,) whether any cell has a value other than zero."""
    return np.bincount(counts.indices[counts.data != 0], minlength=counts.shape[1]) > 0


def _one_hot(codes: NDArray[np.intp], kinds: int) -> csr_array:
    return csr_array((np.ones(len(codes)), codes, np.arange(len(codes) + 1)), shape=(len(codes), kinds))


def _detection(true: NDArray[np.bool_], predicted: NDArray[np.bool_], mode: Mode) -> dict[Metric, NDArray[np.float64]]:
    """Of each spot: which genes are there, and which were predicted to be. (spots, genes) each."""
    both = (true & predicted).sum(axis=1)
    in_truth, in_prediction = true.sum(axis=1), predicted.sum(axis=1)
    precision = _ratio(both, in_prediction)
    recall = _ratio(both, in_truth)
    f1 = _ratio(2 * precision * recall, precision + recall)
    if mode == "paper":  # nothing to find, and nothing predicted: neither right nor wrong
        for values in (precision, recall, f1):
            values[(in_truth == 0) & (in_prediction == 0)] = np.nan
    return {"precision": precision, "recall": recall, "f1": f1}


def _cosine(a: Sums, b: Sums) -> NDArray[np.float64]:
    """Cosine of the angle between rows, 0 where one of them is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return _ratio(np.einsum("ij,ij->i", a, b), norm)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """The quotient, 0 where ``below`` is 0."""
    quotient = np.zeros(len(above))
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient
