"""Which timesteps a training sees how often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from teramind.diffusion.schedule import TRAINING_STEPS, alphas_cumprod
from teramind.errors import InputError

TIMESTEPS = ("uniform", "log-normal")

Quantile = Callable[[float], int]
"""From a number in 0..1 to the timestep below which that part of a training's timesteps lies."""


def uniform(quantile: float) -> int:
    """Every timestep equally often, as the reference."""
    return min(int(quantile * TRAINING_STEPS), TRAINING_STEPS - 1)


def timestep_quantile(name: str, mean: float = -1.2, spread: float = 1.2) -> Quantile:
    """How often which timestep is seen.

    - "uniform": all equally often. With the reference's betas, three quarters of them have more noise than signal even
      for images of unit variance.
    - "log-normal": the logarithm of the noise level sigma = sqrt((1 - abar) / abar) is normal, and what lies beyond the
      schedule's ends goes to them (Karras et al., "Elucidating the design space of diffusion-based generative models",
      NeurIPS 2022, table 1; the defaults are theirs, for images of standard deviation 0.5).

    Args:
        name: of the distribution.
        mean: of ln sigma, for "log-normal".
        spread: standard deviation of ln sigma, for "log-normal".
    """
    if name == "uniform":
        return uniform
    if name != "log-normal":
        raise InputError(f"there is no distribution of timesteps {name!r}; there are {', '.join(TIMESTEPS)}")
    abar = alphas_cumprod()
    levels = np.log((1 - abar) / abar) / 2
    between = (levels[1:] + levels[:-1]) / 2  # a timestep reaches half way to its neighbours

    def log_normal(quantile: float) -> int:
        return int(np.searchsorted(between, mean + spread * ndtri(quantile)))

    return log_normal
