"""Which places a report shows: chosen by a rule, not by taste."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teramind.engine.plan import Rectangle
from teramind.evaluate.nuclei import Matches, Nuclei
from teramind.evaluate.sources import Extent

ZOOM_UM = 100.0
PERCENTILES = (10, 50, 90)
_LEAST_NUCLEI = 5  # true ones, for an F1 that says something


@dataclass(frozen=True)
class Zoom:
    """A place to show.

    Attributes:
        percentile: of its F1 among all places.
        f1: of the nuclei in it.
        z: slice of the atlas.
        place: px of the atlas.
    """

    percentile: int
    f1: float
    z: int
    place: Rectangle


class ZoomChoice:
    """F1 of every square of about 100 um, from which those at given percentiles are chosen.

    Args:
        extent: what is compared.
        pixel_size: um.
    """

    rule = (
        f"the squares of about {ZOOM_UM:g} µm at the {', '.join(map(str, PERCENTILES[:-1]))} and {PERCENTILES[-1]} "
        f"percentile of the first sample's nuclei F1, among those with {_LEAST_NUCLEI} true nuclei or more"
    )

    def __init__(self, extent: Extent, pixel_size: float) -> None:
        self._extent, self._pixel_size = extent, pixel_size
        h, w = extent.place.shape
        self.side = min(max(16, round(ZOOM_UM / pixel_size / 16) * 16), h, w)
        self._counts = np.zeros((extent.depth, h // self.side, w // self.side, 3), dtype=np.int64)

    def update(self, z: int, truth: Nuclei, found: Nuclei, matches: Matches) -> None:
        """Take a slice of the first sample."""
        paired = Nuclei.joined([truth.select(matches.truth), found.select(matches.found)])
        for kind, nuclei in enumerate((truth, found, paired)):
            corner = np.array([self._extent.place.y0, self._extent.place.x0])
            cells = ((nuclei.places / self._pixel_size - corner) // self.side).astype(np.int64)
            inside = (cells < self._counts.shape[1:3]).all(axis=1)
            np.add.at(self._counts[z - self._extent.slices[0], ..., kind], tuple(cells[inside].T), 1)

    def choose(self) -> list[Zoom]:
        """One square for each percentile; fewer if there are fewer, none if none has nuclei enough."""
        true, found, paired = np.moveaxis(self._counts, -1, 0)
        candidates = np.argwhere(true >= _LEAST_NUCLEI)
        if not len(candidates):
            return []
        f1 = (paired / np.maximum(true + found, 1))[tuple(candidates.T)]
        order = np.argsort(f1, kind="stable")
        zooms: dict[tuple[int, Rectangle], Zoom] = {}
        for percentile in PERCENTILES:
            chosen = order[round(percentile / 100 * (len(order) - 1))]
            z, row, column = candidates[chosen].tolist()
            y, x = self._extent.place.y0 + row * self.side, self._extent.place.x0 + column * self.side
            zoom = Zoom(
                percentile, float(f1[chosen]), z + self._extent.slices[0], Rectangle(y, y + self.side, x, x + self.side)
            )
            zooms.setdefault((zoom.z, zoom.place), zoom)
        return list(zooms.values())
