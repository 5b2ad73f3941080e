"""2D convolutions whose weights are prepared beforehand: laid out by oneDNN on x86, elsewhere channels last.

``F.conv2d`` brings a weight into oneDNN's blocked layout at each call, which takes longer than the convolution where
the image is small; and torch sends ``F.linear`` in float32 to a library that runs at 40 % of the speed of these on AMD.
The operators are those torch's own compiler emits. Images are (N, C, H, W) in channels-last memory.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.model.derived import keeps_weights
from teramind.model.policy import computes_in

STRIDE = DILATION = (1, 1)


def uses_onednn(x: Tensor) -> bool:
    """Whether oneDNN lays out weights for a tensor: at inference, on a CPU, in a type that the CPU computes in."""
    return x.device.type == "cpu" and keeps_weights() and x.dtype in _types() and bool(torch.backends.mkldnn.enabled)


@cache
def _types() -> frozenset[torch.dtype]:
    operators = torch.ops.mkldnn
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return frozenset()
    if not all(hasattr(operators, name) for name in ("_convolution_pointwise", "_convolution_transpose_pointwise")):
        return frozenset()
    return frozenset(each for each in (torch.float32, torch.bfloat16) if computes_in(each, torch.device("cpu")))


def prepare(weight: Tensor, image: Tensor) -> Tensor:
    """(O, I, k, k) as ``convolve`` wants it for images of this size; any batch will do."""
    if not uses_onednn(image):
        return weight.contiguous(memory_format=torch.channels_last)
    prepared: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, _padding(weight), STRIDE, DILATION, 1, list(image.shape)
    )
    return prepared


def convolve(image: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """A zero-padded convolution with a prepared weight; with ``gelu``, its tanh-GELU."""
    if not weight.is_mkldnn:
        out = F.conv2d(image, weight, bias, padding=_padding(weight))
        return F.gelu(out, approximate="tanh") if gelu else out
    after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        image, weight, bias, _padding(weight), STRIDE, DILATION, 1, *after
    )
    return result


def add_convolution(image: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """``other`` plus a zero-padded convolution."""
    if not weight.is_mkldnn:
        return F.conv2d(image, weight, bias, padding=_padding(weight)).add_(other)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
        image, other, weight, bias, _padding(weight), STRIDE, DILATION, 1, "add", None, None, [], None
    )
    return out


def add_convolution_(image: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """``add_convolution`` in place of ``other``."""
    if not weight.is_mkldnn:
        return other.add_(F.conv2d(image, weight, bias, padding=_padding(weight)))
    out: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        other, image, weight, bias, _padding(weight), STRIDE, DILATION, 1, "add", None, None, [], None
    )
    return out


def prepare_doubling(weight: Tensor, image: Tensor) -> Tensor:
    """(I, O, 4, 4) as ``convolve_doubling`` wants it for images of this size."""
    if not uses_onednn(image):
        return weight.contiguous(memory_format=torch.channels_last)
    prepared: Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
        weight, (1, 1), (0, 0), (2, 2), DILATION, 1, list(image.shape)
    )
    return prepared


def convolve_doubling(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The transposed convolution that doubles the resolution: (N, I, h, w) -> (N, O, 2h, 2w)."""
    if not weight.is_mkldnn:
        return F.conv_transpose2d(image, weight, bias, stride=2, padding=1)
    out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        image, weight, bias, (1, 1), (0, 0), (2, 2), DILATION, 1, "none", [], ""
    )
    return out


def _padding(weight: Tensor) -> tuple[int, int]:
    return (weight.shape[-1] // 2,) * 2
