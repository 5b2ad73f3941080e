"""Random numbers that belong to things, not to the order in which they are drawn.

A thing (a cell, a wave of a field, a patch of background) has a 64-bit id. Its k-th number is the k-th output of a
SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014) that starts at a hash of the seed, the purpose and the id. So
any thing can be drawn alone, and all of it is integer arithmetic, the same on every machine.
"""

from __future__ import annotations

from copy import copy
from enum import IntEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from teramind.checks import integer_between

FloatArray = npt.NDArray[np.floating[Any]]
Words = npt.NDArray[np.uint64]

LARGEST_SEED = 2**56 - 1

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
# Sum of four uniform 16-bit numbers: its mean and standard deviation.
_SUM_MEAN, _SUM_DEVIATION = 2 * (2**16 - 1), float(np.sqrt(4 * (2**32 - 1) / 12))

_PLACE_BITS = 20

LARGEST_NORMAL = _SUM_MEAN / _SUM_DEVIATION
"""Normals lie within this many standard deviations, 3.46, so that everything drawn has a finite reach."""


class Purpose(IntEnum):
    """What numbers are drawn for; each purpose has numbers of its own."""

    ANATOMY = 0
    CELLS = 1
    MORPHOLOGY = 2
    TRANSCRIPTS = 3
    DROPOUT = 4
    BACKGROUND = 5
    TEXTURE = 6
    NOISE = 7


def key(seed: int, purpose: Purpose, variant: int = 0) -> int:
    """The 64-bit key of a seed's numbers for a purpose and one of its 16 variants; never the same for two of them."""
    return integer_between("the seed", seed, 0, LARGEST_SEED) << 8 | purpose << 4 | variant


def place_ids(
    kind: int, iz: npt.NDArray[np.int64], iy: npt.NDArray[np.int64], ix: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The ids of places on a lattice.

    Args:
        kind: 0 to 7, tells lattices apart.
        iz: place along z, from -2^19 to 2^19 - 1, as the others.
        iy: along y.
        ix: along x.
    """
    ids = np.full(np.shape(ix), kind, dtype=np.int64)
    for index in (iz, iy, ix):
        ids = (ids << _PLACE_BITS) + (index + (1 << _PLACE_BITS - 1))
    return ids


class Draws:
    """The random numbers of many things at once.

    Args:
        seed: 0 to 2^56 - 1.
        purpose: what for.
        ids: (n,) integers of 64 bits, one a thing.
    """

    def __init__(self, seed: int, purpose: Purpose, ids: npt.NDArray[np.int64] | Words) -> None:
        start = _mixed(np.array([key(seed, purpose)], dtype=np.uint64))
        self._state = _mixed(start ^ _mixed(ids.astype(np.uint64)))

    def take(self, chosen: npt.NDArray[np.intp]) -> Self:
        """The numbers of some of the things."""
        part = copy(self)
        part._state = self._state[chosen]
        return part

    def uniform(self, k: int | npt.NDArray[np.int64]) -> FloatArray:
        """Number ``k`` of every thing (or the ``k[i]``-th of the i-th), uniform in [0, 1)."""
        return (self._words(k) >> np.uint64(11)) * 2.0**-53

    def normal(self, k: int | npt.NDArray[np.int64]) -> FloatArray:
        """Number ``k`` of every thing, close to standard normal: the sum of four uniform ones, within 3.46."""
        words = np.ascontiguousarray(self._words(k))
        total = words.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
        return np.asarray((total - _SUM_MEAN) * (1 / _SUM_DEVIATION))

    def _words(self, k: int | npt.NDArray[np.int64]) -> Words:
        steps = np.atleast_1d(np.asarray(k, dtype=np.uint64)) + np.uint64(1)
        return _mixed(self._state + steps * _WEYL)


def _mixed(words: Words) -> Words:
    """The finaliser of SplitMix64, a bijection of 64-bit words."""
    first, second, third = _SHIFTS
    words = (words ^ (words >> first)) * _FIRST_FACTOR
    words = (words ^ (words >> second)) * _SECOND_FACTOR
    return words ^ (words >> third)
