"""The cells of a box of tissue: what they are and where, as far as their genes decide it.

Candidates sit on jittered lattices, one for each manner of packing; which of them are cells, and of which type, follows
from the region at their place. So a cell is a function of the seed and its place on a lattice, whatever box it is asked
for in, and its size and neighbours are the same in every slice that cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.anatomy import Anatomy, Labels
from teramind.atlas.phantom.celltypes import CELL_TYPES, TYPE
from teramind.atlas.phantom.draws import Draws, FloatArray, Purpose, place_ids
from teramind.atlas.phantom.regions import IS_TISSUE, LABEL, REGIONS

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Ranges of z, y, x, um."""


class Lattice(IntEnum):
    """A manner of packing."""

    LOOSE = 0
    DENSE = 1
    VESSEL = 2
    PERIVASCULAR = 3


# Distance of candidates, um, and how far each may lie from its site, as a share of that.
SPACING = {Lattice.LOOSE: 11.0, Lattice.DENSE: 6.7, Lattice.VESSEL: 17.0, Lattice.PERIVASCULAR: 30.0}
JITTER = {Lattice.LOOSE: 0.30, Lattice.DENSE: 0.2}
# Oligodendrocytes lie in rows this far apart in depth, um, and are moved at most this far into them.
FIBRE_SPACING, LONGEST_MOVE = 15.0, 6.0
# The distance of a vessel's cells, and of a perivascular astrocyte, from the vessel's axis, um.
VESSEL_WALL, VESSEL_GAP = 2.2, 7.5
# Share of a vessel's cells that are mural.
MURAL_SHARE = 0.22
# Spread of the logarithm of a cell's size factor: how many transcripts it has, and how bright its cytoplasm is.
SIZE_SPREAD = 0.22

_PRECURSORS = {"oligodendrocyte precursor": 0.05, "microglia": 0.06}
_GLIA = {"astrocyte": 0.22, "oligodendrocyte": 0.09, **_PRECURSORS}

# Share of the sites that hold a cell, and the shares of the types among them.
# fmt: off
COMPOSITION: dict[Lattice, dict[str, tuple[float, dict[str, float]]]] = {
    Lattice.LOOSE: {
        "layer 1": (0.11, {**_GLIA, "bipolar interneuron": 0.25, "astrocyte": 0.4}),
        "layer 2/3": (0.42, {**_GLIA, "layer 2/3 neuron": 1.0, "basket interneuron": 0.07, "bipolar interneuron": 0.1}),
        "layer 4": (0.52, {**_GLIA, "layer 4 neuron": 1.3, "basket interneuron": 0.08, "bipolar interneuron": 0.04}),
        "layer 5": (0.27, {**_GLIA, "layer 5 neuron": 0.9, "basket interneuron": 0.13, "bipolar interneuron": 0.04}),
        "layer 6": (0.42, {**_GLIA, "layer 6 neuron": 1.1, "basket interneuron": 0.06, "bipolar interneuron": 0.04}),
        "white matter": (0.55, {"oligodendrocyte": 0.7, "astrocyte": 0.1, **_PRECURSORS}),
        "molecular layer": (0.13, {**_GLIA, "bipolar interneuron": 0.12, "basket interneuron": 0.12}),
        "transition zone": (0.28, {**_GLIA, "transition neuron": 0.6, "thalamic neuron": 0.25, "layer 6 neuron": 0.25}),
        "thalamus": (0.32, {**_GLIA, "thalamic neuron": 0.9, "basket interneuron": 0.05}),
        "dopaminergic nucleus": (0.29, {**_GLIA, "dopaminergic neuron": 0.75, "thalamic neuron": 0.12}),
    },
    Lattice.DENSE: {
        "granule layer": (0.95, {"granule cell": 0.95, "astrocyte": 0.03, "basket interneuron": 0.02}),
        "ependyma": (0.95, {"ependymal cell": 1.0}),
        "meninges": (0.45, {"meningeal fibroblast": 1.0}),
    },
}
# fmt: on


@dataclass(frozen=True)
class Cells:
    """Cells of a box, in the order of their ids; all lengths in um.

    Attributes:
        id: int64, the same for the same cell in every box.
        type: uint8, an index into ``CELL_TYPES``.
        region: uint8, the label of the region at its centre.
        x: of the centre.
        y: of the centre.
        z: of the centre.
        size: factor, around 1, of its transcripts and of its cytoplasm's brightness.
        direction: rad, from x towards y, of what the place is lined up with: the way to the brain's surface (for apical
            dendrites), fibres, a vessel.
    """

    id: npt.NDArray[np.int64]
    type: npt.NDArray[np.uint8]
    region: Labels
    x: FloatArray
    y: FloatArray
    z: FloatArray
    size: FloatArray
    direction: FloatArray

    def __len__(self) -> int:
        return len(self.id)

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Cells:
        """Some of the cells."""
        return Cells(**{name: values[chosen] for name, values in vars(self).items()})


def cells_in(anatomy: Anatomy, seed: int, box: Box) -> Cells:
    """All cells with their centre in a box.

    Args:
        anatomy: of the same seed.
        seed: of the phantom.
        box: um.
    """
    groups = [_packed(anatomy, seed, lattice, box) for lattice in COMPOSITION]
    groups += [_vessel_cells(anatomy, seed, box), _perivascular_cells(anatomy, seed, box)]
    joined = Cells(**{name: np.concatenate([vars(group)[name] for group in groups]) for name in vars(groups[0])})
    inside = np.ones(len(joined), dtype=bool)
    for values, (low, high) in zip((joined.z, joined.y, joined.x), box, strict=True):
        inside &= (values >= low) & (values < high)
    kept = np.flatnonzero(inside)
    return joined.take(kept[np.argsort(joined.id[kept])])


@dataclass(frozen=True)
class _Sites:
    """Lattice sites around a box.

    Attributes:
        id: of each.
        index: (3, n) its place on the lattice along x, y, z.
        draws: its random numbers.
    """

    id: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    draws: Draws

    def take(self, chosen: npt.NDArray[np.intp]) -> _Sites:
        return _Sites(self.id[chosen], self.index[:, chosen], self.draws.take(chosen))


def _sites(seed: int, lattice: Lattice, box: Box, margin: float) -> _Sites:
    """The sites whose place on the lattice is at most ``margin`` um outside the box."""
    spacing = SPACING[lattice]
    axes = [
        np.arange(int(np.floor((low - margin) / spacing)), int(np.ceil((high + margin) / spacing)), dtype=np.int64)
        for low, high in box
    ]
    iz, iy, ix = (index.ravel() for index in np.meshgrid(*axes, indexing="ij"))
    ids = place_ids(lattice, iz, iy, ix)
    return _Sites(ids, np.stack([ix, iy, iz]), Draws(seed, Purpose.CELLS, ids))


def _packed(anatomy: Anatomy, seed: int, lattice: Lattice, box: Box) -> Cells:
    """The cells of a lattice whose occupation is that of the region."""
    occupancy, type_shares = _TABLES[lattice]
    spacing, jitter = SPACING[lattice], JITTER[lattice]
    # How far a cell may lie from its site: the stagger of half a spacing, its jitter, its move onto a fibre.
    sites = _sites(seed, lattice, box, (0.5 + jitter) * spacing + LONGEST_MOVE)
    ix, iy, iz = sites.index
    # Every second row and plane is shifted by half a spacing: closer packing, and no rows to be seen.
    x = (ix + 0.5 + 0.5 * (iy % 2) + jitter * (2 * sites.draws.uniform(0) - 1)) * spacing
    y = (iy + 0.5 + 0.5 * (iz % 2) + jitter * (2 * sites.draws.uniform(1) - 1)) * spacing
    z = (iz + 0.5 + jitter * (2 * sites.draws.uniform(2) - 1)) * spacing
    region = anatomy.region(x, y, z)
    held = np.flatnonzero(sites.draws.uniform(3) < occupancy[region])
    sites, region, x, y, z = sites.take(held), region[held], x[held], y[held], z[held]
    types = (sites.draws.uniform(4)[:, None] >= type_shares[region]).sum(axis=1).astype(np.uint8)
    outward = anatomy.outward(x, y, z)
    along_surface = np.isin(types, [TYPE[name] for name in _ALONG_SURFACE])
    direction = np.arctan2(outward[1], outward[0]) + np.where(along_surface, np.pi / 2, 0)
    in_rows = np.flatnonzero((region == LABEL["white matter"]) & (types == TYPE["oligodendrocyte"]))
    move = _move_onto_fibre(anatomy.depth(x[in_rows], y[in_rows], z[in_rows]), outward[:, in_rows])
    x[in_rows] += move[0]
    y[in_rows] += move[1]
    return Cells(sites.id, types, region, x, y, z, _sizes(sites.draws), direction)


def _move_onto_fibre(depth: FloatArray, outward: FloatArray) -> FloatArray:
    """The way, (2, n) um, to the nearest of the bundles along which oligodendrocytes lie in rows."""
    excess = depth - np.round(depth / FIBRE_SPACING) * FIBRE_SPACING
    return np.clip(outward * excess, -LONGEST_MOVE, LONGEST_MOVE)


def _vessel_cells(anatomy: Anatomy, seed: int, box: Box) -> Cells:
    """Endothelial and mural cells on the vessels."""
    sites, (x, y, z), direction = _vessel_sites(anatomy, seed, Lattice.VESSEL, box)
    mural = sites.draws.uniform(4) < MURAL_SHARE
    types = np.where(mural, TYPE["mural cell"], TYPE["endothelial cell"]).astype(np.uint8)
    # The nucleus lies in the wall.
    side = np.where(sites.draws.uniform(6) < 0.5, -VESSEL_WALL, VESSEL_WALL)
    x, y = x - side * np.sin(direction), y + side * np.cos(direction)
    cells = Cells(sites.id, types, anatomy.region(x, y, z), x, y, z, _sizes(sites.draws), direction)
    return cells.take(IS_TISSUE[cells.region])


def _perivascular_cells(anatomy: Anatomy, seed: int, box: Box) -> Cells:
    """Astrocytes whose end-feet lie on the vessels."""
    sites, (x, y, z), direction = _vessel_sites(anatomy, seed, Lattice.PERIVASCULAR, box)
    side = np.where(sites.draws.uniform(4) < 0.5, -VESSEL_GAP, VESSEL_GAP)
    x, y = x - side * np.sin(direction), y + side * np.cos(direction)
    types = np.full(len(sites.id), TYPE["astrocyte"], dtype=np.uint8)
    cells = Cells(sites.id, types, anatomy.region(x, y, z), x, y, z, _sizes(sites.draws), direction)
    return cells.take(IS_TISSUE[cells.region])


def _vessel_sites(anatomy: Anatomy, seed: int, lattice: Lattice, box: Box) -> tuple[_Sites, FloatArray, FloatArray]:
    """The sites through whose cell of the lattice a vessel runs: sites, (3, n) places on it, direction in the plane."""
    spacing = SPACING[lattice]
    sites = _sites(seed, lattice, box, VESSEL_GAP)
    start = (sites.index + 0.5) * spacing
    # Most sites are far from any vessel, which the first step tells.
    near = np.flatnonzero(np.abs(anatomy.vessel_step(*start)).max(axis=0) < 1.5 * spacing)
    place, along = anatomy.nearest_vessel(*start[:, near])
    # A point in a neighbour's cell is found from there.
    own = np.flatnonzero((np.floor(place / spacing) == sites.index[:, near]).all(axis=0))
    return sites.take(near[own]), place[:, own], np.arctan2(along[1, own], along[0, own])


def _sizes(draws: Draws) -> FloatArray:
    return np.asarray(np.exp(SIZE_SPREAD * draws.normal(5)))


def _tables(lattice: Lattice) -> tuple[FloatArray, FloatArray]:
    """By region: occupancy (regions,), and cumulative shares of the types (regions, types - 1)."""
    occupancy = np.zeros(len(REGIONS))
    shares = np.zeros((len(REGIONS), len(CELL_TYPES)))
    for name, (share, types) in COMPOSITION[lattice].items():
        label = LABEL[name]
        occupancy[label] = share
        for type_name, weight in types.items():
            shares[label, TYPE[type_name]] = weight
        shares[label] /= shares[label].sum()
    return occupancy, np.cumsum(shares, axis=1)[:, :-1]


_TABLES = {lattice: _tables(lattice) for lattice in COMPOSITION}
_ALONG_SURFACE = ("oligodendrocyte", "ependymal cell", "meningeal fibroblast", "microglia")
