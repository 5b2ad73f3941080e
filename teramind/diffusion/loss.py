"""The two-path training objective."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.diffusion.schedule import alphas_cumprod
from teramind.model.config import BIN_SIZE
from teramind.model.network import TeraMind

Paths = Literal["both", "boundary"]


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
    rows, columns = (slice(start * size, (start + 2) * size) for start in window)
    bin_rows, bin_columns = (slice(part.start // BIN_SIZE, part.stop // BIN_SIZE) for part in (rows, columns))
    margin = (size // 2,) * 4
    errors = denoising_errors(
        net,
        F.pad(image, margin)[..., rows, columns],
        F.pad(torch.ones_like(image[:1, :1, :1]), margin)[..., rows, columns],
        F.pad(genes, (size // 2 // BIN_SIZE,) * 4)[..., bin_rows, bin_columns],
        t,
        noise[..., rows, columns],
    )
    return errors.sum(0).mean()


def denoising_errors(
    net: TeraMind,
    image: Tensor,
    inside: Tensor,
    genes: Tensor,
    t: Tensor,
    noise: Tensor,
    paths: Paths = "both",
    beyond: float = 0.0,
    border: float = 1.0,
) -> Tensor:
    """Mean squared noise error of each region, on each path: what every training objective is made of.

    A mean runs over all elements of a region, those outside the crop included, as in the reference.

    Args:
        net: the network.
        image: (B, S, Z, H+P, W+P) padded regions of crops, scaled to -1..1.
        inside: (B or 1, 1, 1, H+P, W+P), 1 within the crop and 0 beyond it.
        genes: (B, G, Zg, (H+P)/16, (W+P)/16) counts, zero beyond the crop.
        t: (B,) timesteps.
        noise: (B, S, Z, H+P, W+P) standard normals.
        paths: "both", or "boundary" to leave out the decoder on unshifted patches, which only the reference's
            training needs.
        beyond: what the network sees beyond the crop: 0 in the reference's training, -1 when it generates.
        border: how many times as much the outermost pixels of decoder patches count as the others; 1 in the reference.
            A convolution sees least there, and they are learned last.

    Returns:
        (2, B) for both paths, the boundary-aware one first; (1, B) for it alone.
    """
    margin = net.config.patch_size // 2
    abar = torch.as_tensor(alphas_cumprod(), device=image.device)[t].to(image.dtype).reshape(-1, 1, 1, 1, 1)
    noisy = (image * abar.sqrt() + noise * (1 - abar).sqrt()) * inside + beyond * (1 - inside)
    centre = noise[..., margin:-margin, margin:-margin]
    weights = border_weights(net.config.patch_size, border).to(image) if border != 1 else None

    def mean_square(error: Tensor) -> Tensor:
        square = error**2
        if weights is not None:
            square = square * weights.repeat(*(side // len(weights) for side in square.shape[-2:]))
        return square.flatten(1).mean(1)

    if paths == "boundary":
        return mean_square(net(noisy, t, genes) - centre)[None]
    boundary, unshifted = net(noisy, t, genes, paths="both")
    return torch.stack([mean_square(boundary - centre), mean_square(inside * (unshifted - noise))])


def border_weights(patch_size: int, border: float) -> Tensor:
    """(P, P) weights of a patch's pixels, 1 in the mean, the outermost ``border`` times those of the others."""
    weights = torch.full((patch_size, patch_size), border)
    weights[1:-1, 1:-1] = 1
    return weights / weights.mean()
