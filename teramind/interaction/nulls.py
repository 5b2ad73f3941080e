"""Two nulls for the attention that a gene pays to its partners, and the sums that both follow from.

**Placement** asks whether a gene attends to a partner more than both genes' abundance explains. Where the two have
nothing to do with each other, the gene could as well have been read in any other patch nearby. So the attention in a
patch is compared with what the gene, with the counts it has there, would pay if it stood in other patches of the same
block and region that hold transcripts. The difference is 0 on average under the null, whatever the partner's abundance.
How much it varies is taken from the tissue: differences are summed in areas of several blocks, through all z-windows,
and Student's t asks whether the areas' sums have a mean above 0. Neighbouring patches and overlapping windows are alike
within an area, which this does not mind; areas have to be independent, so their side bounds how smooth a tissue may be.

**Shuffled labels** asks whether a partner gets more attention than the others do. Labels are shuffled in each block of
patches on its own, alike in all z-windows, since these overlap. All partners are exchangeable then and share one null
distribution. An abundant gene is no exchangeable one: this null finds it, even if the gene does not care for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

Row = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BlockRows:
    """The gene's rows of attention in a block of patches, summed over those in which the gene was read.

    Attributes:
        block: row and column of the block's first patch, from the region's corner.
        area: row and column of the area that the block lies in.
        attention: (P,) to each partner.
        placed: (P,) the same with the gene placed in other patches of the block, mean over placements.
        patches: in which the gene was read.
    """

    block: tuple[int, int]
    area: tuple[int, int]
    attention: Row
    placed: Row
    patches: int


@dataclass
class RegionSums:
    """What is kept of a region.

    Attributes:
        attention: (P,) summed over patches.
        placed: (P,) the same with the gene placed elsewhere.
        shuffled: (permutations, P) the same as ``attention`` with the partners' labels shuffled.
        areas: area -> (P,) attention less that with the gene placed elsewhere; and patches.
        blocks: those that were seen in any window.
        patches: how many, in all windows.
    """

    attention: Row
    placed: Row
    shuffled: npt.NDArray[np.float64]
    areas: dict[tuple[int, int], tuple[Row, int]] = field(default_factory=dict)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    patches: int = 0

    @classmethod
    def empty(cls, partners: int, permutations: int) -> RegionSums:
        """Of no patch."""
        return cls(np.zeros(partners), np.zeros(partners), np.zeros((permutations, partners)))

    def update(self, rows: BlockRows, generator: np.random.Generator) -> None:
        """Take a block of a window.

        Args:
            rows: of the block.
            generator: of the permutations; it starts alike for a block in every window.
        """
        self.attention += rows.attention
        self.placed += rows.placed
        self.shuffled += generator.permuted(np.broadcast_to(rows.attention, self.shuffled.shape), axis=1)
        surplus = rows.attention - rows.placed
        known, patches = self.areas.get(rows.area, (np.zeros_like(surplus), 0))
        self.areas[rows.area] = known + surplus, patches + rows.patches
        self.blocks.add(rows.block)
        self.patches += rows.patches

    def p_placed(self) -> Row:
        """(P,) chance of as much surplus or more if there were none; 1 for fewer than two areas, which tell nothing.

        An area counts by its patches: the variance of its sum grows with them, and a few large areas among many small
        ones are as good as few.
        """
        if len(self.areas) < 2:
            return np.ones(len(self.attention))
        surplus = np.stack([rows for rows, _ in self.areas.values()])  # (A, P)
        share = np.array([patches for _, patches in self.areas.values()]) / self.patches
        total, concentration = surplus.sum(axis=0), float(np.square(share).sum())
        residual = np.square(surplus - share[:, None] * total).sum(axis=0)
        error = np.sqrt(residual / (1 - concentration))
        t = np.divide(total, error, out=np.zeros_like(error), where=error > 0)
        return np.asarray(student.sf(t, 1 / concentration - 1))

    def p_shuffled(self) -> Row:
        """(P,) chance that shuffled labels give as much or more."""
        null = np.sort(self.shuffled.ravel())
        # Sums in another order differ in their last digits.
        above = len(null) - np.searchsorted(null, self.attention * (1 - 1e-9))
        return np.asarray((1 + above) / (1 + len(null)))
