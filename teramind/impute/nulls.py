"""What a prediction without knowledge scores: the lines that every table of soft scores has to carry.

They are given part of the truth, so that a method that does not beat them on a score has shown nothing by it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from teramind.impute.cells import Cells


def null_predictions(truth: Cells, prediction: Cells, seed: int = 0) -> dict[str, Cells]:
    """Predictions that know no more than what their names say.

    Args:
        truth: true cells with types and expression.
        prediction: predicted cells with types and expression.
        seed: of the shuffling.

    Returns:
        "shuffled rows": the predicted cells, their types and expression shuffled: what the layout alone scores.
        "mean profile": all predicted cells with the mean expression of the truth, and types shuffled: what one profile
        for the whole tissue scores. "type means": the true cells, each with the mean expression of its type: what
        knowing every type and place scores.
    """
    order = np.random.default_rng(seed).permutation(len(prediction))
    shuffled = replace(prediction[order], positions=prediction.positions)
    types, counts = truth.require_types("a null baseline"), truth.require_counts("a null baseline")
    mean = csr_array(counts.mean(axis=0).reshape(1, -1))
    everyone = csr_array(np.ones((len(order), 1)))
    names, codes = np.unique(types, return_inverse=True)
    return {
        "shuffled rows": shuffled,
        "mean profile": replace(
            shuffled, counts=csr_array(everyone @ mean), genes=truth.genes, panels=None, panel=None
        ),
        "type means": replace(truth, counts=_group_means(counts, codes, len(names))),
    }


def _group_means(counts: csr_array, group: NDArray[np.intp], groups: int) -> csr_array:
    """Each cell's row replaced by the mean of its group's rows."""
    member = csr_array((np.ones(len(group)), group, np.arange(len(group) + 1)), shape=(len(group), groups))
    sizes = np.bincount(group, minlength=groups)
    means = csr_array((member.T @ counts).multiply(1 / sizes[:, None]))
    return csr_array(member @ means)
