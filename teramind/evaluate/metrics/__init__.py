"""Figures that compare images, as functions of arrays and as sums that grow window by window."""

from teramind.evaluate.metrics.frechet import FrechetDistance, Moments, frechet_distance
from teramind.evaluate.metrics.seams import Grid, SeamSums, network_grids, seam_score
from teramind.evaluate.metrics.similarity import ms_ssim, psnr, ssim

__all__ = [
    "FrechetDistance",
    "Grid",
    "Moments",
    "SeamSums",
    "frechet_distance",
    "ms_ssim",
    "network_grids",
    "psnr",
    "seam_score",
    "ssim",
]
