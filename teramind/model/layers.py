"""Leaf layers on activations that live as ``(N, H, W, Z, C)`` in memory.

That layout is channels-last NCHW with ``Z*C`` channels, so that a convolution over two slices is a 2D convolution
without a copy, while each voxel's C channels stay contiguous for norms, linear layers and attention. Weights keep the
reference implementation's names and 3D shapes, so that its checkpoints load as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-6
FOLDED_SLICES = 2  # up to this many slices, folding the z-taps into a 2D convolution multiplies less than conv3d does


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """``x * rsqrt(mean(x^2) + 1e-6) * weight`` over the last axis, statistics in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight.flatten().float(), NORM_EPSILON).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels; ``shape`` is that of the stored weight, e.g. (C,) or (1, C, 1, 1)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:  # (..., C)
        return rms_norm(x, self.weight)  # (..., C)


class Conv(nn.Module):
    """Zero-padded convolution of size (kz, k, k) over ``(N, H, W, Z, C)``, each patch on its own.

    ``kz`` is 1 or 3. The weight is (out, in, kz, k, k), as in a Conv3d.
    """

    def __init__(self, inputs: int, outputs: int, kz: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kz, k, k))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's own start for a convolution
        bound = 1 / math.sqrt(inputs * kz * k * k)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, Z, I)
        weight = self.weight.to(x.dtype)  # a no-op but under autocast
        bias = self.bias.to(x.dtype)
        if weight.shape[-1] == 1 and weight.shape[2] == 1:
            return F.linear(x, weight.flatten(1), bias)
        if x.shape[3] > FOLDED_SLICES:
            return convolve_slices(x, weight, bias)
        return convolve_plane(x, fold_z(weight, x.shape[3]), bias)  # (N, H, W, Z, O)


class UpConv(Conv):
    """A ``Conv`` after nearest upsampling x2 in plane, as four 2x2 convolutions at the lower resolution."""

    def forward(self, x: Tensor) -> Tensor:  # (N, h, w, Z, I)
        n, h, w, z, _ = x.shape
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        phases = [
            [convolve_padded(x, merge_taps(weight, row, column), bias, row, column) for column in (0, 1)]
            for row in (0, 1)
        ]
        rows = [torch.stack(columns, dim=3) for columns in phases]  # 2 x (N, h, w, 2, Z, O)
        return torch.stack(rows, dim=2).reshape(n, 2 * h, 2 * w, z, -1)  # (N, 2h, 2w, Z, O)


def merge_taps(weight: Tensor, row: int, column: int) -> Tensor:
    """The 2x2 kernel that acts on the lower resolution for output pixels of one parity.

    Per axis, a 3-tap kernel (k0, k1, k2) on a nearest-upsampled signal is (k0, k1+k2) for even and (k0+k1, k2) for
    odd outputs. ``weight`` is (O, I, kz, 3, 3); the result (O, I, kz, 2, 2).
    """
    k0, k1, k2 = weight.unbind(-2)
    weight = torch.stack((k0 + k1, k2) if row else (k0, k1 + k2), dim=-2)
    k0, k1, k2 = weight.unbind(-1)
    return torch.stack((k0 + k1, k2) if column else (k0, k1 + k2), dim=-1)


def convolve_padded(x: Tensor, weight: Tensor, bias: Tensor, row: int, column: int) -> Tensor:
    """A 2x2 convolution whose taps reach up and left for even outputs (0), down and right for odd ones (1)."""
    below, right = row, column
    padded = F.pad(x, (0, 0, 0, 0, 1 - right, right, 1 - below, below))
    if x.shape[3] > FOLDED_SLICES:
        return convolve_slices(padded, weight, bias, plane_padding=0)
    return convolve_plane(padded, fold_z(weight, x.shape[3]), bias, padding=0)


def fold_z(weight: Tensor, slices: int) -> Tensor:
    """(O, I, kz, k, k) with zero-padded z-taps -> the (Z*O, Z*I, k, k) block weight that acts on Z slices at once."""
    outputs, inputs, kz, k, _ = weight.shape
    reach = kz // 2
    blocks = [
        [
            weight[:, :, source - target + reach]
            if abs(source - target) <= reach
            else weight.new_zeros(outputs, inputs, k, k)
            for source in range(slices)
        ]
        for target in range(slices)
    ]
    return torch.cat([torch.cat(row, dim=1) for row in blocks], dim=0)


def convolve_plane(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 1) -> Tensor:
    """A 2D convolution over (N, H, W, Z, C) with a z-folded weight (Z*O, Z*I, k, k)."""
    n, h, w, z, c = x.shape
    image = x.reshape(n, h, w, z * c).permute(0, 3, 1, 2)  # (N, Z*I, H, W), channels last
    out = F.conv2d(image, weight, bias.repeat(z), padding=padding)  # (N, Z*O, H', W')
    out = out.permute(0, 2, 3, 1)  # (N, H', W', Z*O)
    return out.reshape(*out.shape[:3], z, -1)


def convolve_slices(x: Tensor, weight: Tensor, bias: Tensor, plane_padding: int = 1) -> Tensor:
    """A 3D convolution over (N, H, W, Z, C); conv3d does not mind that its depth axis is our H."""
    reach = weight.shape[2] // 2
    out = F.conv3d(
        x.permute(0, 4, 1, 2, 3),  # (N, I, H, W, Z), channels last
        weight.permute(0, 1, 3, 4, 2),  # (O, I, k, k, kz)
        bias,
        padding=(plane_padding, plane_padding, reach),
    )
    return out.permute(0, 2, 3, 4, 1)  # (N, H', W', Z, O)


def upsample(x: Tensor) -> Tensor:
    """Nearest upsampling x2 in plane: (N, h, w, Z, C) -> (N, 2h, 2w, Z, C)."""
    n, h, w, z, c = x.shape
    return x[:, :, None, :, None].expand(n, h, 2, w, 2, z, c).reshape(n, 2 * h, 2 * w, z, c)


def average_pool(x: Tensor) -> Tensor:
    """Mean over 2x2 px: (N, H, W, Z, C) -> (N, H/2, W/2, Z, C)."""
    n, h, w, z, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, z, c).mean(dim=(2, 4))
