"""Types of the compiled core. Its functions check nothing that their Python covers have checked already."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Box = tuple[int, int, int, int]

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

class TileSchedule:
    """The tile graph; see teramind.engine.plan.TilePlan."""

    def __init__(
        self,
        *,
        height: int,
        width: int,
        patch: int,
        tile: int,
        steps: int,
        windows: int,
        bounds: Sequence[int],
        output: Sequence[int],
        skip: npt.NDArray[np.generic] | None,
        completed: npt.NDArray[np.generic] | None,
    ) -> None: ...
    def claim(self, limit: int, timeout: float | None) -> list[tuple[int, int, int, int]]: ...
    def complete(
        self, units: Sequence[Sequence[int]]
    ) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int]]]: ...
    def release(self, units: Sequence[Sequence[int]]) -> None: ...
    def pause(self, timeout: float | None) -> bool: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...
    def peek(self, limit: int, batch: int) -> list[tuple[int, int, int, int]]: ...
    def held(self) -> list[tuple[int, int, int, int]]: ...
    def completed(self) -> npt.NDArray[np.uint16]: ...
    def input(self, unit: Sequence[int]) -> list[tuple[int, int, int, int, _Box, _Box, _Box]]: ...
    def tile(self, row: int, column: int) -> _Box: ...
    def compute(self, unit: Sequence[int]) -> _Box: ...
    def active(self, step: int) -> _Box: ...
    def counts(self) -> tuple[int, int, int, int]: ...
    def simulate(self, seconds: Sequence[float], batch: int) -> tuple[float, list[float], int, int]: ...
