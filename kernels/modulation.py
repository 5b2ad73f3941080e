"""RMSNorm, modulation by time and SiLU: what precedes a residual block's second convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.dispatch import Implementation, Verdict, use_triton
from teramind.kernels.language import (
    inverse_rms,
    jit,
    load_channels,
    load_rows,
    row_offsets,
    silu,
    store_rows,
    tl,
    voxel_of,
)
from teramind.kernels.launch import channel_rows, channel_vector, fitting_rows, next_power_of_2
from teramind.kernels.norms import EPSILON, is_composed, normalise, silu_in_place, wide_type

MAX_CHANNELS = 8192  # a voxel's channels are held in registers together

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def modulated_silu_reference(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *, planes: bool = False
) -> Tensor:
    """``modulated_silu`` in plain torch."""
    scale, shift = (part[:, None, None, None].to(wide_type(x)) for part in (scale, shift))  # (N, 1, 1, 1, C)
    normed = normalise(x, weight.flatten() * (1 + scale), shift)  # (N, H, W, Z, C)
    if is_composed():
        return F.silu(normed.to(x.dtype))
    return silu_in_place(normed, x.dtype, planes)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _modulated_silu_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    scale_ptr,
    shift_ptr,
    x_strides,
    scale_stride,
    shift_stride,
    epsilon,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """BLOCK voxels of one sample."""
    VOXELS: tl.constexpr = HEIGHT * WIDTH * SLICES
    blocks = (VOXELS + BLOCK - 1) // BLOCK
    sample = tl.cast(tl.program_id(0) // blocks, tl.int64)
    voxel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = voxel < VOXELS
    y, x, z = voxel_of(voxel, WIDTH, SLICES)
    channel = tl.arange(0, BLOCK_CHANNELS)
    values = load_rows(x_ptr, row_offsets(sample, y, x, z, x_strides), live, channel, CHANNELS)
    scale = 1 + load_channels(scale_ptr + sample * scale_stride, channel, CHANNELS)
    shift = load_channels(shift_ptr + sample * shift_stride, channel, CHANNELS)
    gain = load_channels(weight_ptr, channel, CHANNELS) * scale
    normed = values * inverse_rms(tl.sum(values * values, axis=1), CHANNELS, epsilon)[:, None]
    modulated = silu(normed * gain[None, :] + shift[None, :])
    store_rows(out_ptr, (sample * VOXELS + voxel) * CHANNELS, live, channel, CHANNELS, modulated)


# ---- host function ---------------------------------------------------------------------------------------------------


def _modulated_silu_triton(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x, scale, shift = channel_rows(x), channel_rows(scale), channel_rows(shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    samples, height, width, slices, channels = x.shape
    plan = launch.constants("modulated_silu", x)
    voxels, row = height * width * slices, next_power_of_2(channels)
    block = min(fitting_rows(plan.elements, row), next_power_of_2(voxels))
    launch.start(
        _modulated_silu_kernel,
        (samples * -(-voxels // block),),
        plan,
        out_ptr=out,
        x_ptr=x,
        weight_ptr=channel_vector(weight),
        scale_ptr=scale,
        shift_ptr=shift,
        x_strides=x.stride()[:4],
        scale_stride=scale.stride(0),
        shift_stride=shift.stride(0),
        epsilon=EPSILON,
        HEIGHT=height,
        WIDTH=width,
        SLICES=slices,
        CHANNELS=channels,
        BLOCK=block,
        BLOCK_CHANNELS=row,
    )
    return out


# ---- dispatch --------------------------------------------------------------------------------------------------------


def modulated_silu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    planes: bool = False,
    implementation: Implementation | None = None,
) -> Tensor:
    """``SiLU(RMSNorm(x) * (1 + scale) + shift)``, statistics and arithmetic in float32, rounded once.

    Args:
        x: (N, H, W, Z, C), any strides.
        weight: of the norm, C elements in any shape.
        scale: one row a sample, (N, C); an expanded row is read as it is.
        shift: as ``scale``.
        planes: the reference may lay its result out plane by plane, see ``silu_in_place``.
        implementation: see ``dispatch``.

    Returns:
        (N, H, W, Z, C) in the type of ``x``.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    expected = (len(x), x.shape[-1])
    if x.ndim != 5 or weight.numel() != expected[1] or scale.shape != expected or shift.shape != expected:
        raise InputError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, scale {tuple(scale.shape)} and shift "
            f"{tuple(shift.shape)} do not fit together; they are (N, H, W, Z, C), C, (N, C) and (N, C)"
        )
    limits = Verdict(expected[1] <= MAX_CHANNELS, f"{expected[1]} channels are more than their {MAX_CHANNELS}")
    if use_triton("modulated_silu", implementation, (x, weight, scale, shift), limits):
        return _modulated_silu_triton(x, weight, scale, shift)
    return modulated_silu_reference(x, weight, scale, shift, planes=planes)
