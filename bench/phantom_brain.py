"""A brain of the phantom's cells, cut along any plane: positions, types and transcripts of every cell are known.

An ellipsoid of a phantom's tissue, in mm: ML, DV and AP are the phantom's x, y and z. A section is a slab; it holds the
cells whose centre lies in it, each with all of its transcripts. "Disease" multiplies some genes in two types. The same
brain drawn anew has the same anatomy and other cells in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import csr_array

from teramind.atlas.phantom import cells as phantom_cells
from teramind.atlas.phantom.anatomy import Anatomy
from teramind.atlas.phantom.celltypes import CELL_TYPES, LOOKS
from teramind.atlas.phantom.genes import GENES, MARKERS, PROFILES
from teramind.atlas.phantom.transcripts import cell_counts
from teramind.impute.cells import Cells
from teramind.impute.planes import Plane

HALF_AXES = np.array([0.55, 0.45, 1.44])  # mm
CENTRE = np.array([3.0, 2.0, 4.0])
SLICES, SPACING = 12, 0.2  # mm
SECTION_THICKNESS = 0.01  # mm
SICK_TYPES = ("layer 6 neuron", "astrocyte")
SICK_FACTOR = 3.0
SICK_GENES = np.arange(len(GENES)) % 5 == 0


@dataclass(frozen=True)
class PhantomBrain:
    """A brain by the seed of its phantom.

    Attributes:
        seed: of anatomy and cells.
        half_axes: (3,) of the ellipsoid, mm.
        centre: (3,) of the ellipsoid, mm.
    """

    seed: int
    half_axes: np.ndarray = field(default_factory=lambda: HALF_AXES)
    centre: np.ndarray = field(default_factory=lambda: CENTRE)

    genes = GENES
    types = np.array([kind.name for kind in CELL_TYPES])

    def cut(
        self, plane: Plane, *, name: str = "", drawn: int = 0, sick: bool = False, thickness: float = SECTION_THICKNESS
    ) -> Cells:
        """Cells of a section; ``drawn`` other than 0 is another brain of the same anatomy."""
        seed = self.seed + 1_000_000 * drawn
        found = phantom_cells.cells_in(Anatomy(self.seed), seed, self._box(plane, thickness))
        positions = np.stack([found.x, found.y, found.z], axis=1) / 1000
        inside = (((positions - self.centre) / self.half_axes) ** 2).sum(axis=1) < 1
        kept = np.flatnonzero(inside & (np.abs(plane.offsets(positions)) <= thickness / 2))
        found, positions = found.take(kept), positions[kept]
        counts = cell_counts(found, seed)
        if sick:
            counts = self._sick(found, counts, np.random.default_rng([seed, 5]))
        metadata = {"disease_state": "sick" if sick else "healthy", "technology": "panelA"}
        return Cells(
            positions,
            self.types[found.type],
            csr_array(counts.astype(np.float32)),
            self.genes,
            np.full(len(positions), name),
            {key: np.full(len(positions), value) for key, value in metadata.items()},
        )

    def coronal_series(
        self, slices: int = SLICES, *, spacing: float = SPACING, name: str = "", **options
    ) -> list[Cells]:
        """Evenly spaced coronal sections through the middle."""
        offsets = self.centre[2] + spacing * (np.arange(slices) - (slices - 1) / 2)
        return [
            self.cut(Plane.coronal(float(ap)), name=f"{name}coronal{index:02d}", **options)
            for index, ap in enumerate(offsets)
        ]

    def _box(self, plane: Plane, thickness: float) -> phantom_cells.Box:
        """A box (z, y, x, um) around a slab across an axis."""
        axis = int(np.argmax(np.abs(plane.normal)))
        low, high = self.centre - self.half_axes, self.centre + self.half_axes
        low[axis], high[axis] = plane.offset - thickness / 2, plane.offset + thickness / 2
        z, y, x = ((1000 * float(low[i]), 1000 * float(high[i])) for i in (2, 1, 0))
        return z, y, x

    def _sick(self, cells: phantom_cells.Cells, counts: csr_array, generator: np.random.Generator) -> csr_array:
        """More transcripts of some genes in some types, without those that the cell lacks altogether."""
        rows = np.isin(self.types[cells.type], SICK_TYPES)
        means = (LOOKS["transcripts"][cells.type] * cells.size)[:, None] * PROFILES[cells.type]
        more = generator.poisson((SICK_FACTOR - 1) * means * (rows[:, None] & SICK_GENES))
        return csr_array(counts + csr_array(more).multiply(counts > 0))


def regulatory_edges() -> list[tuple[str, str]]:
    """Made up: a gene of several types regulates the genes that mark one of them."""
    types_of = {gene: {kind for kind, levels in MARKERS.items() if gene in levels} for gene in GENES}
    return [(a, b) for a in GENES for b in GENES if types_of[b] and types_of[b] < types_of[a]]


def second_panel(cells: Cells, genes: list[str], caught: float, seed: int) -> Cells:
    """As another instrument would measure these cells: it catches a part of the transcripts of some of the genes."""
    counts = cells.counts.copy()
    counts.data = np.random.default_rng(seed).binomial(counts.data.astype(int), caught).astype(np.float32)
    counts.eliminate_zeros()
    metadata = dict(cells.metadata) | {"technology": np.full(len(cells), "panelB")}
    return replace(cells, counts=csr_array(counts), metadata=metadata).with_genes(genes)
