"""Types of the compiled core. Its functions check nothing that their Python covers have checked already."""

from typing import Any

import numpy as np
import numpy.typing as npt

class CountOverflowError(OverflowError):
    """A count above 65,535; its arguments are (bin, gene, count)."""

    args: tuple[int, int, int]

def rasterize(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    gene: npt.NDArray[np.integer[Any]],
    *,
    height: int,
    width: int,
    genes: int,
    bin_size: int,
    threads: int,
    wide_index: bool,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any], npt.NDArray[Any], int, int]: ...
def noise_field(
    seed: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int], *, threads: int
) -> npt.NDArray[np.float32]: ...
def philox_words(
    seed: int, z0: int, y0: int, x0: int, shape: tuple[int, int, int, int], *, threads: int
) -> npt.NDArray[np.uint32]: ...
