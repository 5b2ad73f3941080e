"""Nuclei: found by segmentation, measured block by block, compared with the true ones."""

from teramind.evaluate.nuclei.compare import NucleiSums, area_distance
from teramind.evaluate.nuclei.matching import Matches, match_by_overlap, match_nuclei
from teramind.evaluate.nuclei.segment import Labeller, Segmenter, Watershed
from teramind.evaluate.nuclei.table import Nuclei, find_nuclei, measure

__all__ = [
    "Labeller",
    "Matches",
    "Nuclei",
    "NucleiSums",
    "Segmenter",
    "Watershed",
    "area_distance",
    "find_nuclei",
    "match_by_overlap",
    "match_nuclei",
    "measure",
]
