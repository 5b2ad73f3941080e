"""A small sample with awkward sizes, and its atlas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from teramind.atlas.store import Atlas
from teramind.atlas.writer import STRIP_BINS, AtlasWriter


@dataclass
class Sample:
    """What goes into an atlas, dense.

    Attributes:
        counts: (slices, bin rows, bin columns, genes).
        images: (stains, slices, H, W).
        labels: (slices, bin rows, bin columns).
    """

    counts: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    genes: list[str]
    stains: list[str] = field(default_factory=lambda: ["DAPI", "PolyT"])

    def arguments(self, **changed: Any) -> dict[str, Any]:
        """Keyword arguments of ``AtlasWriter``."""
        return {
            "genes": self.genes,
            "stains": self.stains,
            "slice_z": [100.0 * index + 5 for index in range(len(self.counts))],
            "shape": self.images.shape[2:],
            "pixel_size": 0.108,
            "scaling": {"DAPI": (10.0, 2000.0), "PolyT": (0.0, 1.5)},
            "provenance": {"vendor": "none", "rows": 12},
            **changed,
        }

    def strips(self, index: int) -> Iterator[csr_array]:
        rows = self.counts.shape[1]
        for start in range(0, rows, STRIP_BINS):
            strip = self.counts[index, start : start + STRIP_BINS]
            yield csr_array(strip.reshape(-1, strip.shape[-1]))

    def append_all_counts(self, writer: AtlasWriter) -> None:
        for index in range(len(self.counts)):
            for strip in self.strips(index):
                writer.append_counts(index, strip)

    def write(self, path: Path, **changed: Any) -> Atlas:
        """Write everything and open it; ``changed`` are arguments of ``AtlasWriter``."""
        with AtlasWriter(path, **self.arguments(**changed)) as writer:
            self.append_all_counts(writer)
            if changed.get("scaling", True) is not None:
                for stain, slices in enumerate(self.images):
                    for index, plane in enumerate(slices):
                        writer.write_image(index, stain, 0, 0, plane)
            writer.write_regions(self.labels, {1: "isocortex", 2: "thalamus", 3: "fiber tracts"})
        return Atlas.open(path)


@pytest.fixture(scope="session")
def sample() -> Sample:
    """Three slices of 1,205 x 2,069 px: two by three blocks, none of the far ones whole, nor the far bins."""
    rng = np.random.default_rng(7)
    height, width, slices, genes = 1205, 2069, 3, 31
    rows, columns = -(-height // 16), -(-width // 16)
    counts = rng.geometric(0.6, (slices, rows, columns, genes)) * (rng.random((slices, rows, columns, genes)) < 0.03)
    counts = counts.astype(np.uint16)
    counts[0, 0, 0, 0], counts[2, -1, -1, -1] = 2**16 - 1, 2**16 - 2
    counts[1, :STRIP_BINS, STRIP_BINS : 2 * STRIP_BINS] = 0  # a block, and below a strip, without any
    counts[2, :STRIP_BINS] = 0
    return Sample(
        counts=counts,
        images=rng.integers(0, 256, (2, slices, height, width), dtype=np.uint8),
        labels=rng.integers(0, 4, (slices, rows, columns), dtype=np.uint16),
        genes=[f"Gene{index}" for index in range(genes)],
    )


@pytest.fixture(scope="session")
def atlas(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """The sample's atlas; do not change its files."""
    return sample.write(tmp_path_factory.mktemp("atlas") / "sample.zarr")
