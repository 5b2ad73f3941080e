"""What an evaluation found, as plain figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

Figures = dict[str, float]

SAMPLE, MEAN, BASELINE = "sample", "mean", "baseline"
CEILING, CONTROL, CHANCE = "ceiling", "control", "chance"


@dataclass(frozen=True)
class Row:
    """One image against the truth.

    Attributes:
        name: of the image.
        kind: "sample", "mean" (of the samples), "baseline", "ceiling", "control" (from shuffled genes) or "chance".
        note: what to know of it.
        similarity: ``psnr`` in dB, ``ssim``, ``ms_ssim`` over all stains.
        stains: the same for each stain.
        nuclei: ``count``, ``count_error`` (relative to the truth, signed), ``f1``, ``precision``, ``recall``,
            ``median_area`` and ``area_distance`` (Wasserstein distance from the true areas) in um^2, and of the matched
            nuclei their mean ``intensity`` and ``true_intensity`` in grey levels and its ``intensity_correlation``.
        distances: Frechet distances by name.
        seams: grid -> ``score`` and ``error``.
        slices: slice of the atlas -> ``psnr``, ``ssim``, ``true_nuclei``, ``nuclei``, ``f1``.
        regions: name -> ``psnr``, ``true_nuclei``, ``nuclei``, ``f1``, ``true_median_area``, ``median_area``,
            ``area_distance``.
    """

    name: str
    kind: str
    note: str = ""
    similarity: Figures = field(default_factory=dict)
    stains: dict[str, Figures] = field(default_factory=dict)
    nuclei: Figures = field(default_factory=dict)
    distances: Figures = field(default_factory=dict)
    seams: dict[str, Figures] = field(default_factory=dict)
    slices: dict[int, Figures] = field(default_factory=dict)
    regions: dict[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """A whole evaluation; its figures that do not exist are NaN.

    Attributes:
        rows: every image, the samples first.
        truth: ``nuclei``, ``median_area`` in um^2, and ``nuclei_per_mm2``.
        truth_seams: as ``Row.seams``: what the score finds where nothing was stitched.
        naive_seams: the same if the tiles of the first sample knew nothing of each other, on the grid that it names.
        area_edges: um^2, of the histogram of nuclear areas.
        area_shares: row's name, or "truth" -> share of its nuclei between each two edges.
        settings: what was compared, and how.
        provenance: of the atlas and of every sample.
        notes: sentences that a reader of the figures needs.
    """

    rows: list[Row]
    truth: Figures
    truth_seams: dict[str, Figures]
    naive_seams: dict[str, Figures]
    area_edges: list[float]
    area_shares: dict[str, list[float]]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    notes: list[str]

    @property
    def samples(self) -> list[Row]:
        """The generated images."""
        return self.of_kind(SAMPLE)

    def of_kind(self, kind: str) -> list[Row]:
        """Rows of a kind."""
        return [row for row in self.rows if row.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: figures that do not exist or are infinite are None."""
        converted: dict[str, Any] = _json(asdict(self))
        return converted


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
