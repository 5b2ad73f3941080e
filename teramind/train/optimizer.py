"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
COSINE_FLOOR = 0.01  # of the rate, at the end


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Adam or AdamW in its fused form."""
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def rate(schedule: str, step: int, progress: float, warmup: int) -> float:
    """The learning rate of a step in units of the one that was asked for.

    Args:
        schedule: "constant", or "cosine" down to 1 %.
        step: from 0.
        progress: the part of the run that is done, 0 .. 1.
        warmup: steps over which the rate rises linearly.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule == "constant":
        return rise
    return rise * (COSINE_FLOOR + (1 - COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
