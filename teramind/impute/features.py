"""Features of positions that let a small network see fine detail."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 4.0  # positions, in units of the frame's scale, are clipped to this before their features are taken


def waves(values: Tensor, octaves: int) -> Tensor:
    """Sines and cosines of values; the longest has a period of twice the clipped range, each next one half of it.

    Args:
        values: (n, d).
        octaves: how many.

    Returns:
        (n, 2 * d * octaves).
    """
    frequency = math.pi / LARGEST * 2.0 ** torch.arange(octaves, device=values.device)
    angles = (values.clamp(-LARGEST, LARGEST)[..., None] * frequency).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
