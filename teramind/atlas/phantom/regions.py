"""The regions of the phantom: where they lie along the depth, and what their tissue is like between the cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BACKGROUND = 0


@dataclass(frozen=True)
class Region:
    """A band of depth.

    Attributes:
        name: as in the label map.
        start: depth where it begins, um; it ends where the next one begins.
        neuropil: PolyT between the cells, grey levels.
        dark: DAPI between the cells, grey levels.
        fibres: how strongly its PolyT is streaked along the layers, relative.
        is_tissue: whether transcripts are found in it.
    """

    name: str
    start: float
    neuropil: float
    dark: float
    fibres: float
    is_tissue: bool = True


# fmt: off
REGIONS = (
    #      name                   start neuropil dark fibres
    Region("background",        -np.inf,  3.0,  3.0, 0.0, is_tissue=False),
    Region("meninges",           -430.0, 24.0,  6.0, 0.1),
    Region("layer 1",            -421.0, 56.0,  6.0, 0.05),
    Region("layer 2/3",          -365.0, 53.0,  8.0, 0.0),
    Region("layer 4",            -235.0, 48.0,  9.0, 0.0),
    Region("layer 5",            -150.0, 54.0,  7.0, 0.0),
    Region("layer 6",             -20.0, 47.0,  8.0, 0.05),
    Region("white matter",         85.0, 26.0,  8.0, 0.38),
    Region("molecular layer",     175.0, 58.0,  5.0, 0.05),
    Region("granule layer",       232.0, 40.0, 12.0, 0.0),
    Region("transition zone",     300.0, 50.0,  7.0, 0.06),
    Region("thalamus",            365.0, 45.0,  7.0, 0.09),
    Region("ependyma",            553.0, 30.0,  7.0, 0.0),
    Region("ventricle",           566.0,  3.0,  3.0, 0.0, is_tissue=False),
    # Not a band of depth but islands in the thalamus, whose neuropil it has.
    Region("dopaminergic nucleus", np.inf, 45.0, 7.0, 0.09),
)
# fmt: on
"""In the order of their labels."""

LABEL = {region.name: label for label, region in enumerate(REGIONS)}
NAMES = {label: region.name for label, region in enumerate(REGIONS) if label != BACKGROUND}

IS_TISSUE = np.array([region.is_tissue for region in REGIONS])
"""By label."""
BANDS = REGIONS[: LABEL["ventricle"] + 1]
"""Those that are bands of depth, downwards."""
