"""Start noise that depends on where a voxel is, not on how the run was cut into tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from teramind import _core
from teramind.checks import integer_between, thread_count
from teramind.errors import InputError

NOISE_LAYOUT = 1
"""Version of the map from (seed, stain, slice, y, x) to a normal; outputs record it, and it changes with any voxel."""

_AXIS = 2**32  # positions along an axis: one 32-bit word of the counter


def noise_field(
    seed: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int], *, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Return a box of the field of standard normals that belongs to ``seed``.

    Layout 1. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the key
    (seed low 32 bits, high 32 bits) and the counter (x // 4, y, slice, stain); output word x % 4 belongs to pixel x.
    Words (0, 1) and (2, 3) are two Box-Muller pairs (a, b): with ``u = ((a >> 9) + 0.5) * 2**-23`` and
    ``v = (b >> 9) * 2**-23`` the normals are ``sqrt(-2 ln u)`` times ``cos(2 pi v)`` and ``sin(2 pi v)``, computed in
    double precision and rounded to float32 once. u and v are exact in float32 and v counts turns, so that a float32 GPU
    kernel, which can split v into an octant and a rest without error, reproduces the normals within 1e-6.

    Args:
        seed: 0 to 2**64 - 1.
        z0: First slice of the atlas, not of a window.
        y0: First row, atlas px at level 0.
        x0: First column, atlas px at level 0.
        shape: (stains, slices, height, width) of the box; stains start at 0.
        threads: Threads at most; all CPUs this process may use if None. The values do not depend on it.

    Returns:
        (stains, slices, height, width) float32; any box equals the crop of a larger one, bit for bit.

    Raises:
        InputError: The seed or a position is out of range.
    """
    return _core.noise_field(*_box(seed, z0, y0, x0, shape), threads=thread_count(threads))


def philox_words(
    seed: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int], *, threads: int | None = None
) -> npt.NDArray[np.uint32]:
    """Return the random words under `noise_field`, one a voxel: what a kernel must reproduce bit for bit.

    Arguments, shape and errors are those of `noise_field`.
    """
    return _core.philox_words(*_box(seed, z0, y0, x0, shape), threads=thread_count(threads))


def _box(
    seed: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int]
) -> tuple[int, int, int, int, tuple[int, int, int, int]]:
    """Check the arguments of a field."""
    seed = integer_between("seed", seed, 0, 2**64 - 1)
    if len(shape) != 4:
        raise InputError(f"shape is {shape!r}, but has to be (stains, slices, height, width).")
    first = [0]
    first += [integer_between(name, value, 0, _AXIS - 1) for name, value in (("z0", z0), ("y0", y0), ("x0", x0))]
    names = ("stains", "slices", "height", "width")
    stains, slices, height, width = (
        integer_between(f"the number of {name}" if name[-1] == "s" else f"the {name}", size, 0, _AXIS - start)
        for name, size, start in zip(names, shape, first, strict=True)
    )
    return seed, first[1], first[2], first[3], (stains, slices, height, width)
