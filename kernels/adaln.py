"""AdaLN: RMSNorm, then scale and shift by the genes, which are constant on 2x2 px."""

from __future__ import annotations

import torch
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
    store_rows,
    tl,
    voxel_of,
)
from teramind.kernels.launch import channel_rows, channel_vector, fitting_rows, next_power_of_2
from teramind.kernels.layout import pairs, spread
from teramind.kernels.norms import EPSILON, is_composed, rms_factor, rms_norm, wide_type

MAX_CHANNELS = 4096  # a half-resolution voxel's channels are held in registers three times

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def adaptive_norm_reference(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``adaptive_norm`` in plain torch."""
    if is_composed():
        return (pairs(rms_norm(x, weight)) * (1 + spread(scale)) + spread(shift)).reshape(x.shape)
    normed = x * rms_factor([x], None)  # (N, H, W, Z, C)
    gain = weight.flatten() * (1 + scale.to(wide_type(x)))  # (N, H/2, W/2, Z, C)
    torch.addcmul(spread(shift.to(gain.dtype)), pairs(normed), spread(gain), out=pairs(normed))
    return normed.to(x.dtype)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _adaptive_norm_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    scale_ptr,
    shift_ptr,
    x_strides,
    scale_strides,
    shift_strides,
    epsilon,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """BLOCK voxels at half resolution: scale and shift are read once for the four pixels of each."""
    VOXELS: tl.constexpr = HEIGHT // 2 * (WIDTH // 2) * SLICES
    blocks = (VOXELS + BLOCK - 1) // BLOCK
    sample = tl.cast(tl.program_id(0) // blocks, tl.int64)
    voxel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = voxel < VOXELS
    y, x, z = voxel_of(voxel, WIDTH // 2, SLICES)
    channel = tl.arange(0, BLOCK_CHANNELS)
    weight = load_channels(weight_ptr, channel, CHANNELS)
    gain = 1 + load_rows(scale_ptr, row_offsets(sample, y, x, z, scale_strides), live, channel, CHANNELS)
    gain *= weight[None, :]
    shift = load_rows(shift_ptr, row_offsets(sample, y, x, z, shift_strides), live, channel, CHANNELS)
    for pixel in tl.static_range(4):
        row = 2 * y + pixel // 2
        column = 2 * x + pixel % 2
        values = load_rows(x_ptr, row_offsets(sample, row, column, z, x_strides), live, channel, CHANNELS)
        normed = values * inverse_rms(tl.sum(values * values, axis=1), CHANNELS, epsilon)[:, None]
        target = (((sample * HEIGHT + row) * WIDTH + column) * SLICES + z) * CHANNELS
        store_rows(out_ptr, target, live, channel, CHANNELS, normed * gain + shift)


# ---- host function ---------------------------------------------------------------------------------------------------


def _adaptive_norm_triton(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x, scale, shift = channel_rows(x), channel_rows(scale), channel_rows(shift)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    samples, height, width, slices, channels = x.shape
    plan = launch.constants("adaptive_norm", x)
    voxels, row = height // 2 * (width // 2) * slices, next_power_of_2(channels)
    block = min(fitting_rows(plan.elements // 2, row), next_power_of_2(voxels))  # gain and shift stay beside the values
    launch.start(
        _adaptive_norm_kernel,
        (samples * -(-voxels // block),),
        plan,
        out_ptr=out,
        x_ptr=x,
        weight_ptr=channel_vector(weight),
        scale_ptr=scale,
        shift_ptr=shift,
        x_strides=x.stride()[:4],
        scale_strides=scale.stride()[:4],
        shift_strides=shift.stride()[:4],
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


def adaptive_norm(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *, implementation: Implementation | None = None
) -> Tensor:
    """``RMSNorm(x) * (1 + scale) + shift`` with scale and shift at half resolution; float32 inside, rounded once.

    Args:
        x: (N, H, W, Z, C), any strides; H and W are even.
        weight: of the norm, C elements in any shape.
        scale: (N, H/2, W/2, Z, C), any strides: a chunk of a wider tensor is read as it is.
        shift: as ``scale``.
        implementation: see ``dispatch``.

    Returns:
        (N, H, W, Z, C), contiguous, in the type of ``x``.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    shape = tuple(x.shape)
    fits = len(shape) == 5 and shape[1] % 2 == 0 and shape[2] % 2 == 0 and weight.numel() == shape[4]
    half = (shape[0], shape[1] // 2, shape[2] // 2, *shape[3:]) if fits else ()
    if not fits or scale.shape != half or shift.shape != half:
        raise InputError(
            f"x {shape}, weight {tuple(weight.shape)}, scale {tuple(scale.shape)} and shift {tuple(shift.shape)} do "
            "not fit together; they are (N, H, W, Z, C), C, and twice (N, H/2, W/2, Z, C)"
        )
    limits = Verdict(shape[4] <= MAX_CHANNELS, f"{shape[4]} channels are more than their {MAX_CHANNELS}")
    if use_triton("adaptive_norm", implementation, (x, weight, scale, shift), limits):
        return _adaptive_norm_triton(x, weight, scale, shift)
    return adaptive_norm_reference(x, weight, scale, shift)
