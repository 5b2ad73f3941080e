"""Cells of a tissue: where they lie, what they are, what they express."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, hstack, vstack

from teramind.errors import InputError

Labels = NDArray[np.str_]
"""One text a cell; the empty text where nothing is known."""


@dataclass(frozen=True)
class Cells:
    """n cells in a common frame.

    Attributes:
        positions: (n, 3) mm in the order (ML, DV, AP), or (n, 2) within a plane; float64.
        types: (n,) type of each cell, "" where unknown; None if the cells have none.
        counts: (n, G) expression, sparse; None if it was not measured.
        genes: G names, the columns of ``counts``.
        sections: (n,) name of the slice that each cell was measured in; None if they come from none.
        metadata: further labels, name -> (n,) texts: species, technology, disease_state, ...
        panels: (P, G) which genes each of P panels measured; a gene outside a cell's panel is zero in ``counts`` and
            says nothing. None if all genes were measured in all cells.
        panel: (n,) index of each cell's panel; None with ``panels``.
    """

    positions: NDArray[np.float64]
    types: Labels | None = None
    counts: csr_array | None = None
    genes: tuple[str, ...] = ()
    sections: Labels | None = None
    metadata: Mapping[str, Labels] = field(default_factory=dict)
    panels: NDArray[np.bool_] | None = None
    panel: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[1] not in (2, 3):
            raise InputError(f"positions have shape {positions.shape}; they have to be (cells, 3) or (cells, 2)")
        if not np.isfinite(positions).all():
            row = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
            raise InputError(f"cell {row} has the position {positions[row].tolist()}; remove cells without coordinates")
        object.__setattr__(self, "positions", positions)
        for name, labels in {"types": self.types, "sections": self.sections, **self.metadata}.items():
            if labels is not None and len(labels) != len(positions):
                raise InputError(f"there are {len(labels)} {name} for {len(positions)} cells; give one a cell")
        shape = (len(positions), len(self.genes))
        if self.counts is not None and self.counts.shape != shape:
            raise InputError(f"counts have shape {self.counts.shape}, but {shape[0]} cells have {shape[1]} genes")
        if (self.panels is None) != (self.panel is None):
            raise InputError("panels and the panel of each cell go together; give both or none")
        if self.panels is not None and self.panel is not None:
            self._check_panels(self.panels.shape, self.panel.shape)

    def _check_panels(self, panels: tuple[int, ...], panel: tuple[int, ...]) -> None:
        if panels[1:] != (len(self.genes),) or panel != (len(self),):
            raise InputError(
                f"panels {panels} of cells {panel} do not fit {len(self)} cells of {len(self.genes)} genes"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: ArrayLike | slice) -> Self:
        """The cells of these rows: a mask, indices or a slice."""
        keep: Any = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(rows, slice) and not keep.size:
            keep = np.zeros(0, dtype=np.intp)  # an empty list has no integer type of its own
        return replace(
            self,
            positions=self.positions[keep],
            types=None if self.types is None else self.types[keep],
            counts=None if self.counts is None else self.counts[keep],
            sections=None if self.sections is None else self.sections[keep],
            metadata={name: labels[keep] for name, labels in self.metadata.items()},
            panel=None if self.panel is None else self.panel[keep],
        )

    def require_types(self, purpose: str) -> Labels:
        """The types; an ``InputError`` that names the purpose if there are none."""
        if self.types is None:
            raise InputError(f"{purpose} needs cell types, and these cells have none")
        return self.types

    def require_counts(self, purpose: str) -> csr_array:
        """The expression; an ``InputError`` that names the purpose if there is none."""
        if self.counts is None:
            raise InputError(f"{purpose} needs expression, and these cells have none")
        return self.counts

    def with_genes(self, genes: Sequence[str]) -> Self:
        """The same cells with these genes as columns, in this order.

        A gene that was not measured is all zero, and in no cell's panel.
        """
        counts = self.require_counts("choosing genes")
        column = {name: index for index, name in enumerate(self.genes)}
        absent = len(self.genes)
        wide = hstack([counts, csr_array((len(self), 1), dtype=counts.dtype)], format="csc")
        columns = [column.get(name, absent) for name in genes]
        panels, panel = _panels(self)
        panels = np.concatenate([panels, np.zeros((len(panels), 1), dtype=bool)], axis=1)[:, columns]
        return replace(
            self, counts=csr_array(wide[:, columns]), genes=tuple(genes), **_unless_all_measured(panels, panel)
        )


def join_cells(parts: Sequence[Cells]) -> Cells:
    """All cells together, with the genes of any part.

    What a part lacks of labels is "", of genes is zero and in the panel of none of its cells.

    Raises:
        InputError: there are no parts, or some have types, expression or sections and others do not.
    """
    if not parts:
        raise InputError("there are no cells to join")
    for name in ("types", "counts", "sections"):
        if len({getattr(part, name) is None for part in parts}) > 1:
            raise InputError(f"some of the cells to join have {name} and others have none")
    genes = tuple(dict.fromkeys(name for part in parts for name in part.genes))
    first = parts[0]
    if first.counts is not None:
        parts = [part.with_genes(genes) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.metadata)
    return Cells(
        positions=np.concatenate([part.positions for part in parts]),
        types=None if first.types is None else np.concatenate([part.require_types("joining") for part in parts]),
        counts=None if first.counts is None else _stacked(parts),
        genes=genes,
        sections=None if first.sections is None else np.concatenate([part.sections for part in parts]),
        metadata={
            name: np.concatenate([part.metadata.get(name, np.full(len(part), "")) for part in parts]) for name in names
        },
        **({} if first.counts is None else _joined_panels(parts)),
    )


def _stacked(parts: Sequence[Cells]) -> csr_array:
    return csr_array(vstack([part.require_counts("joining") for part in parts], format="csr"))


def _panels(cells: Cells) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """The panels of cells, also where all genes were measured."""
    if cells.panels is None or cells.panel is None:
        return np.ones((1, len(cells.genes)), dtype=bool), np.zeros(len(cells), dtype=np.intp)
    return cells.panels, cells.panel


def _unless_all_measured(panels: NDArray[np.bool_], panel: NDArray[np.intp]) -> dict[str, Any]:
    return {"panels": None, "panel": None} if panels.all() else {"panels": panels, "panel": panel}


def _joined_panels(parts: Sequence[Cells]) -> dict[str, Any]:
    """Each panel once, and which of them each cell has; the parts have the same genes."""
    of_parts = [_panels(part) for part in parts]
    panels, place = np.unique(np.concatenate([panels for panels, _ in of_parts]), axis=0, return_inverse=True)
    first = np.cumsum([0] + [len(panels) for panels, _ in of_parts])
    panel = np.concatenate([place.ravel()[start + own] for start, (_, own) in zip(first, of_parts, strict=False)])
    return _unless_all_measured(panels, panel)
