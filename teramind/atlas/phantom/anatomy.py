"""Smooth random fields, and the anatomy that follows from them: a function of seed and position in um alone.

The depth below the surface of the brain is a random field of about unit slope; the regions are bands of it, so that
they lie in each other like the layers of a folded cortex and nothing depends on how large the brain is. Where a second
field is high, the thalamus holds islands of dopaminergic neurons. Vessels are curves in space: where two more fields
are both zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teramind.atlas.phantom.draws import Draws, FloatArray, Purpose
from teramind.atlas.phantom.regions import BANDS, LABEL

Labels = npt.NDArray[np.uint8]

# The spread of the depth, um: the bands of ``regions`` cover about two standard deviations of it.
DEPTH_SPREAD = 330.0
# Above this the second field makes islands in the thalamus.
ISLAND_LEVEL = 0.5
NEWTON_STEPS = 4
# No step towards a vessel is longer, um.
LONGEST_STEP = 8.0


@dataclass(frozen=True)
class WaveField:
    """A sum of plane waves of random direction and phase; mean 0, variance 1.

    Attributes:
        wave_vectors: (waves, 3) rad/um along x, y, z.
        phases: (waves,) rad.
    """

    wave_vectors: FloatArray
    phases: FloatArray

    @classmethod
    def draw(cls, seed: int, number: int, wavelengths: tuple[float, float], z_wavelength: float) -> WaveField:
        """Draw a field.

        Args:
            seed: of the phantom.
            number: tells its fields apart.
            wavelengths: shortest and longest in the plane, um.
            z_wavelength: shortest along z, um.
        """
        count = 9
        draws = Draws(seed, Purpose.ANATOMY, np.arange(count) + 1000 * number)
        # Directions a third of a turn apart and then at random, so that no field is a mere row of stripes.
        angle = 2 * np.pi * (np.arange(count) / 3 + draws.uniform(0) / 3)
        low, high = wavelengths
        magnitude = 2 * np.pi / (low * (high / low) ** draws.uniform(1))
        along_z = 2 * np.pi / z_wavelength * (2 * draws.uniform(2) - 1)
        vectors = np.stack([magnitude * np.cos(angle), magnitude * np.sin(angle), along_z], axis=1)
        return cls(vectors, 2 * np.pi * draws.uniform(3))

    def __call__(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> FloatArray:
        """The field at positions in um; x, y and z broadcast."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, np.shape(z)))
        for (kx, ky, kz), phase in zip(self.wave_vectors.tolist(), self.phases.tolist(), strict=True):
            total += np.cos(kx * x + ky * y + (kz * z + phase))
        return total * math.sqrt(2 / len(self.phases))

    def gradient(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> FloatArray:
        """(3, ...) slope along x, y and z, 1/um."""
        total = np.zeros((3, *np.broadcast_shapes(x.shape, y.shape, np.shape(z))))
        for (kx, ky, kz), phase in zip(self.wave_vectors.tolist(), self.phases.tolist(), strict=True):
            slope = -np.sin(kx * x + ky * y + (kz * z + phase))
            for axis, wave_number in enumerate((kx, ky, kz)):
                total[axis] += wave_number * slope
        return total * math.sqrt(2 / len(self.phases))


class Anatomy:
    """Where what is.

    Args:
        seed: of the phantom.
    """

    def __init__(self, seed: int) -> None:
        self._folds = WaveField.draw(seed, 0, (1100.0, 1900.0), 4000.0)
        self._ripples = WaveField.draw(seed, 1, (70.0, 220.0), 300.0)
        self._islands = WaveField.draw(seed, 2, (350.0, 600.0), 900.0)
        self._vessel_sheets = WaveField.draw(seed, 3, (90.0, 260.0), 500.0)
        self._vessel_heights = WaveField.draw(seed, 4, (150.0, 500.0), 70.0)

    def depth(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> FloatArray:
        """Depth below the brain's surface, um; its zero is arbitrary, see ``regions``."""
        return DEPTH_SPREAD * self._folds(x, y, z) + 4.0 * self._ripples(x, y, z)

    def region(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> Labels:
        """Label of the region at positions in um."""
        labels = np.searchsorted(_STARTS, self.depth(x, y, z), side="right").astype(np.uint8)
        in_thalamus = labels == LABEL["thalamus"]
        if in_thalamus.any():
            labels[in_thalamus & (self.island(x, y, z) > 0)] = LABEL["dopaminergic nucleus"]
        return labels

    def island(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> FloatArray:
        """Above 0 where the thalamus holds an island of dopaminergic neurons."""
        return self._islands(x, y, z) - ISLAND_LEVEL

    def outward(self, x: FloatArray, y: FloatArray, z: FloatArray | float) -> FloatArray:
        """The way to the brain's surface in the plane, (2, ...) along x and y, um per um of depth."""
        slope = self._folds.gradient(x, y, z)[:2]
        return np.asarray(slope * (-1 / (DEPTH_SPREAD * (slope * slope).sum(axis=0) + 1e-9)))

    def nearest_vessel(self, x: FloatArray, y: FloatArray, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Points of vessels near positions in um, and the direction there.

        Returns:
            (3, n) x, y, z, and (3, n) unit vectors along the vessel; a point may be off any vessel, or far away.
        """
        point = np.stack([x, y, z])
        for _ in range(NEWTON_STEPS):
            point -= np.clip(self.vessel_step(*point), -LONGEST_STEP, LONGEST_STEP)
        first, second = self._vessel_sheets.gradient(*point), self._vessel_heights.gradient(*point)
        along = np.cross(first, second, axis=0)
        return point, along / (np.linalg.norm(along, axis=0) + 1e-12)

    def vessel_step(self, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        """The shortest step, (3, ...) um, whose opposite leads to a vessel's axis to first order."""
        values = self._vessel_sheets(x, y, z), self._vessel_heights(x, y, z)
        first, second = self._vessel_sheets.gradient(x, y, z), self._vessel_heights.gradient(x, y, z)
        a, b, c = (first * first).sum(axis=0), (first * second).sum(axis=0), (second * second).sum(axis=0)
        determinant = a * c - b * b + 1e-12 * (a * c) + 1e-30
        weight_first = (c * values[0] - b * values[1]) / determinant
        weight_second = (a * values[1] - b * values[0]) / determinant
        return np.asarray(weight_first * first + weight_second * second)


_STARTS = np.array([band.start for band in BANDS[1:]])
