"""Leaf layers on activations that live as ``(N, H, W, Z, C)`` in memory.

That layout is channels-last NCHW with ``Z*C`` channels, so that a convolution over two slices is a 2D convolution
without a copy, while each voxel's C channels stay contiguous for norms, linear layers and attention. Weights keep the
reference implementation's names and 3D shapes, so that its checkpoints load as they are.

A convolution of several slices has more than one form (``slices``); which is taken depends on the device and the shape.
Inference keeps the weights of that form (``derived``), prepared for the device (``prepared``); training derives them at
each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teramind.kernels.layout import pairs, spread
from teramind.kernels.norms import rms_norm
from teramind.model import prepared
from teramind.model.derived import DerivingLayer, keeps_weights
from teramind.model.policy import policy_for
from teramind.model.slices import FOLDED_SLICES, PairWeights, fold_z, join_pairs, pair_weights, slice_pairs

PAIRED_OUTPUTS = 16  # from how many on pairs of slices are worth it: 8 do not fill a CPU's vectors (0.6x as fast)


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels; ``shape`` is that of the stored weight, e.g. (C,) or (1, C, 1, 1)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:  # (..., C)
        return rms_norm(x, self.weight)  # (..., C)


class Linear(DerivingLayer, nn.Linear):
    """A linear layer; with ``gelu``, its tanh-GELU."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:  # (..., I)
        if prepared.uses_onednn(x):
            image = pixels(x)  # (1, I, 1, M)
            packed = self.form("packed", lambda: prepared.prepare(self.weight[:, :, None, None], image))
            out = prepared.convolve(image, packed, self.bias, gelu)
            return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)  # (..., O)
        out = super().forward(x)
        return F.gelu(out, approximate="tanh") if gelu else out  # (..., O)


class Kernel(DerivingLayer):
    """The parameters of a convolution of size (kz, k, k), as a Conv3d keeps them."""

    def __init__(self, inputs: int, outputs: int, kz: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kz, k, k))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's own start for a convolution
        bound = 1 / math.sqrt(inputs * kz * k * k)
        nn.init.uniform_(self.bias, -bound, bound)

    def filled_weight(self, inputs: int) -> Tensor:
        """The weight for an input that has been filled up with zero channels."""
        extra = inputs - self.weight.shape[1]
        return F.pad(self.weight, (0, 0, 0, 0, 0, 0, 0, extra)) if extra else self.weight


class Conv(Kernel):
    """Zero-padded convolution over ``(N, H, W, Z, C)``, each patch on its own; ``kz`` is 1 or 3."""

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:  # (N, H, W, Z, I), (N, H, W, Z, O)
        """The convolution, added to ``onto`` where given."""
        if prepared.uses_onednn(x) and self._is_plane_by_plane(x.shape[3]):
            return self._convolve_planes(x, onto)
        if self._is_paired(x):
            return self._convolve_pairs(x, onto)
        out = convolve_folded(x, self) if x.shape[3] <= FOLDED_SLICES else convolve_slices(x, self)
        return out if onto is None else added(out, onto)  # (N, H, W, Z, O)

    def reads_planes(self, x: Tensor) -> bool:
        """Whether an input like ``x`` is best laid out plane by plane."""
        by_plane = prepared.uses_onednn(x) and self._is_plane_by_plane(x.shape[3])
        return x.shape[3] > 1 and (by_plane or self._is_paired(x))

    def channel_multiple(self, x: Tensor) -> int:
        """What the number of channels of an input on the device of ``x`` is best filled up to a multiple of."""
        return 8 if policy_for(x.device).fills_channels and not torch.is_grad_enabled() else 1

    def _is_plane_by_plane(self, slices: int) -> bool:
        """Whether no slice reads another."""
        return slices == 1 or self.weight.shape[2] == 1

    def _is_paired(self, x: Tensor) -> bool:
        is_worth_it = policy_for(x.device).pairs_slices and self.weight.shape[0] >= PAIRED_OUTPUTS
        return is_worth_it and x.shape[3] % 2 == 0 and self.weight.shape[2] == 3

    def _convolve_planes(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """The slices as a batch."""
        image = planes(x)  # (Z*N, I, H, W)
        centre = self.weight.shape[2] // 2
        packed = self.form(
            ("plane", image.shape[1:]),
            lambda: prepared.prepare(self.filled_weight(x.shape[4])[:, :, centre], image),
        )
        if onto is None:
            return unplanes(prepared.convolve(image, packed, self.bias), len(x))
        return unplanes(prepared.add_convolution(image, packed, self.bias, planes(onto)), len(x))

    def _convolve_pairs(self, x: Tensor, onto: Tensor | None) -> Tensor:
        even, odd, both = slice_pairs(x)  # (Z/2 * N, I, H, W) each
        weights = self._pair_weights(x.shape[3], both, lambda kernel: prepared.prepare(kernel, both))
        shared = prepared.convolve(both, weights.both, self.bias)
        to_even = prepared.add_convolution(odd, weights.to_even, None, shared)
        to_odd = prepared.add_convolution_(even, weights.to_odd, None, shared)
        if weights.from_below is not None and weights.from_above is not None:
            n = len(x)
            prepared.add_convolution_(odd[:-n], weights.from_below, None, to_even[n:])
            prepared.add_convolution_(even[n:], weights.from_above, None, to_odd[:-n])
        return join_pairs(to_even, to_odd, len(x), onto)  # (N, H, W, Z, O)

    def _pair_weights(self, slices: int, image: Tensor, prepare: Callable[[Tensor], Tensor]) -> PairWeights:
        def derive() -> PairWeights:
            return pair_weights(self.filled_weight(image.shape[1]).to(image.dtype), slices, prepare)

        return self.form(("paired", slices > 2, image.shape[1:]), derive) if keeps_weights() else derive()


class Pointwise(Kernel):
    """A 1x1x1 convolution of a concatenation, which inference on a CPU does not build."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, 1)

    def reads_parts(self, features: Sequence[Tensor]) -> bool:
        """Whether features are best left apart, all of them lying patch by patch."""
        return prepared.uses_onednn(features[0]) and all(part.ndim == 5 for part in features)

    def forward(self, x: Tensor) -> Tensor:  # (N, H, W, Z, I), filled up with zeros or not
        weight = self.filled_weight(x.shape[-1]).flatten(1)
        return F.linear(x, weight.to(x.dtype), self.bias.to(x.dtype))  # (N, H, W, Z, O)

    def of_parts(self, features: Sequence[Tensor], genes: Tensor | None) -> Tensor:
        """Features (N, H, W, Z, ci) and genes (N, H/2, W/2, Z, cg), their channels I together -> (N, H, W, Z, O)."""
        parts = [*features] if genes is None else [*features, genes]
        first, *others = self.form("packed", lambda: self._pack(parts))
        out = prepared.convolve(pixels(features[0]), first, self.bias)  # (1, O, 1, M)
        for part, packed in zip(features[1:], others, strict=False):
            prepared.add_convolution_(pixels(part), packed, None, out)
        result = out.permute(0, 2, 3, 1).reshape(*features[0].shape[:-1], -1)  # (N, H, W, Z, O)
        if genes is not None:
            from_genes = prepared.convolve(pixels(genes), others[-1], None)
            pairs(result).add_(spread(from_genes.permute(0, 2, 3, 1).reshape(*genes.shape[:-1], -1)))
        return result

    def _pack(self, parts: Sequence[Tensor]) -> list[Tensor]:
        widths = [part.shape[-1] for part in parts]
        blocks = self.weight[:, :, 0].split(widths, dim=1)
        return [prepared.prepare(block.contiguous(), pixels(part)) for block, part in zip(blocks, parts, strict=True)]


class UpConv(Conv):
    """A ``Conv`` after nearest upsampling x2 in plane, as one transposed convolution from the lower resolution.

    Its 4x4 kernel with stride 2 multiplies what four 2x2 kernels, one for each parity of the output pixel, would.
    """

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:  # (N, h, w, Z, I), (N, 2h, 2w, Z, O)
        if self._is_paired(x):
            return self._convolve_pairs(x, onto)
        out = double_folded(x, self) if x.shape[3] <= FOLDED_SLICES else double_slices(x, self)
        return out if onto is None else added(out, onto)  # (N, 2h, 2w, Z, O)

    def reads_planes(self, x: Tensor) -> bool:
        return x.shape[3] > 1 and self._is_paired(x)

    def _convolve_pairs(self, x: Tensor, onto: Tensor | None) -> Tensor:
        even, odd, both = slice_pairs(x)  # (Z/2 * N, I, h, w) each
        weights = self._pair_weights(
            x.shape[3], both, lambda kernel: prepared.prepare_doubling(doubling_kernel(kernel).contiguous(), both)
        )
        shared = prepared.convolve_doubling(both, weights.both, self.bias)
        to_even = prepared.convolve_doubling(odd, weights.to_even, None).add_(shared)
        to_odd = prepared.convolve_doubling(even, weights.to_odd, None).add_(shared)
        if weights.from_below is not None and weights.from_above is not None:
            n = len(x)
            to_even[n:] += prepared.convolve_doubling(odd[:-n], weights.from_below, None)
            to_odd[:-n] += prepared.convolve_doubling(even[n:], weights.from_above, None)
        return join_pairs(to_even, to_odd, len(x), onto)  # (N, 2h, 2w, Z, O)


def added(out: Tensor, onto: Tensor) -> Tensor:
    """The sum of a fresh tensor and another, in the memory of the first where no gradient needs it."""
    return out + onto if torch.is_grad_enabled() else out.add_(onto)


def doubling_kernel(weight: Tensor) -> Tensor:
    """(O, I, ..., 3, 3) of a convolution after nearest upsampling -> (I, O, ..., 4, 4) of the transposed one.

    Per axis, taps (k0, k1, k2) on a nearest-upsampled signal are (k0, k1+k2) on the signal for even outputs and
    (k0+k1, k2) for odd ones.
    """
    for axis in (-2, -1):
        k0, k1, k2 = weight.unbind(axis)
        weight = torch.stack((k2, k1 + k2, k0 + k1, k0), dim=axis)
    return weight.transpose(0, 1)


def convolve_folded(x: Tensor, layer: Conv) -> Tensor:
    """A convolution of (N, H, W, Z, I), its slices folded into channels."""
    n, h, w, z, i = x.shape
    image = x.reshape(n, h, w, -1).permute(0, 3, 1, 2)  # (N, Z*I, H, W), channels last
    bias = layer.bias.to(x.dtype).repeat(z)  # a no-op cast but under autocast
    if keeps_weights():
        weight = layer.form(
            ("folded", *x.shape[1:]), lambda: prepared.prepare(fold_z(layer.filled_weight(i), z), image)
        )
        out = prepared.convolve(image, weight, bias)  # (N, Z*O, H, W)
    else:
        weight = fold_z(layer.filled_weight(i).to(x.dtype), z)
        out = F.conv2d(image, weight, bias, padding=layer.weight.shape[-1] // 2)
    return out.permute(0, 2, 3, 1).reshape(n, h, w, z, -1)


def convolve_slices(x: Tensor, layer: Conv) -> Tensor:
    """A 3D convolution over (N, H, W, Z, I); conv3d does not mind that its depth axis is our H."""
    weight = layer.filled_weight(x.shape[4])
    kz, k = weight.shape[2:4]
    out = F.conv3d(
        x.permute(0, 4, 1, 2, 3),  # (N, I, H, W, Z), channels last
        weight.to(x.dtype).permute(0, 1, 3, 4, 2),  # (O, I, k, k, kz)
        layer.bias.to(x.dtype),
        padding=(k // 2, k // 2, kz // 2),
    )
    return out.permute(0, 2, 3, 4, 1)  # (N, H, W, Z, O)


def double_folded(x: Tensor, layer: UpConv) -> Tensor:
    """``UpConv`` of (N, h, w, Z, I), its slices folded into channels."""
    n, h, w, z, i = x.shape
    image = x.reshape(n, h, w, -1).permute(0, 3, 1, 2)  # (N, Z*I, h, w), channels last
    bias = layer.bias.to(x.dtype).repeat(z)

    def fold() -> Tensor:
        return doubling_kernel(fold_z(layer.filled_weight(i).to(x.dtype), z)).contiguous()  # (Z*I, Z*O, 4, 4)

    if keeps_weights():
        weight = layer.form(("doubling", *x.shape[1:]), lambda: prepared.prepare_doubling(fold(), image))
        out = prepared.convolve_doubling(image, weight, bias)  # (N, Z*O, 2h, 2w)
    else:
        out = F.conv_transpose2d(image, fold(), bias, stride=2, padding=1)
    return out.permute(0, 2, 3, 1).reshape(n, 2 * h, 2 * w, z, -1)


def double_slices(x: Tensor, layer: UpConv) -> Tensor:
    """``UpConv`` of (N, h, w, Z, I) in three dimensions."""
    weight = layer.filled_weight(x.shape[4]).to(x.dtype)
    kernel = doubling_kernel(weight).flip(2)  # (I, O, kz, 4, 4); a transposed convolution mirrors its taps
    out = F.conv_transpose3d(
        x.permute(0, 4, 1, 2, 3),  # (N, I, h, w, Z), channels last
        kernel.permute(0, 1, 3, 4, 2),  # (I, O, 4, 4, kz)
        layer.bias.to(x.dtype),
        stride=(2, 2, 1),
        padding=(1, 1, weight.shape[2] // 2),
    )
    return out.permute(0, 2, 3, 4, 1)  # (N, 2h, 2w, Z, O)


def planes(x: Tensor) -> Tensor:
    """(N, H, W, Z, C) -> (Z*N, C, H, W), channels last; a view where ``x`` lies plane by plane in memory."""
    return x.permute(3, 0, 1, 2, 4).flatten(0, 1).contiguous().permute(0, 3, 1, 2)


def unplanes(image: Tensor, patches: int) -> Tensor:
    """The inverse of ``planes``: (Z*N, C, H, W) -> (N, H, W, Z, C), a view."""
    return image.permute(0, 2, 3, 1).unflatten(0, (-1, patches)).permute(1, 2, 3, 0, 4)


def pixels(x: Tensor) -> Tensor:
    """(..., C) -> an image (1, C, 1, M), channels last."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def parts(block: nn.Module) -> list[Any]:
    """The layers of a ``ModuleList`` or ``Sequential``."""
    return [*cast(nn.Sequential, block)]
