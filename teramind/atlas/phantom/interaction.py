"""Which genes interact where: the truth that maps of gene-gene attention are measured by.

Two genes interact within a cell that needs both of them to be what it is, or where a cell of one touches a cell of the
other. Elsewhere they are expressed, too, each on its own: Nr4a2 in layer 6, Th in interneurons, Aqp4 far from vessels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS, TYPE
from teramind.atlas.phantom.genes import PATHWAYS
from teramind.atlas.phantom.tile import Tile
from teramind.errors import InputError

# Cells with their centres this close touch, um.
CONTACT = 13.0


@dataclass(frozen=True)
class Interaction:
    """How a pair of genes interacts.

    Attributes:
        genes: the pair.
        within: types of cells in which both act together.
        between: two types of cells that touch; empty for none.
    """

    genes: tuple[str, str]
    within: tuple[str, ...] = ()
    between: tuple[str, ...] = ()


INTERACTIONS = (
    Interaction(PATHWAYS["GLUT"], within=("transition neuron",)),
    Interaction(PATHWAYS["DOPA"], within=("dopaminergic neuron",)),
    Interaction(PATHWAYS["BLOD"], between=("endothelial cell", "astrocyte")),
)


def find_interaction(pair: tuple[str, str]) -> Interaction:
    """The interaction of two genes, in whatever order.

    Raises:
        InputError: they do not interact.
    """
    for interaction in INTERACTIONS:
        if set(interaction.genes) == set(pair):
            return interaction
    known = ", ".join(" and ".join(interaction.genes) for interaction in INTERACTIONS)
    raise InputError(f"{' and '.join(pair)} do not interact in the phantom; the pairs that do are {known}")


def interacting_cells(cells: Cells, interaction: Interaction) -> npt.NDArray[np.bool_]:
    """Which of the cells take part.

    Args:
        cells: of a box; what touches a cell outside of it is not known.
        interaction: of which genes.
    """
    taking_part = np.isin(cells.type, [TYPE[name] for name in interaction.within])
    if interaction.between:
        first, second = (np.flatnonzero(cells.type == TYPE[name]) for name in interaction.between)
        places = np.stack([cells.x, cells.y, cells.z], axis=1)
        if len(first) and len(second):
            for these, others in ((first, second), (second, first)):
                distance, _ = KDTree(places[others]).query(places[these])
                taking_part[these[distance < CONTACT]] = True
    return taking_part


def mark_bins(cells: Cells, tile: Tile) -> npt.NDArray[np.bool_]:
    """The bins of a tile that the bodies of cells cover, at least those that hold a centre; (rows, columns)."""
    bin_side = BIN_SIZE * tile.pixel_size
    count = tile.side // BIN_SIZE
    marked = np.zeros((count, count), dtype=bool)
    row, column = (cells.y - tile.y_range[0]) / bin_side, (cells.x - tile.x_range[0]) / bin_side
    radius = LOOKS["soma"][cells.type] / bin_side
    reach = int(np.ceil(radius.max(initial=0)))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            r, c = np.floor(row).astype(np.intp) + dy, np.floor(column).astype(np.intp) + dx
            covered = (r + 0.5 - row) ** 2 + (c + 0.5 - column) ** 2 < radius**2
            covered |= (dy == 0) & (dx == 0)
            covered &= (r >= 0) & (r < count) & (c >= 0) & (c < count)
            marked[r[covered], c[covered]] = True
    return marked
