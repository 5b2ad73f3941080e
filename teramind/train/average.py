"""The moving average of the weights, which generates better than the weights themselves."""

from __future__ import annotations

import copy

import torch

from teramind.model.network import TeraMind


class Average:
    """An exponential moving average of a network's weights.

    The decay starts low and rises to what was asked for, so that the first random weights are soon forgotten.

    Args:
        net: the network that is trained.
        decay: of the average in a step.
    """

    def __init__(self, net: TeraMind, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, net: TeraMind, step: int) -> None:
        """Take in the weights after ``step`` steps, 1 or more."""
        decay = min(self.decay, step / (step + 10))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - decay)
