"""Cells as rows of tokens: a prompt of labels and coordinates, then the expressed genes in order, then the end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.vocabulary import COORDINATE_EDGES, END, Vocabulary, transform

MOST_TOKENS = 512  # of a row
JITTER = 2  # bins by which coordinates are moved in training, at most
FEWEST_GENES = 1  # a training cell has to express


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, filled up on the right.

    Attributes:
        tokens: (n, length) int64.
        bins: (n, length) int64; 0 where a token has no value.
        values: (n, length) float32 transformed values; 0 where a token has none.
        prompt: (n,) lengths of the prompts.
        lengths: (n,) of the rows, with prompt and end.
        offered: (n, 1 + genes) which tokens could follow: the end, and the genes that the cell's panel measured. None
            if all could in all rows.
    """

    tokens: Tensor
    bins: Tensor
    values: Tensor
    prompt: Tensor
    lengths: Tensor
    offered: Tensor | None = None


class Prompts:
    """Prompts of cells: labels in the vocabulary's order without those a cell lacks, coordinates, separator.

    Args:
        vocabulary: of tokens.
        cells: with positions (n, 3).

    Attributes:
        tokens: (n, columns + 4); -1 where a cell has no label.
        bins: (n, columns + 4).
    """

    def __init__(self, vocabulary: Vocabulary, cells: Cells) -> None:
        if cells.positions.shape[1] != 3:
            raise InputError("the expression network reads positions in space; give (n, 3) of them")
        labels = vocabulary.label_tokens(cells)
        fixed = np.broadcast_to(vocabulary.special[:4], (len(cells), 4))
        self.tokens = np.concatenate([labels, fixed], axis=1)
        self.bins = np.zeros_like(self.tokens)
        self.bins[:, -4:-1] = vocabulary.coordinate_bins(cells.positions)

    def left_padded(self, rows: slice, pad: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and bins (n, longest) of some rows, filled up on the left, and which of them are real."""
        present = self.tokens[rows] >= 0
        order = np.argsort(present, axis=1, kind="stable")  # absent ones first, the others in their order
        order = order[:, present.shape[1] - present.sum(axis=1).max(initial=0) :]
        tokens, bins, real = (np.take_along_axis(a, order, 1) for a in (self.tokens[rows], self.bins[rows], present))
        return torch.from_numpy(np.where(real, tokens, pad)), torch.from_numpy(bins), torch.from_numpy(real)


class TokenisedCells:
    """Training cells as tokens; batches are put together from them.

    Args:
        vocabulary: of tokens.
        cells: with expression. Cells that express nothing are left out. A gene that a cell's panel lacks is not
            taken for one that the cell does not express.

    Attributes:
        rows: those of ``cells`` that are kept.
    """

    def __init__(self, vocabulary: Vocabulary, cells: Cells) -> None:
        cells = cells.with_genes(vocabulary.genes)
        counts = cells.require_counts("the expression network")
        self.rows = np.flatnonzero(np.diff(counts.indptr) >= FEWEST_GENES)
        if not self.rows.size:
            raise InputError("no cell expresses any of the vocabulary's genes")
        counts = counts[self.rows]
        counts.sort_indices()
        self.vocabulary = vocabulary
        self.prompts = Prompts(vocabulary, cells[self.rows])
        self.starts, self.genes = counts.indptr, counts.indices.astype(np.int64) + 1  # tokens ascend within a row
        self.values = transform(counts.data)
        self.bins = vocabulary.value_bins(self.values)
        self.offered: NDArray[np.bool_] | None = None
        if cells.panels is not None and cells.panel is not None:
            self.offered = np.pad(cells.panels, ((0, 0), (1, 0)), constant_values=True)  # the end is in every panel
            self.panel = cells.panel[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.intp], *, jitter: NDArray[np.int64] | None = None) -> Batch:
        """Rows of tokens.

        Args:
            rows: (n,) which cells, in the order of this object.
            jitter: (n, 3) bins to move the coordinates by.
        """
        prompts, prompt_bins = self.prompts.tokens[rows], self.prompts.bins[rows].copy()
        if jitter is not None:
            prompt_bins[:, -4:-1] = (prompt_bins[:, -4:-1] + jitter).clip(1, COORDINATE_EDGES)
        present = prompts >= 0
        prompt = present.sum(axis=1)
        expressed = np.minimum(self.starts[rows + 1] - self.starts[rows], MOST_TOKENS - prompt - 1)
        lengths = prompt + expressed + 1
        shape = (len(rows), int(lengths.max()))
        tokens, bins, values = (
            np.full(shape, self.vocabulary.pad),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
        )
        row, column = np.nonzero(present)
        place = present.cumsum(axis=1)[row, column] - 1
        tokens[row, place], bins[row, place] = prompts[row, column], prompt_bins[row, column]
        row = np.repeat(np.arange(len(rows)), expressed)
        within = np.arange(len(row)) - np.repeat(expressed.cumsum() - expressed, expressed)
        source, place = self.starts[rows][row] + within, prompt[row] + within
        tokens[row, place], bins[row, place] = self.genes[source], self.bins[source]
        values[row, place] = self.values[source]
        tokens[np.arange(len(rows)), lengths - 1] = END
        arrays = (tokens, bins, values, prompt, lengths)
        batch = Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
        if self.offered is None:
            return batch
        return replace(batch, offered=torch.from_numpy(self.offered[self.panel[rows]]))


def sampling_weights(cells: Cells) -> NDArray[np.float64]:
    """How often each cell should be shown: rare types and sparse places more often, no cell above the 99th percentile.

    Args:
        cells: with types.

    Returns:
        (n,) one over the square root of the type's frequency and over the number of cells in the cube of 0.25 mm,
        scaled to a mean of 1.
    """
    _, kind, frequency = np.unique(cells.require_types("sampling weights"), return_inverse=True, return_counts=True)
    cubes = np.floor(cells.positions / 0.25).astype(np.int64)
    _, cube, crowd = np.unique(cubes, axis=0, return_inverse=True, return_counts=True)
    weights = 1 / (np.sqrt(frequency[kind]) * crowd[cube.ravel()])
    weights = np.minimum(weights, np.quantile(weights, 0.99))
    return weights / weights.mean()
