"""The diffusion of positions: a cosine schedule that is fine near the end, and its steps back.

The plain cosine schedule of 70 steps would leave noise of 75 um at its last step; warping time by a cube leaves 1 um.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teramind.checks import integer_between

TIMESTEPS = 70
COSINE_SHIFT = 0.008
LEAST_BETA, MOST_BETA = 1e-8, 0.999


def betas() -> NDArray[np.float64]:
    """beta_t of the 70 steps, (70,): cosine schedule (Nichol and Dhariwal 2021, eq. 17) in cubed time."""
    time = (np.arange(TIMESTEPS + 1) / TIMESTEPS) ** 3
    curve: NDArray[np.float64] = np.cos(np.pi / 2 * (time + COSINE_SHIFT) / (1 + COSINE_SHIFT)) ** 2
    abar = curve / curve[0]
    ratio: NDArray[np.float64] = abar[1:] / abar[:-1]
    return np.minimum(np.maximum(1 - ratio, LEAST_BETA), MOST_BETA)


def alphas_cumprod() -> NDArray[np.float64]:
    """abar_t, (70,)."""
    return np.cumprod(1 - betas(), dtype=np.float64)


class Schedule:
    """Some of the 70 timesteps, from the last to 0, and the steps between them.

    Attributes:
        timesteps: (steps,) descending.
        abar: (steps,) at those.
    """

    def __init__(self, steps: int = TIMESTEPS) -> None:
        integer_between("steps", steps, 1, TIMESTEPS)
        self.timesteps = np.linspace(TIMESTEPS - 1, 0, steps).round().astype(int)
        self.abar = alphas_cumprod()[self.timesteps]

    def clean(self, x: Tensor, eps: Tensor, i: int) -> Tensor:
        """The position without noise that a prediction of the noise implies, at step ``i``."""
        return (x - float(np.sqrt(1 - self.abar[i])) * eps) / float(np.sqrt(self.abar[i]))

    def step(self, x: Tensor, clean: Tensor, i: int, noise: Tensor) -> Tensor:
        """The state after step ``i``: the ancestral step of DDPM when all timesteps are taken (DDIM with eta 1).

        Args:
            x: (n, d) the state before it.
            clean: (n, d) the prediction of what it is without noise.
            i: 0 .. steps - 1; the last one gives ``clean``.
            noise: (n, d) standard normals.
        """
        if i + 1 == len(self.abar):
            return clean
        now, after = float(self.abar[i]), float(self.abar[i + 1])
        eps = (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
        fresh = np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        kept = np.sqrt(max(0.0, 1 - after - fresh**2))
        return np.sqrt(after) * clean + kept * eps + fresh * noise


def add_noise(clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t of positions (n, d) at timesteps (n,)."""
    abar = torch.from_numpy(alphas_cumprod()).to(t.device)[t, None]  # 1 - abar needs its 64 bits near t = 0
    return abar.sqrt().to(clean) * clean + (1 - abar).sqrt().to(clean) * noise
