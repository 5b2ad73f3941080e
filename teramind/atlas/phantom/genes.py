"""The genes of the phantom, and what each cell type expresses. The names are genes of the published panel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.celltypes import CELL_TYPES

EXCITATORY = {"Slc17a7": 14.0, "Nrn1": 5.0, "Ptk2b": 4.0}
INHIBITORY = {"Gad2": 11.0, "Slc32a1": 8.0}
NEURON = {"Fxyd6": 5.0, "Caln1": 4.0, "Rgs4": 2.5, "Cnr1": 1.5}
OLIGODENDROCYTE_LINEAGE = {"Sox10": 6.0}
VESSEL = {"Fli1": 3.0, "Adgrf5": 3.0}

# Relative expression, by type. Several genes mark more than one type, as they do in the brain.
MARKERS: dict[str, dict[str, float]] = {
    "layer 2/3 neuron": {**EXCITATORY, **NEURON, "Otof": 9.0, "Calb1": 5.0, "Lamp5": 3.0},
    "layer 4 neuron": {**EXCITATORY, **NEURON, "Rorb": 12.0, "Rspo1": 6.0},
    "layer 5 neuron": {**EXCITATORY, **NEURON, "Bcl11b": 9.0, "Parm1": 7.0, "Tshz2": 3.0},
    "layer 6 neuron": {**EXCITATORY, **NEURON, "Hs3st4": 10.0, "Rprm": 6.0, "Syt6": 4.0, "Nr4a2": 2.0},
    "granule cell": {**EXCITATORY, **NEURON, "C1ql3": 12.0, "Stxbp6": 7.0, "Synpr": 3.0, "Calb1": 4.0},
    "thalamic neuron": {**NEURON, "Slc17a6": 14.0, "Tcf7l2": 9.0, "Ntng1": 7.0, "Calb2": 2.0, "Ramp3": 5.0},
    "transition neuron": {**NEURON, "Slc17a6": 10.0, "Slc17a7": 10.0, "Zic1": 8.0, "Nrn1": 3.0},
    "dopaminergic neuron": {**NEURON, "Th": 14.0, "Nr4a2": 9.0, "Slc6a3": 9.0, "Ddc": 8.0, "Slc17a6": 2.0},
    "basket interneuron": {**INHIBITORY, **NEURON, "Pvalb": 13.0, "Kcnip1": 3.0},
    "bipolar interneuron": {**INHIBITORY, **NEURON, "Vip": 9.0, "Reln": 5.0, "Calb2": 4.0, "Synpr": 4.0, "Th": 1.5},
    "astrocyte": {"Aqp4": 13.0, "Gja1": 9.0, "Slc1a3": 9.0, "Gfap": 4.0},
    "oligodendrocyte": {**OLIGODENDROCYTE_LINEAGE, "Mog": 13.0, "Opalin": 9.0, "Klk6": 3.0, "St18": 5.0},
    "oligodendrocyte precursor": {**OLIGODENDROCYTE_LINEAGE, "Vcan": 13.0, "Lypd6": 3.0, "Caln1": 2.0},
    "microglia": {"Ctss": 16.0, "Fyb": 8.0, "Arhgap25": 5.0},
    "endothelial cell": {**VESSEL, "Cldn5": 17.0, "Lpl": 1.0},
    "mural cell": {**VESSEL, "Acta2": 8.0, "Kcnj8": 8.0, "Abcc9": 8.0},
    "ependymal cell": {"Ttc29": 12.0, "Tmie": 7.0, "Slc1a3": 4.0, "Cd24a": 8.0},
    "meningeal fibroblast": {"Dcn": 13.0, "Igf2": 10.0, "Slc6a4": 1.0, "Gja1": 3.0},
}

# Found in every cell alike: they say nothing about what it looks like.
HOUSEKEEPING = ("Mrpl16", "Tbcc", "Ung", "Rwdd2a", "Ethe1", "Gsta4")
HOUSEKEEPING_LEVEL = 1.0

PATHWAYS = {"GLUT": ("Slc17a6", "Slc17a7"), "DOPA": ("Nr4a2", "Th"), "BLOD": ("Cldn5", "Aqp4")}
"""The published pairs of genes."""

GENES = tuple(sorted({gene for markers in MARKERS.values() for gene in markers} | set(HOUSEKEEPING)))


def _profiles() -> npt.NDArray[np.float64]:
    profiles = np.zeros((len(CELL_TYPES), len(GENES)))
    for row, cell_type in zip(profiles, CELL_TYPES, strict=True):
        for gene, level in MARKERS[cell_type.name].items():
            row[GENES.index(gene)] = level
        for gene in HOUSEKEEPING:
            row[GENES.index(gene)] = HOUSEKEEPING_LEVEL
    profiles /= profiles.sum(axis=1, keepdims=True)
    return profiles


PROFILES = _profiles()
"""(types, genes): the share of each gene in the transcripts of a cell."""
