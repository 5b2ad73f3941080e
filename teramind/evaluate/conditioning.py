"""Is the image made from the genes? Views of an atlas whose genes lie elsewhere, and the score of chance."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import cached_property

import numpy as np
import numpy.typing as npt

from teramind.atlas.layout import BIN_SIZE, ceil_div
from teramind.atlas.store import AlteredAtlas, Atlas
from teramind.errors import InputError
from teramind.evaluate.nuclei import Nuclei, match_nuclei


class ShuffledAtlas(AlteredAtlas):
    """An atlas with its transcripts shuffled in space; images and regions stay where they are.

    The plane is cut into blocks, and blocks change places with others of their size, all slices alike. What a block
    holds, its counts and their relation across slices, stays as it was; where it lies says nothing any more. It can be
    given to ``generate`` in the atlas' place. Small windows cost as much as the blocks that they touch.

    Attributes:
        seed: of the permutation.
        block: side of the blocks, px.
    """

    seed: int
    block: int

    @property
    def fingerprint(self) -> str:
        """Another one than the atlas': it is not the same content."""
        return hashlib.sha256(f"{super().fingerprint} shuffled {self.seed} {self.block}".encode()).hexdigest()

    def gene_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint16]:
        """See ``Atlas.gene_window``."""
        out = np.zeros((len(self.genes), *_bins(z0, z1, y0, y1, x0, x1)), dtype=np.uint16)
        for target, source in self._pieces(y0, y1, x0, x1):
            out[:, :, *target] = super().gene_window(z0, z1, *source)
        return out

    def count_window(self, z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint32]:
        """See ``Atlas.count_window``."""
        out = np.zeros(_bins(z0, z1, y0, y1, x0, x1), dtype=np.uint32)
        for target, source in self._pieces(y0, y1, x0, x1):
            out[:, *target] = super().count_window(z0, z1, *source)
        return out

    @cached_property
    def _sources(self) -> npt.NDArray[np.int64]:
        """(rows, columns, 2): row and column of the block that lies in each block's place."""
        height, width = self.metadata.shape
        shape = ceil_div(height, self.block), ceil_div(width, self.block)
        places = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1)
        groups = defaultdict(list)  # the last row and column may be narrower
        for row, column in places.reshape(-1, 2).tolist():
            groups[row == shape[0] - 1, column == shape[1] - 1].append((row, column))
        generator = np.random.default_rng(self.seed)
        sources = places.copy()
        for group in groups.values():
            here = np.array(group)
            sources[here[:, 0], here[:, 1]] = generator.permutation(here)
        return sources

    def _pieces(
        self, y0: int, y1: int, x0: int, x1: int
    ) -> list[tuple[tuple[slice, slice], tuple[int, int, int, int]]]:
        """Where the parts of a window of px lie in it, in bins, and where their transcripts come from."""
        rows, columns = self._sources.shape[:2]
        pieces = []
        for row in range(max(0, y0 // self.block), min(rows, ceil_div(y1, self.block))):
            for column in range(max(0, x0 // self.block), min(columns, ceil_div(x1, self.block))):
                top, bottom = max(y0, row * self.block), min(y1, (row + 1) * self.block)
                left, right = max(x0, column * self.block), min(x1, (column + 1) * self.block)
                dy, dx = ((self._sources[row, column] - (row, column)) * self.block).tolist()
                target = (
                    slice((top - y0) // BIN_SIZE, (bottom - y0) // BIN_SIZE),
                    slice((left - x0) // BIN_SIZE, (right - x0) // BIN_SIZE),
                )
                pieces.append((target, (top + dy, bottom + dy, left + dx, right + dx)))
        return pieces


def shuffle_genes(atlas: Atlas, seed: int, block: int = 64) -> ShuffledAtlas:
    """A view of an atlas whose transcripts are shuffled in space.

    Args:
        atlas: any; it is not changed, and the view needs it no longer than its files are there.
        seed: of the permutation.
        block: side of the blocks that change places, px, a multiple of 16.

    Raises:
        InputError: blocks do not consist of bins, or there are fewer than two of them.
    """
    if block < BIN_SIZE or block % BIN_SIZE:
        raise InputError(f"blocks of {block} px do not consist of bins of {BIN_SIZE} px; give a multiple")
    height, width = atlas.metadata.shape
    if ceil_div(height, block) * ceil_div(width, block) < 2:
        raise InputError(f"an atlas of {height} x {width} px is one block of {block} px: there is nothing to shuffle")
    view = ShuffledAtlas.__new__(ShuffledAtlas)
    vars(view).update({name: value for name, value in vars(atlas).items() if name != "_sources"})
    view.seed, view.block = seed, block
    return view


def chance_matches(
    truth: Nuclei, size: tuple[float, float], radius: float, least_shift: float, seed: int, repeats: int
) -> npt.NDArray[np.int64]:
    """Pairs of true nuclei with the true nuclei displaced: what an image of the right tissue gets at the wrong place.

    The displacement is around the torus that the region is closed to, so that number and pattern stay.

    Args:
        truth: nuclei of a slice of the region, whose corner is (0, 0).
        size: of the region, um, along y and x.
        radius: for matching, um.
        least_shift: um; random shifts are larger, in one direction at least.
        seed: of the shifts.
        repeats: how many shifts.

    Returns:
        (repeats,): pairs after each shift.
    """
    generator = np.random.default_rng(seed)
    shifts = [_shift(generator, size, least_shift) for _ in range(repeats)]
    moved = ((truth.places + shift) % size for shift in shifts)
    return np.array([len(match_nuclei(truth.places, places, radius).truth) for places in moved])


def _shift(generator: np.random.Generator, size: tuple[float, float], least: float) -> npt.NDArray[np.float64]:
    """A random displacement on the torus, away from none at all."""
    least = min(least, max(size) / 4)
    while True:
        shift = generator.uniform(0, size)
        if np.minimum(shift, size - shift).max() >= least:
            return shift


def _bins(z0: int, z1: int, y0: int, y1: int, x0: int, x1: int) -> tuple[int, int, int]:
    """Shape of a window of px, in slices and bins."""
    if any(bound % BIN_SIZE for bound in (y0, y1, x0, x1)):
        raise InputError(f"the window {y0}:{y1},{x0}:{x1} px does not lie on bins of {BIN_SIZE} px")
    return z1 - z0, (y1 - y0) // BIN_SIZE, (x1 - x0) // BIN_SIZE
