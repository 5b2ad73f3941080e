"""The two-path training objective."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.diffusion.schedule import alphas_cumprod
from teramind.model.config import BIN_SIZE
from teramind.model.network import TeraMind


def training_loss(
    net: TeraMind, image: Tensor, genes: Tensor, t: Tensor, noise: Tensor, window: tuple[int, int] = (0, 0)
) -> Tensor:
    """Mean squared noise error on the shifted patch plus, masked, on the four unshifted ones; a scalar.

    Args:
        net: the network.
        image: (B, S, Z, n*P, m*P) crop, scaled to -1..1.
        genes: (B, G, Zg, n*P/16, m*P/16), the crop's counts; beyond it the network sees none, as in the reference.
        t: (B,) timesteps.
        noise: (B, S, Z, n*P+P, m*P+P) standard normals for the padded crop.
        window: row and column of the 2 x 2 window of encoder patches on the padded grid, 0 .. n-1 and 0 .. m-1.
    """
    size = net.config.patch_size
    margin = size // 2
    abar = torch.as_tensor(alphas_cumprod(), device=image.device)[t].to(image.dtype).reshape(-1, 1, 1, 1, 1)
    inside = F.pad(torch.ones_like(image[:1, :1, :1]), (margin,) * 4)  # (1, 1, 1, nP+P, mP+P)
    noisy = (F.pad(image, (margin,) * 4) * abar.sqrt() + noise * (1 - abar).sqrt()) * inside
    counts = F.pad(genes, (margin // BIN_SIZE,) * 4)

    rows, columns = (slice(start * size, (start + 2) * size) for start in window)
    bin_rows, bin_columns = (slice(part.start // BIN_SIZE, part.stop // BIN_SIZE) for part in (rows, columns))
    target, mask = noise[..., rows, columns], inside[..., rows, columns]
    boundary, unshifted = net(noisy[..., rows, columns], t, counts[..., bin_rows, bin_columns], paths="both")
    centre = target[..., margin:-margin, margin:-margin]
    return F.mse_loss(boundary, centre) + (mask * (target - unshifted) ** 2).mean()
