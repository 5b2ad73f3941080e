"""Answers measured by a known truth: does a map find where genes interact, does a change remove the right cells?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from teramind.errors import InputError
from teramind.evaluate.nuclei import match_nuclei


def auroc(score: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Chance that a true place scores higher than a false one, ties counted half (Mann-Whitney).

    Args:
        score: any shape.
        truth: the same shape; not 0 is true.

    Returns:
        0.5 for a score that tells nothing; NaN if all places are alike.

    Raises:
        InputError: the shapes differ.
    """
    if score.shape != truth.shape:
        raise InputError(f"scores of shape {score.shape} cannot be judged by a truth of shape {truth.shape}")
    true = truth.ravel() != 0
    positive, negative = int(true.sum()), int((~true).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score.ravel())
    return float((ranks[true].sum() - positive * (positive + 1) / 2) / (positive * negative))


@dataclass(frozen=True)
class MapScore:
    """How well a map tells where genes interact.

    Attributes:
        attention: AUROC of the attention-weighted expression, summed over the genes.
        coexpression: AUROC of raw co-expression, the product of the genes' counts.
        expression: AUROC of raw expression, the sum of the genes' counts.
        gain: of attention over the better of the two: a product is 0 in most bins, and a sum is not co-expression.
        places: how many were judged.
        positives: how many of them are true.
    """

    attention: float
    coexpression: float
    expression: float
    gain: float
    places: int
    positives: int


def score_map(attention: npt.NDArray[Any], expression: npt.NDArray[Any], truth: npt.NDArray[Any]) -> MapScore:
    """Judge a map by a known truth, beside what expression tells alone.

    Args:
        attention: of the window, summed over the genes; any shape.
        expression: (K, ...) counts of each gene.
        truth: the shape of ``attention``; not 0 where the genes interact.
    """
    together = auroc(np.prod(expression.astype(np.float64), axis=0), truth)
    either = auroc(expression.sum(axis=0, dtype=np.float64), truth)
    of_attention = auroc(attention, truth)
    return MapScore(
        attention=of_attention,
        coexpression=together,
        expression=either,
        gain=of_attention - max(together, either),
        places=truth.size,
        positives=int(np.count_nonzero(truth)),
    )


@dataclass(frozen=True)
class RemovalScore:
    """Whether the cells that a change removes are those that it should.

    What is there by chance is what as many nuclei lost at random would give.

    Attributes:
        nuclei: in the image without the change.
        lost: those that the image with the change lacks.
        of_type: nuclei that are cells of the type.
        of_type_lost: how many of them are lost.
        other: nuclei that are cells of other types; what is left over is no known cell.
        other_lost: how many of them are lost.
    """

    nuclei: int
    lost: int
    of_type: int
    of_type_lost: int
    other: int
    other_lost: int

    @property
    def recall(self) -> float:
        """Share of the type's nuclei that are lost."""
        return _share(self.of_type_lost, self.of_type)

    @property
    def chance_recall(self) -> float:
        """The recall by chance."""
        return _share(self.lost, self.nuclei)

    @property
    def precision(self) -> float:
        """Share of the lost nuclei that are of the type; one that is no known cell counts as a false one."""
        return _share(self.of_type_lost, self.lost)

    @property
    def chance_precision(self) -> float:
        """The precision by chance."""
        return _share(self.of_type, self.nuclei)

    @property
    def known_precision(self) -> float:
        """The precision among the nuclei that are known cells: what is none is neither of the type nor another."""
        return _share(self.of_type_lost, self.of_type_lost + self.other_lost)

    @property
    def chance_known_precision(self) -> float:
        """That by chance."""
        return _share(self.of_type, self.of_type + self.other)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def score_removal(
    nuclei: npt.NDArray[np.float64],
    lost: npt.NDArray[np.bool_],
    cells: npt.NDArray[np.float64],
    is_type: npt.NDArray[np.bool_],
    radius: float,
) -> RemovalScore:
    """Judge which nuclei are lost by the cells that are known to be there.

    Args:
        nuclei: (n, 2) places of the nuclei in the image without the change.
        lost: (n,) which of them the image with the change lacks. A lost one that is no known cell is a false one.
        cells: (m, 2) true places of all cells.
        is_type: (m,) which of them should be removed.
        radius: within which a nucleus and a cell are the same, in the unit of the places.
    """
    matches = match_nuclei(cells, nuclei, radius)
    type_of = np.zeros(len(nuclei), np.int8)  # 0 unknown, 1 another type, 2 the type
    type_of[matches.found] = 1 + is_type[matches.truth]
    return RemovalScore(
        nuclei=len(nuclei),
        lost=int(lost.sum()),
        of_type=int((type_of == 2).sum()),
        of_type_lost=int((lost & (type_of == 2)).sum()),
        other=int((type_of == 1).sum()),
        other_lost=int((lost & (type_of == 1)).sum()),
    )
