"""What is done to genes, and an atlas in which it is done: the same store, with other counts."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zarr
from scipy.special import ndtr
from scipy.stats import binom

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import AlteredAtlas, Atlas
from teramind.diffusion.noise import noise_field
from teramind.errors import InputError
from teramind.interaction.areas import Area
from teramind.interaction.pathways import gene_indices

MOST = 2**16 - 1
"""Transcripts of a gene that a bin can hold."""

Counts = npt.NDArray[np.uint16]
Bins = npt.NDArray[np.bool_]
Corner = tuple[int, int, int]


class Change(Protocol):
    """Something that is done to genes.

    Attributes:
        genes: names that it concerns.
    """

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes that it concerns."""

    def apply(self, planes: Sequence[Counts], bins: Bins, corner: Corner) -> None:
        """Do it, in place.

        Args:
            planes: counts (z, h, w) of each of ``genes``.
            bins: (z, h, w), where to do it.
            corner: slice, row and column, in bins, of the planes' first bin in the atlas.
        """


@dataclass(frozen=True)
class SetGene:
    """A gene is given a count in every bin; 0 knocks it out."""

    gene: str
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST:
            raise InputError(
                f"{self.gene} cannot be set to {self.count}: a bin holds 0 to {MOST:,} transcripts of a gene"
            )

    @property
    def genes(self) -> tuple[str, ...]:
        """See ``Change``."""
        return (self.gene,)

    def apply(self, planes: Sequence[Counts], bins: Bins, corner: Corner) -> None:
        """See ``Change``."""
        del corner
        planes[0][bins] = self.count

    def __str__(self) -> str:
        return f"{self.gene}={self.count}"


@dataclass(frozen=True)
class ScaleGene:
    """A gene is read more or less often by a factor.

    Counts stay whole: each transcript is kept, or doubled, with the probability that the factor's fraction gives. The
    draw of a bin depends on the gene and the bin alone, so that overlapping windows agree.
    """

    gene: str
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= MOST:
            raise InputError(f"{self.gene} cannot be scaled by {self.factor:g}: give a factor from 0 to {MOST:,}")

    @property
    def genes(self) -> tuple[str, ...]:
        """See ``Change``."""
        return (self.gene,)

    def apply(self, planes: Sequence[Counts], bins: Bins, corner: Corner) -> None:
        """See ``Change``."""
        [plane] = planes
        chosen = bins & (plane > 0)
        before = plane[chosen].astype(np.int64)
        whole = int(self.factor)
        normals = noise_field(zlib.crc32(self.gene.encode()), *corner, (1, *plane.shape))[0][chosen]
        drawn = np.asarray(binom.ppf(ndtr(normals.astype(np.float64)), before, self.factor - whole))
        after = before * whole + np.maximum(drawn, 0).astype(np.int64)
        if after.size and after.max() > MOST:
            raise InputError(f"{self.gene} scaled by {self.factor:g} gives a bin more than {MOST:,} transcripts")
        plane[chosen] = after

    def __str__(self) -> str:
        return f"{self.gene}*{self.factor:g}"


@dataclass(frozen=True)
class SwapGenes:
    """Two genes exchange their counts."""

    first: str
    second: str

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise InputError(f"{self.first} cannot be swapped with itself: name two genes")

    @property
    def genes(self) -> tuple[str, ...]:
        """See ``Change``."""
        return self.first, self.second

    def apply(self, planes: Sequence[Counts], bins: Bins, corner: Corner) -> None:
        """See ``Change``."""
        del corner
        first, second = planes
        first[bins], second[bins] = second[bins], first[bins]

    def __str__(self) -> str:
        return f"{self.first}<->{self.second}"


def parse_changes(
    set_gene: Sequence[str] = (), scale_gene: Sequence[str] = (), swap_genes: Sequence[str] = ()
) -> list[Change]:
    """Read changes as users write them: ``Nr4a2=0``, ``Th=0.5``, ``A,B``; they are done in this order.

    Raises:
        InputError: a text does not read so.
    """
    changes: list[Change] = [SetGene(gene, int(number)) for gene, number in (_pair(text, int) for text in set_gene)]
    changes += [ScaleGene(gene, number) for gene, number in (_pair(text, float) for text in scale_gene)]
    for text in swap_genes:
        names = [name.strip() for name in text.split(",")]
        if len(names) != 2 or not all(names):
            raise InputError(f"{text!r} does not name two genes to swap; write A,B")
        changes.append(SwapGenes(names[0], names[1]))
    return changes


class ChangedAtlas(AlteredAtlas):
    """An atlas whose genes are changed in an area; everything else is as before.

    ``count_window`` is as before on purpose: it decides which tiles are skipped as empty, and these must be the same
    with and without the change.

    Args:
        atlas: without the change: a store, or another view of one.
        changes: done one after the other.
        area: where.

    Raises:
        InputError: the atlas lacks a gene.
    """

    def __init__(self, atlas: Atlas, changes: Sequence[Change], area: Area) -> None:
        super().__init__(atlas.path, atlas.metadata, zarr.open_group(atlas.path, mode="r"))
        self._before = atlas
        self._changes = [(change, gene_indices(change.genes, atlas.genes)) for change in changes]
        self._area = area

    @property
    def fingerprint(self) -> str:
        """Hash of what is in the store and of what is changed."""
        described = "\n".join(
            [self._before.fingerprint, self._area.name, *(str(change) for change, _ in self._changes)]
        )
        return hashlib.sha256(described.encode()).hexdigest()

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> Counts:
        """See ``Atlas.gene_window``."""
        counts = self._before.gene_window(z0, z1, y0, y1, x0, x1)
        bins = self._area.mask(z0, z1, y0, y1, x0, x1)
        inside, corner = self._inside(z0, z1, y0, y1, x0, x1)
        for change, genes in self._changes:
            change.apply([counts[gene][inside] for gene in genes], bins[inside], corner)
        return counts

    def count_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint32]:
        """See ``Atlas.count_window``; without the change."""
        return self._before.count_window(z0, z1, y0, y1, x0, x1)

    def _inside(
        self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int
    ) -> tuple[tuple[slice, slice, slice], Corner]:
        """The part of a window that lies in the atlas, beyond which there are no genes; and its first bin."""
        slices, height, width = self.shape
        ranges = []
        for (start, end), size in zip(
            ((z0, z1), (y0 // BIN_SIZE, y1 // BIN_SIZE), (x0 // BIN_SIZE, x1 // BIN_SIZE)),
            (slices, -(-height // BIN_SIZE), -(-width // BIN_SIZE)),
            strict=True,
        ):
            first = min(max(start, 0), end)
            ranges.append((first - start, max(first, min(end, size)) - start, max(first, 0)))
        z, y, x = (slice(low, high) for low, high, _ in ranges)
        return (z, y, x), (ranges[0][2], ranges[1][2], ranges[2][2])


def _pair(text: str, number: type[int] | type[float]) -> tuple[str, float]:
    gene, sign, value = text.partition("=")
    try:
        if not (gene.strip() and sign):
            raise ValueError
        return gene.strip(), number(value)
    except ValueError:
        kind = "a whole number" if number is int else "a number"
        raise InputError(f"{text!r} does not read as GENE={kind}") from None
