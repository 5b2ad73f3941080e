"""Imputed cells as slices of an atlas: each cell's counts become transcripts around it, for images to be generated.

The atlas frame is the common frame in um up to an origin: x, y and z of a transcript are ML, DV and AP.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teramind.atlas.insert import NewSlice, with_slices
from teramind.atlas.store import Atlas
from teramind.checks import integer_between
from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.planes import Plane, Positions

log = logging.getLogger(__name__)

SPREAD_UM = 3.0
"""Standard deviation of transcripts around their cell's centre, along each axis: the radius of a body is 4 to 8 um."""

REACH = 4  # spreads within which transcripts lie around their cell


@dataclass(frozen=True)
class Slab:
    """Imputed cells between two parallel planes, and how many slices to cut them into.

    Attributes:
        cells: with expression; their AP lies in the slab.
        plane: the middle; coronal.
        thickness: mm.
        slices: how many.

    Raises:
        InputError: a plane that is not coronal, as the slices of an atlas are, or no slices.
    """

    cells: Cells
    plane: Plane
    thickness: float
    slices: int = 1

    def __post_init__(self) -> None:
        check_slab(self.plane, self.thickness, self.slices)


def check_slab(plane: Plane, thickness: float, slices: int) -> None:
    """Raise the errors of ``Slab``, before its cells are there."""
    if plane.normal != (0.0, 0.0, 1.0):
        raise InputError("the slices of an atlas are coronal, and this plane is not: fill coronal:AP")
    integer_between("the number of slices", slices, 1, 2**12)
    if not 0 < thickness < np.inf:
        raise InputError(f"the slab's thickness is {thickness} mm; it has to be > 0")


def slice_places(plane: Plane, thickness: float, slices: int, origin: Sequence[float]) -> list[float]:
    """Places (um of the atlas frame) of the slices that a slab is cut into; raises the errors of ``Slab``."""
    check_slab(plane, thickness, slices)
    middle, step = 1000 * (plane.offset - origin[2]), 1000 * thickness / slices
    return [middle + (number - (slices - 1) / 2) * step for number in range(slices)]


def check_cells(atlas: Atlas, slabs: Sequence[Slab], origin: Sequence[float], spread_um: float) -> None:
    """Raise what ``add_virtual_slices`` would for these cells, whose expression may still have to be written.

    Raises:
        InputError: an impossible spread, no cells, none of their genes in the atlas, or none of them in its frame.
    """
    if not 0 <= spread_um < np.inf:
        raise InputError(f"the spread of transcripts is {spread_um} um; it must not be negative")
    if not sum(len(slab.cells) for slab in slabs):
        raise InputError("there are no cells to write as slices")
    for slab in slabs:
        if not set(slab.cells.genes) & set(atlas.genes):
            raise InputError(f"the cells' genes, {', '.join(slab.cells.genes[:3])}, ..., are none of the atlas'")
    _, height, width = atlas.shape
    flat = np.concatenate([slab.cells.positions[:, :2] for slab in slabs]) - np.asarray(origin[:2])
    beyond = np.maximum(-flat, flat - np.array([width, height]) * atlas.pixel_size / 1000).max(axis=1)
    if not (1000 * beyond <= REACH * spread_um).any():
        raise InputError("none of the cells lies in the atlas frame: give the ML, DV, AP of its first pixel as origin")


@dataclass(frozen=True)
class DenserAtlas:
    """An atlas with virtual slices.

    Attributes:
        atlas: the new store.
        added: numbers of its virtual slices.
        transcripts: that were written.
        outside: that lie outside the atlas frame and were left out.
        unknown: of genes that the atlas lacks, left out as well.
    """

    atlas: Atlas
    added: tuple[int, ...]
    transcripts: int
    outside: int
    unknown: int


def add_virtual_slices(
    atlas: Atlas | str | os.PathLike[str],
    output: str | os.PathLike[str],
    slabs: Sequence[Slab],
    *,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    spread_um: float = SPREAD_UM,
    seed: int = 0,
    overwrite: bool = False,
) -> DenserAtlas:
    """Write a copy of an atlas in which imputed cells are further slices, for ``teramind.generate``.

    A cell has as many transcripts as counts (fractions are rounded up as often as they say). They are drawn around its
    centre from a normal distribution; along z they are reflected at the slab's faces, for as many come in from cells
    beyond as go out. So every transcript of the slab is in one of its slices.

    Args:
        atlas: of measured slices; it is only read.
        output: the store to write.
        slabs: cells for the new slices.
        origin: ML, DV and AP, in mm, of the atlas' first pixel and z = 0.
        spread_um: standard deviation of the transcripts around a cell, along each axis.
        seed: of those draws.
        overwrite: replace an atlas that is there.

    Raises:
        InputError: cells without expression, genes that the atlas lacks, a frame that holds none of the cells, slices
            where the atlas has some already, or ``output`` being the atlas itself.
    """
    atlas = atlas if isinstance(atlas, Atlas) else Atlas.open(atlas)
    for slab in slabs:
        slab.cells.require_counts("drawing transcripts")
    check_cells(atlas, slabs, origin, spread_um)
    new, unknown = [], 0
    for number, slab in enumerate(slabs):
        generator = np.random.default_rng([seed, number])
        places, gene = _drawn(slab.cells, atlas.genes, spread_um, generator)
        known = gene >= 0
        unknown += int((~known).sum())
        around = places[known] - 1000 * np.asarray(origin)
        new += _cut(slab, around, gene[known], origin, atlas.pixel_size)
    total, _, height, width = sum(len(part.gene) for part in new), *atlas.shape
    inside = sum(int(((p.x >= 0) & (p.x < width) & (p.y >= 0) & (p.y < height)).sum()) for p in new)
    if total and not inside:
        raise InputError("none of the cells lies in the atlas frame: give the ML, DV, AP of its first pixel as origin")
    facts = {"origin_mm": list(origin), "spread_um": spread_um, "seed": seed, "transcripts": inside}
    made = with_slices(atlas, output, new, provenance={"virtual": facts}, overwrite=overwrite)
    if lacking := sorted(set(atlas.genes) - {name for slab in slabs for name in slab.cells.genes}):
        log.warning("%d genes of the atlas read as zero in the new slices, %s for one", len(lacking), lacking[0])
    added = tuple(int(number) for number in made.provenance["added_slices"])
    return DenserAtlas(made, added, inside, total - inside, unknown)


def _drawn(
    cells: Cells, atlas_genes: Sequence[str], spread_um: float, generator: np.random.Generator
) -> tuple[Positions, NDArray[np.intp]]:
    """Transcripts around cells: places (n, 3) um in the common frame, and genes (n,), -1 where the atlas lacks it."""
    counts = cells.require_counts("drawing transcripts")
    column = {name: index for index, name in enumerate(atlas_genes)}
    genes = np.array([column.get(name, -1) for name in cells.genes], dtype=np.intp)
    entries = counts.tocoo()
    number = np.floor(entries.data + generator.random(entries.nnz)).astype(np.int64)
    owner, gene = (np.repeat(axis, number) for axis in entries.coords)
    return 1000 * cells.positions[owner] + generator.normal(0, spread_um, (len(owner), 3)), genes[gene]


def _cut(
    slab: Slab, places: Positions, gene: NDArray[np.intp], origin: Sequence[float], pixel_size: float
) -> list[NewSlice]:
    """Slices of transcripts at places (n, 3) um around a slab's middle."""
    thickness, middle = 1000 * slab.thickness, 1000 * (slab.plane.offset - origin[2])
    beyond = np.mod(places[:, 2] - (middle - thickness / 2), 2 * thickness)
    height = thickness - np.abs(thickness - beyond)  # above the lower face, reflected at both
    index = np.minimum((height * slab.slices / thickness).astype(np.intp), slab.slices - 1)
    found = []
    for number, z in enumerate(slice_places(slab.plane, slab.thickness, slab.slices, origin)):
        rows = index == number
        x, y = places[rows, :2].T / pixel_size
        found.append(NewSlice(z, x, y, gene[rows]))
    return found
