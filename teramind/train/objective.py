"""What is minimised: the noise errors of both paths, weighted by timestep."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from teramind.diffusion.loss import Paths, denoising_errors
from teramind.diffusion.schedule import alphas_cumprod
from teramind.errors import InputError
from teramind.model.network import TeraMind

LOSSES = ("plain", "min-snr", "velocity")
PATHS = ("both", "boundary")


def loss_weights(name: str, gamma: float = 5.0, cap: float = 300.0, deviation: float = 1.0) -> NDArray[np.float64]:
    """The factor of the squared noise error at each of the 1000 timesteps.

    - "plain": 1, as the reference.
    - "min-snr": min(snr, gamma) / snr with snr = abar / (1 - abar) (Hang et al., "Efficient diffusion training via
      min-SNR weighting strategy", ICCV 2023, for noise prediction).
    - "velocity": min(1 / abar, cap). 1 / abar turns the error of the noise into that of the velocity (Salimans and Ho,
      "Progressive distillation", ICLR 2022). It looks at high noise, where what is left to learn comes from the genes.
      That is for images of unit variance, and where most of the image is dark, high noise still counts for little: with
      sigma^2 = min(1 / abar, cap) - 1, the weight is 1 + sigma^2 / deviation^2, and every timestep counts the same for
      a network that knows but the deviation (Karras et al., "Elucidating the design space", NeurIPS 2022, table 1).

    Args:
        name: of the weighting.
        gamma: largest signal-to-noise ratio that counts in full, of "min-snr".
        cap: largest factor of "velocity" at deviation 1.
        deviation: standard deviation of the images, scaled to -1..1, for "velocity".
    """
    abar = alphas_cumprod()
    if name == "plain":
        return np.ones_like(abar)
    if name == "min-snr":
        snr = abar / (1 - abar)
        return np.minimum(snr, gamma) / snr
    if name == "velocity":
        return 1 + (np.minimum(1 / abar, cap) - 1) / deviation**2
    raise InputError(f"there is no loss {name!r}; there are {', '.join(LOSSES)}")


class Objective(nn.Module):
    """The training loss of a batch, as a module so that processes can share its gradient.

    Args:
        net: the network.
        weights: (1000,) from ``loss_weights``.
        paths: "both", or "boundary" to train what inference uses alone.
        beyond: what the network sees where nothing is inside.
        border: weight of the outermost pixels of decoder patches.
    """

    weights: Tensor

    def __init__(
        self,
        net: TeraMind,
        weights: NDArray[np.float64],
        paths: Paths,
        beyond: float = 0.0,
        border: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.paths, self.beyond, self.border = net, paths, beyond, border
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)

    def forward(self, image: Tensor, inside: Tensor, genes: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A stacked ``Example`` -> the loss, and the errors (paths, B) at weight 1 of every timestep, no gradient."""
        errors = self.errors(self.net, image, inside, genes, t, noise)
        return (self.weights[t] * errors.sum(0)).mean(), errors.detach()

    def errors(self, net: TeraMind, image: Tensor, inside: Tensor, genes: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """(paths, B): a network's errors, every timestep with weight 1."""
        pixels = image.float() / 127.5 - 1
        return denoising_errors(
            net, pixels, inside.float(), genes.float(), t, noise, self.paths, self.beyond, self.border
        )
