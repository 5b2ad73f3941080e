"""The DDIM schedule and its step: deterministic sampling (eta 0) with epsilon prediction, coefficients in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels.ddim import ddim_step

TRAINING_STEPS = 1000
BETA_FIRST, BETA_LAST = 1e-4, 0.02


def alphas_cumprod() -> NDArray[np.float64]:
    """abar_t of the 1000 training steps with linear betas, (1000,)."""
    betas: NDArray[np.float64] = np.linspace(BETA_FIRST, BETA_LAST, TRAINING_STEPS)
    return np.cumprod(1 - betas, dtype=np.float64)


class DDIMSchedule:
    """Evenly spaced timesteps with the smallest stride that gives exactly ``steps`` of them, the last one 0.

    Attributes:
        timesteps: int64 (steps,), in sampling order, e.g. 938, 871, ..., 67, 0 for 15.
        alphas_cumprod: float64 (steps,), abar at those timesteps.

    Raises:
        InputError: where no stride gives that many steps, naming the nearest numbers that work.
    """

    def __init__(self, steps: int = 15) -> None:
        stride = _stride(steps)
        self.steps = steps
        self.timesteps: NDArray[np.int64] = np.arange(0, TRAINING_STEPS, stride)[::-1].copy()
        self.alphas_cumprod: NDArray[np.float64] = alphas_cumprod()[self.timesteps]

    def following(self, i: int) -> float:
        """Abar after step ``i``: that of the next step, 1 after the last."""
        return float(self.alphas_cumprod[i + 1]) if i + 1 < self.steps else 1.0

    def step(self, x: Tensor, eps: Tensor, i: int) -> Tensor:
        """The state after step ``i`` (0 .. steps-1) from the state before it and the predicted noise; any shape.

        The predicted image is clipped to -1..1 and the noise recomputed from it; the last step gives that image.
        """
        return ddim_step(x, eps, float(self.alphas_cumprod[i]), self.following(i))


def _stride(steps: int) -> int:
    """The smallest stride for which ``range(0, 1000, stride)`` has ``steps`` elements."""
    possible = {-(-TRAINING_STEPS // stride): stride for stride in range(TRAINING_STEPS, 0, -1)}
    if steps not in possible:
        near = sorted(possible, key=lambda count: (abs(count - steps), count))[:2]
        raise InputError(
            f"{steps} DDIM steps do not divide {TRAINING_STEPS} evenly; the nearest that do are {near[0]} and {near[1]}"
        )
    return possible[steps]
