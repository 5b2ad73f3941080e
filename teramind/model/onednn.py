"""Convolutions on a CPU whose weights oneDNN has laid out beforehand.

``F.conv2d`` brings a weight into oneDNN's blocked layout at each call, which takes longer than the convolution where
the image is small; and torch sends ``F.linear`` in float32 to a library that runs at 40 % of the speed of these on AMD.
The operators are those torch's own compiler emits. Images are (N, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor

from teramind.model.derived import keeps_weights

STRIDE = DILATION = (1, 1)


def serves(x: Tensor) -> bool:
    """Whether these functions can take a tensor: at inference, on a CPU, in a type that the CPU computes in."""
    return x.device.type == "cpu" and x.dtype in _types() and keeps_weights() and bool(torch.backends.mkldnn.enabled)


@cache
def _types() -> frozenset[torch.dtype]:
    operators = torch.ops.mkldnn
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return frozenset()
    if not all(hasattr(operators, name) for name in ("_convolution_pointwise", "_convolution_transpose_pointwise")):
        return frozenset()
    types = {torch.float32}
    if operators._is_mkldnn_bf16_supported():
        types.add(torch.bfloat16)
    return frozenset(types)


def pack(weight: Tensor, image: Tensor) -> Tensor:
    """(O, I, k, k) in the layout for images of this size; any batch will do."""
    padding = (weight.shape[-1] // 2,) * 2
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.detach(), padding, STRIDE, DILATION, 1, list(image.shape)
    )
    return packed


def convolve(image: Tensor, packed: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """A zero-padded convolution; ``activation`` is None or "gelu" (tanh)."""
    padding = (packed.shape[-1] // 2,) * 2
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        image, packed, bias, padding, STRIDE, DILATION, 1, activation or "none", [], "tanh" if activation else ""
    )
    return out


def add_convolution(image: Tensor, packed: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """``other`` plus a zero-padded convolution."""
    padding = (packed.shape[-1] // 2,) * 2
    out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
        image, other, packed, bias, padding, STRIDE, DILATION, 1, "add", None, None, [], None
    )
    return out


def add_convolution_(image: Tensor, packed: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """``add_convolution`` in place of ``other``."""
    padding = (packed.shape[-1] // 2,) * 2
    out: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        other, image, packed, bias, padding, STRIDE, DILATION, 1, "add", None, None, [], None
    )
    return out


def pack_doubling(weight: Tensor, image: Tensor) -> Tensor:
    """(I, O, 4, 4) of a transposed convolution with stride 2, in the layout for images of this size."""
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
        weight.detach(), (1, 1), (0, 0), (2, 2), DILATION, 1, list(image.shape)
    )
    return packed


def convolve_doubling(image: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """The transposed convolution that doubles the resolution: (N, I, h, w) -> (N, O, 2h, 2w)."""
    out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        image, packed, bias, (1, 1), (0, 0), (2, 2), DILATION, 1, "none", [], ""
    )
    return out
