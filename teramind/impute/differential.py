"""Which genes differ between two sets of cells, type by type: a rank test for each gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, mannwhitneyu

from teramind.errors import InputError
from teramind.files import appears_whole
from teramind.impute.cells import Cells

FORMAT, FORMAT_VERSION = "teramind-differential-expression", 1
FEWEST_CELLS = 5  # of a type, on each side
PSEUDO_COUNT = 0.1  # added to both means, so that the fold change of a rare gene stays finite


@dataclass(frozen=True)
class DifferentialTable:
    """Genes of one type; arrays (genes,).

    Attributes:
        type: the cells' type.
        genes: names.
        log2_fold_change: of the mean of ``cells`` over that of ``control``.
        p_value: of the two-sided Mann-Whitney test, corrected for ties.
        adjusted: p values adjusted for the number of genes (Benjamini and Hochberg).
    """

    type: str
    genes: tuple[str, ...]
    log2_fold_change: NDArray[np.float64]
    p_value: NDArray[np.float64]
    adjusted: NDArray[np.float64]

    def found(self, level: float = 0.05, fold: float = 1.5) -> set[str]:
        """Genes whose adjusted p value is below ``level`` and that change at least ``fold`` times either way."""
        chosen = (self.adjusted < level) & (np.abs(self.log2_fold_change) >= np.log2(fold))
        return {gene for gene, keep in zip(self.genes, chosen, strict=True) if keep}


def differential_expression(cells: Cells, control: Cells) -> list[DifferentialTable]:
    """Compare the expression of cells with that of a control, for each type that has at least 5 cells in both.

    Args:
        cells: with types and expression.
        control: likewise; genes are matched by name.

    Raises:
        InputError: no gene or no type in common.
    """
    genes = [gene for gene in cells.genes if gene in set(control.genes)]
    if not genes:
        raise InputError("the cells and their control share no gene")
    sides = [side.with_genes(genes) for side in (cells, control)]
    types = [side.require_types("differential expression") for side in sides]
    tables = []
    for name in sorted(set(types[0].tolist()) & set(types[1].tolist()) - {""}):
        rows = [np.flatnonzero(labels == name) for labels in types]
        if min(map(len, rows)) < FEWEST_CELLS:
            continue
        x, y = (s.require_counts("a rank test")[r].toarray() for s, r in zip(sides, rows, strict=True))
        tables.append(_compare(name, genes, x, y))
    if not tables:
        raise InputError(f"no type has {FEWEST_CELLS} cells both among the cells and in their control")
    return tables


def write_tables(
    path: str | Path, tables: Sequence[DifferentialTable], compared: str = "cells over their control"
) -> None:
    """Write tables as one tab-separated file, most significant genes of each type first.

    Args:
        path: the file. Its first line, a comment, has the version of the format and what was compared.
        tables: of the types.
        compared: what is over what in the fold changes.
    """
    lines = [
        f"# {FORMAT} version {FORMAT_VERSION}: {' '.join(compared.split())}",
        "type\tgene\tlog2_fold_change\tp_value\tadjusted_p_value",
    ]
    for table in tables:
        for index in np.lexsort((-np.abs(table.log2_fold_change), table.adjusted)):
            values = (table.log2_fold_change[index], table.p_value[index], table.adjusted[index])
            lines.append("\t".join([table.type, table.genes[index], *(f"{value:.6g}" for value in values)]))
    with appears_whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _compare(name: str, genes: Sequence[str], x: NDArray[np.float64], y: NDArray[np.float64]) -> DifferentialTable:
    constant = (np.concatenate([x, y]) == x[0]).all(axis=0)  # the test is not defined there: nothing differs
    p_value = np.ones(len(genes))
    if not constant.all():
        p_value[~constant] = mannwhitneyu(x[:, ~constant], y[:, ~constant], axis=0, method="asymptotic").pvalue
    change = np.log2((x.mean(axis=0) + PSEUDO_COUNT) / (y.mean(axis=0) + PSEUDO_COUNT))
    return DifferentialTable(name, tuple(genes), change, p_value, false_discovery_control(p_value))
