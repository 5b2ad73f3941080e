"""What a prediction without knowledge scores: the lines that every table of soft scores has to carry.

All three lie where the true cells lie, so they know more than any prediction does. A method that does not beat them on
a score has shown nothing by it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from teramind.impute.cells import Cells


def null_predictions(truth: Cells, seed: int = 0) -> dict[str, Cells]:
    """Predictions that know where cells are and no more than what their names say.

    Args:
        truth: true cells with types and expression.
        seed: of the shuffling.

    Returns:
        "shuffled rows": types and expression of a random other cell; "mean profile": the mean expression for every
        cell, and shuffled types; "type means": the true types, each with its mean expression.
    """
    generator = np.random.default_rng(seed)
    types = truth.require_types("a null baseline")
    counts = truth.require_counts("a null baseline")
    order = generator.permutation(len(truth))
    shuffled = replace(truth[order], positions=truth.positions)
    everything = np.zeros(len(truth), dtype=np.intp)
    names, codes = np.unique(types, return_inverse=True)
    return {
        "shuffled rows": shuffled,
        "mean profile": replace(shuffled, counts=_group_means(counts, everything, 1)),
        "type means": replace(truth, counts=_group_means(counts, codes, len(names))),
    }


def _group_means(counts: csr_array, group: np.ndarray, groups: int) -> csr_array:
    """Each cell's row replaced by the mean of its group's rows."""
    cells = np.arange(len(group))
    member = csr_array((np.ones(len(group)), (cells, group)), shape=(len(group), groups))
    sizes = np.bincount(group, minlength=groups)
    means = (member.T @ counts).multiply(1 / np.maximum(sizes, 1)[:, None])
    return csr_array(member @ csr_array(means))
