"""A small brain whose truth is known everywhere: regions that move along AP, types mixed by region, gene gradients.

An ellipsoid with layers under its surface and nuclei inside. Where a region ends changes from slice to slice, so that
the closest slice is close to the truth and not the truth. Types are mixtures by region, blurred at the borders; the
counts of a cell are Poisson draws around its type's profile times gradients along ML and AP. "Disease" changes some
genes of two types. Each slice is a fresh draw of cells from a slab, along any plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from teramind.impute.cells import Cells
from teramind.impute.planes import Plane

HALF_AXES = np.array([0.8, 0.6, 1.3])  # mm
CENTRE = np.array([2.0, 2.0, 4.0])
LAYERS = (0.62, 0.74, 0.86)  # borders between layers, as fractions of the way to the surface
SICK_TYPES = (0, 3)
SICK_FACTOR = 4.0
SECTION_THICKNESS = 0.01  # mm


@dataclass(frozen=True)
class Brain:
    """Profiles of types, and where they live.

    Attributes:
        profiles: (types, genes) mean counts.
        mixture: (regions, types) fractions.
        nuclei: (nuclei, 2, 3) position at the front end and way towards the back, of the inner regions.
        gradients: (genes, 2) strength along ML and AP.
        density: cells per mm2 of a section.
    """

    profiles: np.ndarray
    mixture: np.ndarray
    nuclei: np.ndarray
    gradients: np.ndarray
    density: float

    @classmethod
    def make(cls, *, genes: int = 60, types: int = 12, density: float = 2800.0, seed: int = 0) -> Brain:
        generator = np.random.default_rng(seed)
        regions = len(LAYERS) + 1 + 4
        profiles = generator.gamma(0.6, 0.25, (types, genes))
        for kind in range(types):
            markers = generator.choice(genes, max(3, genes // 8), replace=False)
            profiles[kind, markers] += generator.gamma(4, 1.0, len(markers))
        mixture = np.full((regions, types), 0.02)
        for region in range(regions):
            mixture[region, region % types] += 0.6
            mixture[region, (region * 5 + 3) % types] += 0.15
        mixture[:, types - 2 :] += 0.1  # found everywhere, as glia are
        nuclei = np.stack([generator.uniform(-0.35, 0.35, (4, 3)), generator.uniform(-0.5, 0.5, (4, 3))], axis=1)
        gradients = np.where(generator.random((genes, 2)) < 0.4, generator.uniform(-1, 1, (genes, 2)), 0)
        return cls(profiles, mixture / mixture.sum(axis=1, keepdims=True), nuclei, gradients, density)

    @property
    def genes(self) -> tuple[str, ...]:
        return tuple(f"gene{index:03d}" for index in range(self.profiles.shape[1]))

    @property
    def types(self) -> np.ndarray:
        return np.array([f"type{index:02d}" for index in range(self.profiles.shape[0])])

    def cut(
        self, plane: Plane, *, name: str = "", seed: int = 0, sick: bool = False, thickness: float = SECTION_THICKNESS
    ) -> Cells:
        """Cells of a section: a fresh draw; (technology and disease_state in its metadata)."""
        generator = np.random.default_rng([seed, 77])
        half = np.linalg.norm(HALF_AXES)
        expected = self.density * (2 * half) ** 2 * thickness / SECTION_THICKNESS
        n = generator.poisson(expected)
        flat = plane.flatten(CENTRE[None]) + generator.uniform(-half, half, (n, 2))
        positions = plane.lift(flat, generator.uniform(-thickness / 2, thickness / 2, n))
        weights = self.region_weights(positions)
        positions, weights = positions[weights.any(axis=1)], weights[weights.any(axis=1)]
        types = _draw(weights @ self.mixture, generator)
        counts = generator.poisson(self.means(positions, types, sick=sick)).astype(np.float32)
        metadata = {"disease_state": "sick" if sick else "healthy", "technology": "panelA"}
        return Cells(
            positions,
            self.types[types],
            csr_array(counts),
            self.genes,
            np.full(len(positions), name),
            {key: np.full(len(positions), value) for key, value in metadata.items()},
        )

    def region_weights(self, positions: np.ndarray) -> np.ndarray:
        """(n, regions) how much of each region is at a position; all zero outside the brain."""
        unit = (positions - CENTRE) / HALF_AXES
        radius = np.linalg.norm(unit, axis=1)
        angle = np.arctan2(unit[:, 1], unit[:, 0])
        wobble = 0.05 * np.sin(3 * angle + 4 * unit[:, 2])
        borders = np.array(LAYERS) + wobble[:, None]
        inner = 1 / (1 + np.exp((radius[:, None] - borders) / 0.02))  # (n, 3): is this side of the border?
        layers = [inner[:, 0], inner[:, 1] - inner[:, 0], inner[:, 2] - inner[:, 1], 1 - inner[:, 2]]
        seeds = self.nuclei[:, 0] + self.nuclei[:, 1] * unit[:, 2, None, None]  # (n, nuclei, 3)
        distance = np.linalg.norm(unit[:, None, :2] - seeds[..., :2], axis=2)
        closest = np.exp(-(distance - distance.min(axis=1, keepdims=True)) / 0.04)
        closest /= closest.sum(axis=1, keepdims=True)
        weights = np.concatenate([np.stack(layers[1:], axis=1), layers[0][:, None] * closest], axis=1)
        weights = np.concatenate([weights, np.zeros((len(weights), len(self.mixture) - weights.shape[1]))], axis=1)
        return np.where(radius[:, None] < 1, weights.clip(0), 0)

    def means(self, positions: np.ndarray, types: np.ndarray, *, sick: bool = False) -> np.ndarray:
        """(n, genes) expected counts of cells of these types at these positions."""
        unit = (positions - CENTRE) / HALF_AXES
        means = self.profiles[types] * np.exp(unit[:, [0, 2]] @ self.gradients.T)
        if sick:
            changed = np.arange(means.shape[1]) % 7 == 0
            rows = np.isin(types, SICK_TYPES)
            means[np.ix_(rows, changed)] *= SICK_FACTOR
        return means


def coronal_series(brain: Brain, slices: int = 12, *, seed: int = 0, **options) -> list[Cells]:
    """Evenly spaced coronal sections through most of the brain."""
    offsets = CENTRE[2] + HALF_AXES[2] * np.linspace(-0.75, 0.75, slices)
    return [
        brain.cut(Plane.coronal(float(ap)), name=f"coronal{index:02d}", seed=seed * 1000 + index, **options)
        for index, ap in enumerate(offsets)
    ]


def regulatory_edges(brain: Brain, seed: int = 0) -> list[tuple[str, str, float]]:
    """Edges of a regulatory network with a few loops: (source, target, weight)."""
    generator = np.random.default_rng(seed)
    names = generator.permutation(brain.genes)
    factors = names[: max(2, len(names) // 6)]
    edges = [(str(a), str(b), float(generator.random())) for a in factors for b in names if generator.random() < 0.2]
    return [edge for edge in edges if edge[0] != edge[1]]


def _draw(probabilities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    steps = probabilities.cumsum(axis=1)
    return (generator.random(len(steps))[:, None] * steps[:, -1:] > steps).sum(axis=1)
