"""The transcripts of a slice: those of its cells, scattered around each, and a thin uniform background."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import pdtrik

from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.cells import Cells
from teramind.atlas.phantom.celltypes import LOOKS
from teramind.atlas.phantom.draws import Draws, FloatArray, Purpose, place_ids
from teramind.atlas.phantom.genes import GENES, PROFILES
from teramind.atlas.phantom.regions import IS_TISSUE
from teramind.atlas.phantom.tile import Tile

# Spread of a cell's transcripts along each axis, in radii of its body.
SCATTER = 0.55
# Share of the transcripts in the cell's processes, and their spread in the plane, in radii.
PROCESS_SHARE, PROCESS_SCATTER = 0.12, 1.15
# Probability that a cell lacks a gene altogether.
DROPOUT = 0.15
# Transcripts of no cell, per um2 of tissue and outside it.
BACKGROUND_RATE, OUTSIDE_RATE = 0.004, 0.0004
# Side of the squares in which the background is drawn, um.
BACKGROUND_SIDE = 16.0


def cell_transcripts(
    cells: Cells, seed: int, z0: float, z1: float
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """The transcripts of cells between two heights.

    Args:
        cells: which.
        seed: of the phantom.
        z0: lower face of the section, um.
        z1: upper face.

    Returns:
        x and y, um, and the index of the gene, (n,) each, by cell.
    """
    owner, draws, first, gene = _drawn(cells, seed)
    radius = LOOKS["soma"][cells.type[owner]]
    spread = radius * np.where(draws.uniform(first) < PROCESS_SHARE, PROCESS_SCATTER, SCATTER)
    z = cells.z[owner] + SCATTER * radius * draws.normal(first + 1)
    found = (z >= z0) & (z < z1) & ~_dropped_out(seed, cells.id[owner], gene)
    x = (cells.x[owner] + spread * draws.normal(first + 3))[found]
    y = (cells.y[owner] + spread * draws.normal(first + 4))[found]
    return x, y, gene[found]


def cell_counts(cells: Cells, seed: int) -> csr_array:
    """Transcripts of whole cells, wherever in the cell they lie.

    Args:
        cells: which.
        seed: of the phantom.

    Returns:
        (n, genes) float64.
    """
    owner, _, _, gene = _drawn(cells, seed)
    found = ~_dropped_out(seed, cells.id[owner], gene)
    ones = np.ones(int(found.sum()))
    return csr_array((ones, (owner[found], gene[found])), shape=(len(cells), len(GENES)))


def _drawn(cells: Cells, seed: int) -> tuple[npt.NDArray[np.intp], Draws, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The transcripts of cells before any drops out: row of the cell, random numbers, first free number, gene."""
    per_cell = Draws(seed, Purpose.TRANSCRIPTS, cells.id)
    number = _poisson(LOOKS["transcripts"][cells.type] * cells.size, per_cell.uniform(0))
    owner = np.repeat(np.arange(len(cells)), number)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    draws = Draws(seed, Purpose.TRANSCRIPTS, cells.id[owner])
    first = 8 + 8 * place
    return owner, draws, first, _genes_of(cells.type[owner], draws.uniform(first + 2))


def background_transcripts(
    tile: Tile, anatomy: Anatomy, seed: int
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """The transcripts of no cell, in all squares that a tile touches.

    Args:
        tile: which.
        anatomy: of the phantom.
        seed: of the phantom.

    Returns:
        As ``cell_transcripts``.
    """
    axes = [
        np.arange(int(np.floor(low / BACKGROUND_SIDE)), int(np.ceil(high / BACKGROUND_SIDE)), dtype=np.int64)
        for low, high in (tile.y_range, tile.x_range)
    ]
    iy, ix = (index.ravel() for index in np.meshgrid(*axes, indexing="ij"))
    ids = place_ids(0, np.full_like(iy, tile.slice_index), iy, ix)
    region = anatomy.region((ix + 0.5) * BACKGROUND_SIDE, (iy + 0.5) * BACKGROUND_SIDE, tile.z)
    rate = np.where(IS_TISSUE[region], BACKGROUND_RATE, OUTSIDE_RATE) * BACKGROUND_SIDE**2
    number = _poisson(rate, Draws(seed, Purpose.BACKGROUND, ids).uniform(0))
    owner = np.repeat(np.arange(len(ids)), number)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    draws = Draws(seed, Purpose.BACKGROUND, ids[owner])
    first = 4 + 4 * place
    x = (ix[owner] + draws.uniform(first)) * BACKGROUND_SIDE
    y = (iy[owner] + draws.uniform(first + 1)) * BACKGROUND_SIDE
    gene = np.searchsorted(_BACKGROUND_SHARES, draws.uniform(first + 2), side="right")
    return x, y, gene


def _poisson(mean: FloatArray, uniform: FloatArray) -> npt.NDArray[np.intp]:
    """Poisson numbers from uniform ones, by inversion."""
    number: npt.NDArray[np.intp] = np.maximum(np.ceil(pdtrik(uniform, mean)), 0).astype(np.intp)
    return number


def _genes_of(types: npt.NDArray[np.uint8], uniform: FloatArray) -> npt.NDArray[np.intp]:
    """A gene for each transcript, from the profile of its cell's type."""
    # The cumulative profiles stand one behind the other, each raised by its type, so that one search serves all.
    place = np.searchsorted(_CUMULATIVE, types + uniform, side="right").astype(np.intp)
    return place - types.astype(np.intp) * len(GENES)


def _dropped_out(seed: int, cell: npt.NDArray[np.int64], gene: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    return Draws(seed, Purpose.DROPOUT, cell).uniform(gene) < DROPOUT


def _cumulative() -> FloatArray:
    shares = np.cumsum(PROFILES, axis=1)
    shares[:, -1] = 1
    return (shares + np.arange(len(PROFILES))[:, None]).ravel()


_CUMULATIVE = _cumulative()
_BACKGROUND_SHARES = np.cumsum(PROFILES.mean(axis=0))[:-1]
