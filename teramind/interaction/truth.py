"""Answers measured by a known truth: does a map find where genes interact, does a change remove the right cells?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from teramind.errors import InputError
from teramind.evaluate.nuclei import match_nuclei

SHUFFLES = 20


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
        shuffled: AUROC of the attention of other places: 0.5 but for its sampling error.
        places: how many were judged.
        positives: how many of them are true.
    """

    attention: float
    coexpression: float
    expression: float
    gain: float
    shuffled: float
    places: int
    positives: int


def score_map(
    attention: npt.NDArray[Any], expression: npt.NDArray[Any], truth: npt.NDArray[Any], *, seed: int = 0
) -> MapScore:
    """Judge a map by a known truth, beside what expression tells alone.

    Args:
        attention: of the window, summed over the genes; any shape.
        expression: (K, ...) counts of each gene.
        truth: the shape of ``attention``; not 0 where the genes interact.
        seed: of the shuffling.
    """
    generator = np.random.default_rng(seed)
    shuffled = [auroc(generator.permutation(attention.ravel()), truth.ravel()) for _ in range(SHUFFLES)]
    together = auroc(np.prod(expression.astype(np.float64), axis=0), truth)
    either = auroc(expression.sum(axis=0, dtype=np.float64), truth)
    of_attention = auroc(attention, truth)
    return MapScore(
        attention=of_attention,
        coexpression=together,
        expression=either,
        gain=of_attention - max(together, either),
        shuffled=float(np.mean(shuffled)),
        places=truth.size,
        positives=int(np.count_nonzero(truth)),
    )


@dataclass(frozen=True)
class RemovalScore:
    """Whether the cells that a change removes are those that it should.

    Attributes:
        precision: share of the lost nuclei that are of the type.
        recall: share of the type's nuclei, of those that were there, that are lost.
        lost: nuclei that only the image without the change has.
        of_type: nuclei of the type in the image without the change.
        other: nuclei of other types in it.
        other_lost: how many of those are lost.
    """

    precision: float
    recall: float
    lost: int
    of_type: int
    other: int
    other_lost: int


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
    right = int((lost & (type_of == 2)).sum())
    of_type, gone = int((type_of == 2).sum()), int(lost.sum())
    return RemovalScore(
        precision=right / gone if gone else float("nan"),
        recall=right / of_type if of_type else float("nan"),
        lost=gone,
        of_type=of_type,
        other=int((type_of == 1).sum()),
        other_lost=int((lost & (type_of == 1)).sum()),
    )
