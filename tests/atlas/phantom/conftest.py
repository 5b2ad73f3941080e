"""A phantom whose window shows most regions, cortex to ventricle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from teramind.atlas.binning import rasterize
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom import phantom as phantom_module

SEED = 7
# Tile (4, 4) of 1024 px at 0.4 um has fifteen regions.
Y0, X0, SIDE = 4608, 4352, 1024


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 256 px: quicker where windows are small, and more borders to cross."""
    monkeypatch.setattr(phantom_module, "TILE", 256)


@dataclass(frozen=True)
class Scene:
    """One window of one slice, all that can be asked of it.

    Attributes:
        image: (2, SIDE, SIDE) uint8.
        counts: (bins, bins, genes).
        labels: (bins, bins).
        cells: of ``CELL_FIELDS``, px of the frame.
    """

    phantom: Phantom
    z: int
    image: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    cells: np.ndarray

    def gene(self, name: str) -> np.ndarray:
        return self.counts[..., self.phantom.genes.index(name)]

    def in_region(self, name: str) -> np.ndarray:
        (label,) = (label for label, known in self.phantom.region_names.items() if known == name)
        return self.labels == label


@pytest.fixture(scope="session")
def scene() -> Scene:
    phantom = Phantom(seed=SEED, size=1 << 18, slices=3)
    window = (Y0, Y0 + SIDE, X0, X0 + SIDE)
    x, y, gene = phantom.transcripts(1, *window)
    bins = rasterize(x - X0, y - Y0, gene, (SIDE, SIDE), len(phantom.genes)).toarray()
    return Scene(
        phantom=phantom,
        z=1,
        image=phantom.image_window(1, 2, *window)[:, 0],
        counts=bins.reshape(SIDE // 16, SIDE // 16, -1),
        labels=phantom.region_window(1, 2, *window)[0],
        cells=phantom.cells(1, *window),
    )
