"""What the expression network reads and writes: genes in regulatory order, labels, coordinates, and bins of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teramind.errors import InputError
from teramind.impute.cells import Cells, Labels

COLUMNS = ("species", "organ", "disease_state", "technology", "class", "subclass", "supertype", "type")
"""Labels of a prompt, in its order: the cells' own type, and metadata. A cell skips what it lacks."""

ANCESTORS = ("class", "subclass", "supertype")
"""Labels that follow from the type."""

VALUE_BINS = 100
COORDINATE_EDGES = 100
TRANSFORM = "log1p"  # of raw counts: what values are learned as

END = 0
"""The token that ends a cell; genes are 1 .. G."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and bins.

    Attributes:
        genes: G names in the order of emission: tokens 1 .. G.
        labels: for each of ``COLUMNS`` that the training data have, its values, each a token.
        value_edges: (bins + 1,) ascending, from 0; bin b >= 1 holds transformed values in (edge[b-1], edge[b]].
        coordinate_edges: (3, 100) ascending, of ML, DV, AP in mm.
        ancestors: for each type the labels of ``ANCESTORS`` that most of its cells have.
        usual: for each of the columns its most frequent value, "" for none.
    """

    genes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    value_edges: NDArray[np.float64]
    coordinate_edges: NDArray[np.float64]
    ancestors: Mapping[str, Mapping[str, str]]
    usual: Mapping[str, str]

    @classmethod
    def of(cls, cells: Cells, genes: Sequence[str]) -> Vocabulary:
        """The vocabulary of training cells.

        Args:
            cells: with types and expression.
            genes: in the order of emission.

        Raises:
            InputError: a gene that no cell has, or no expression at all.
        """
        if missing := sorted(set(genes) - set(cells.genes)):
            raise InputError(f"the gene order names {missing[0]!r} and {len(missing) - 1} others that the cells lack")
        if left_out := sorted(set(cells.genes) - set(genes)):
            raise InputError(f"the gene order lacks {left_out[0]!r} and {len(left_out) - 1} others that the cells have")
        types = cells.require_types("the expression network")
        values = np.unique(transform(cells.require_counts("the expression network").data))
        values = values[values > 0]
        if not values.size:
            raise InputError("no cell expresses any gene")
        if len(values) > VALUE_BINS:
            counted = transform(cells.require_counts("the expression network").data)
            values = np.unique(np.quantile(counted[counted > 0], np.arange(1, VALUE_BINS + 1) / VALUE_BINS))
        columns = _columns(cells)
        labels = {name: tuple(sorted(set(columns[name].tolist()) - {""})) for name in COLUMNS if name in columns}
        labels = {name: known for name, known in labels.items() if known}
        low, high = cells.positions.min(axis=0), cells.positions.max(axis=0)
        return cls(
            tuple(genes),
            labels,
            np.concatenate([[0.0], values]),
            np.linspace(low, high, COORDINATE_EDGES, axis=1),
            {name: _ancestors(cells, types == name) for name in labels.get("type", ())},
            {name: _most_frequent(columns[name]) for name in labels},
        )

    def tuned_to(self, cells: Cells) -> Vocabulary:
        """The same tokens; what is usual is what these cells have, nothing where that is a label without a token."""
        columns = _columns(cells)
        found = {name: _most_frequent(columns.get(name, np.zeros(0, str))) for name in self.labels}
        return replace(self, usual={name: text if text in self.labels[name] else "" for name, text in found.items()})

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 1 + len(self.genes) + sum(map(len, self.labels.values())) + 5

    @property
    def special(self) -> tuple[int, int, int, int, int]:
        """Tokens that begin the ML, DV and AP coordinates, end the prompt, and fill up short rows."""
        first = self.size - 5
        return first, first + 1, first + 2, first + 3, first + 4

    @property
    def pad(self) -> int:
        """The token that fills up short rows."""
        return self.special[4]

    @property
    def bins(self) -> int:
        """Number of bins of values; 0 is none of them and means "no value"."""
        return max(len(self.value_edges), COORDINATE_EDGES + 1) - 1

    def value_bins(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Bins 1 .. of transformed values; what is beyond the training data falls into the outermost bin."""
        return np.searchsorted(self.value_edges, values, side="left").clip(1, len(self.value_edges) - 1)

    def coordinate_bins(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n, 3) bins 1 .. 100 of positions (n, 3)."""
        edges = zip(positions.T, self.coordinate_edges, strict=True)
        return np.stack([np.searchsorted(edge, x, side="left").clip(1, COORDINATE_EDGES) for x, edge in edges], axis=1)

    def label_tokens(self, cells: Cells) -> NDArray[np.int64]:
        """(n, columns) tokens of the cells' labels, -1 where a cell has none.

        Raises:
            InputError: a type that the vocabulary lacks. (Of the other labels an unknown value counts as none.)
        """
        columns = dict(cells.metadata) | ({} if cells.types is None else {"type": cells.types})
        known = set(self.labels.get("type", ()))
        if unknown := sorted(set(columns.get("type", np.zeros(0, str)).tolist()) - known - {""}):
            raise InputError(f"the expression network does not know type {unknown[0]!r} ({len(unknown)} such types)")
        tokens = np.full((len(cells), len(self.labels)), -1)
        first = 1 + len(self.genes)
        for place, (name, values) in enumerate(self.labels.items()):
            if name in columns:
                index = np.searchsorted(values, columns[name]).clip(max=len(values) - 1)
                found = np.asarray(values)[index] == columns[name]
                tokens[found, place] = first + index[found]
            first += len(values)
        return tokens

    def describe(self, types: Labels, conditions: Mapping[str, str]) -> dict[str, Labels]:
        """Metadata for generated cells: what their types imply, what is asked for, and else the usual.

        Args:
            types: (n,) known types.
            conditions: column -> value for all cells, such as {"disease_state": "healthy"}.

        Raises:
            InputError: a column or value that the network was not trained with.
        """
        for name, value in conditions.items():
            if name == "type" or value not in self.labels.get(name, ()):
                offered = {column: values for column, values in self.labels.items() if column != "type"}
                raise InputError(f"the network was not trained with {name} {value!r}; it knows {_listed(offered)}")
        metadata = {}
        for name in self.labels:
            if name in ANCESTORS and name not in conditions:
                metadata[name] = np.array([self.ancestors.get(kind, {}).get(name, "") for kind in types.tolist()], str)
            elif name != "type":
                metadata[name] = np.full(len(types), conditions.get(name, self.usual[name]))
        return metadata

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return {
            "genes": list(self.genes),
            "labels": {name: list(values) for name, values in self.labels.items()},
            "value_edges": self.value_edges.tolist(),
            "coordinate_edges": self.coordinate_edges.tolist(),
            "ancestors": {name: dict(labels) for name, labels in self.ancestors.items()},
            "usual": dict(self.usual),
            "transform": TRANSFORM,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Vocabulary:
        """The inverse of ``to_dict``; an ``InputError`` for another transform of values."""
        if content["transform"] != TRANSFORM:
            raise InputError(f"values were learned as {content['transform']!r}; this teramind knows {TRANSFORM!r}")
        return cls(
            tuple(content["genes"]),
            {name: tuple(values) for name, values in content["labels"].items()},
            np.asarray(content["value_edges"]),
            np.asarray(content["coordinate_edges"]),
            content["ancestors"],
            content["usual"],
        )


def transform(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Raw counts as the values that are learned."""
    return np.log1p(counts.astype(np.float64))


def restore(values: NDArray[Any]) -> NDArray[np.float64]:
    """The inverse of ``transform``."""
    return np.expm1(values.astype(np.float64))


def _columns(cells: Cells) -> dict[str, Labels]:
    """All labels of cells, by column."""
    return {"type": cells.require_types("the expression network")} | dict(cells.metadata)


def _most_frequent(labels: Labels) -> str:
    """The label that most of these cells have, of several the first; "" if none has one."""
    counted = Counter(text for text in labels.tolist() if text)
    return min(counted, key=lambda text: (-counted[text], text), default="")


def _ancestors(cells: Cells, rows: NDArray[np.bool_]) -> dict[str, str]:
    """For each ancestral column the label that most of these cells have."""
    found = {}
    for name in ANCESTORS:
        if name in cells.metadata and (counted := Counter(filter(None, cells.metadata[name][rows].tolist()))):
            found[name] = min(counted, key=lambda text: (-counted[text], text))
    return found


def _listed(labels: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(values[:8])}" for name, values in labels.items()) or "no conditions"
