"""The cell types of the phantom: what each looks like. Sizes are those of mouse brain, in um."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CellType:
    """The mean look of a type; a cell deviates from it (see ``morphology``).

    Attributes:
        name: of the type.
        nucleus: geometric mean of the nucleus' semi-axes in the plane, um.
        elongation: longer over shorter semi-axis.
        aligned: 1 if the nucleus lies along the direction of its place (fibre, vessel, surface), 0 if anyhow.
        dapi: grey levels of the nucleus.
        spots: chromocentres, 0 to 6.
        spot_contrast: their height above the rest of the nucleus, relative.
        soma: radius of the cell body, um.
        arms: how far processes stand out of the body, in its radii; 0 for a smooth one.
        poly_t: grey levels of the cytoplasm.
        apical: reach of the apical dendrite beyond the centre, um; 0 for none.
        transcripts: mean number in the whole cell.
    """

    name: str
    nucleus: float
    elongation: float
    aligned: float
    dapi: float
    spots: int
    spot_contrast: float
    soma: float
    arms: float
    poly_t: float
    apical: float
    transcripts: float


# fmt: off
CELL_TYPES = (
    #        name                 nucleus  long  al dapi sp contr soma  arms polyT apical transcripts
    CellType("layer 2/3 neuron",      4.3, 1.12, 0,  96, 5, 0.60, 5.8, 0.45, 128, 18,  85),
    CellType("layer 4 neuron",        3.8, 1.10, 0, 116, 5, 0.55, 4.8, 0.40, 104,  0,  70),
    CellType("layer 5 neuron",        5.3, 1.10, 0,  80, 6, 0.70, 7.9, 0.55, 178, 30, 130),
    CellType("layer 6 neuron",        4.2, 1.12, 0, 102, 5, 0.60, 5.5, 0.45, 114, 14,  80),
    CellType("granule cell",          3.2, 1.08, 0, 150, 4, 0.40, 3.7, 0.00,  70,  0,  45),
    CellType("thalamic neuron",       4.8, 1.12, 0,  90, 6, 0.65, 6.7, 0.80, 142,  0,  95),
    CellType("transition neuron",     5.0, 1.15, 0,  92, 6, 0.65, 6.7, 0.70, 165,  0, 100),
    CellType("dopaminergic neuron",   5.1, 1.18, 0,  78, 6, 0.70, 7.9, 1.10, 188,  0, 125),
    CellType("basket interneuron",    4.7, 1.12, 0,  90, 6, 0.60, 6.5, 0.70, 150,  0,  95),
    CellType("bipolar interneuron",   3.8, 1.45, 0, 106, 5, 0.55, 4.7, 0.50, 104, 14,  70),
    CellType("astrocyte",             4.0, 1.25, 0, 110, 3, 0.30, 4.7, 1.00,  56,  0,  50),
    CellType("oligodendrocyte",       3.0, 1.50, 1, 176, 0, 0.00, 3.6, 0.20,  58,  0,  50),
    CellType("oligodendrocyte precursor", 3.6, 1.40, 0, 124, 2, 0.30, 4.2, 0.80, 48, 0, 45),
    CellType("microglia",             2.8, 1.90, 0, 158, 3, 0.40, 3.2, 1.00,  44,  0,  40),
    CellType("endothelial cell",      3.3, 3.00, 1, 150, 0, 0.00, 3.6, 0.00,  50,  0,  45),
    CellType("mural cell",            3.0, 2.20, 1, 138, 0, 0.00, 3.4, 0.00,  46,  0,  40),
    CellType("ependymal cell",        3.2, 1.25, 1, 142, 2, 0.30, 4.1, 0.20,  86,  0,  45),
    CellType("meningeal fibroblast",  3.3, 2.70, 1, 128, 0, 0.00, 3.6, 0.20,  46,  0,  40),
)
# fmt: on

TYPE = {cell_type.name: index for index, cell_type in enumerate(CELL_TYPES)}

LOOKS: dict[str, npt.NDArray[np.float64]] = {
    item.name: np.array([getattr(cell_type, item.name) for cell_type in CELL_TYPES], dtype=np.float64)
    for item in fields(CellType)
    if item.name != "name"
}
"""Each numeric attribute of ``CellType`` as an array over the types."""
