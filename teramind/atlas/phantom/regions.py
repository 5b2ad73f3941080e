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
        is_tissue: whether transcripts are found in it.
    """

    name: str
    start: float
    neuropil: float
    dark: float
    is_tissue: bool = True


REGIONS = (
    Region("background", -np.inf, 3.0, 4.0, is_tissue=False),
    Region("meninges", -430.0, 22.0, 9.0),
    Region("layer 1", -421.0, 40.0, 10.0),
    Region("layer 2/3", -365.0, 38.0, 13.0),
    Region("layer 4", -235.0, 34.0, 14.0),
    Region("layer 5", -150.0, 38.0, 12.0),
    Region("layer 6", -20.0, 34.0, 13.0),
    Region("white matter", 85.0, 16.0, 12.0),
    Region("molecular layer", 175.0, 42.0, 9.0),
    Region("granule layer", 232.0, 30.0, 20.0),
    Region("transition zone", 300.0, 36.0, 11.0),
    Region("thalamus", 365.0, 33.0, 11.0),
    Region("ependyma", 553.0, 24.0, 12.0),
    Region("ventricle", 566.0, 3.0, 4.0, is_tissue=False),
    # Not a band of depth but islands in the thalamus.
    Region("dopaminergic nucleus", np.inf, 40.0, 10.0),
)
"""In the order of their labels."""

LABEL = {region.name: label for label, region in enumerate(REGIONS)}
NAMES = {label: region.name for label, region in enumerate(REGIONS) if label != BACKGROUND}

STARTS = np.array([region.start for region in REGIONS[1 : LABEL["ventricle"] + 1]])
"""Depths at which labels 1, 2, ... begin."""
