"""Concatenation of features, on the shifted grid where asked, RMSNorm and SiLU: the input of a residual block's conv.

Done apart, a decoder block writes its shifted skip features, their concatenation with the rest, the norm and the
activation. Here each input is read once and only what the convolutions read is written.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from teramind.kernels.layout import concatenated, pairs, shift, spread
from teramind.kernels.norms import EPSILON, is_composed, rms_factor, rms_norm, silu_in_place

MAX_CHANNELS = 8192  # a voxel's channels are held in registers together

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def gather_norm_silu_reference(
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    *,
    multiple: int = 1,
    concatenate: bool = False,
    planes: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``gather_norm_silu`` in plain torch. Inference does not build a concatenation that is not asked for."""
    parts = [shift(part) if part.ndim == 6 else part for part in features]
    if is_composed():
        joined = concatenated(parts, genes)
        activated = F.silu(rms_norm(joined, weight))
    else:
        joined = concatenated(parts, genes) if concatenate else None
        activated = _norm_silu(parts, genes, weight, planes)
    filled = (0, -activated.shape[-1] % multiple)
    if filled[1]:
        activated = F.pad(activated, filled)
        joined = None if joined is None else F.pad(joined, filled)
    return activated, joined if concatenate else None


def _norm_silu(features: Sequence[Tensor], genes: Tensor | None, weight: Tensor, planes: bool) -> Tensor:
    factor = rms_factor(features, genes)  # (N, H, W, Z, 1)
    normed = factor.new_empty(*factor.shape[:-1], weight.numel())
    start = 0
    for part in features:
        torch.mul(part, factor, out=normed[..., start : (start := start + part.shape[-1])])
    if genes is not None:
        torch.mul(spread(genes), pairs(factor), out=pairs(normed)[..., start:])
    normed.mul_(weight.flatten())
    return silu_in_place(normed, features[0].dtype, planes)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _source_rows(patch, y, x, z, strides, columns, SIDE: tl.constexpr, SHIFTED: tl.constexpr):
    """Offsets of the rows that voxels of a patch are read from: of its own, or of the encoder patches it lies on.

    ``strides`` belong to (patch, y, x, z), or to (row, column, y, x, z) of the encoder's grid.
    """
    if SHIFTED:
        y = y + SIDE // 2
        x = x + SIDE // 2
        row = patch // columns + y // SIDE
        column = patch % columns + x // SIDE
        offsets = row.to(tl.int64) * strides[0] + column.to(tl.int64) * strides[1]
        offsets += (y % SIDE).to(tl.int64) * strides[2] + (x % SIDE).to(tl.int64) * strides[3]
        return offsets + z.to(tl.int64) * strides[4]
    return row_offsets(patch, y, x, z, strides)


@jit
def _write_part(
    out_ptr,
    concatenated_ptr,
    rows,
    live,
    part,
    scale,
    weight_ptr,
    channel,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    WRITTEN: tl.constexpr,
    CONCATENATE: tl.constexpr,
):
    """Normalise, activate and store channels FIRST .. FIRST + WRITTEN; beyond CHANNELS they are zero."""
    weight = load_channels(weight_ptr + FIRST, channel, CHANNELS)
    store_rows(out_ptr + FIRST, rows, live, channel, WRITTEN, silu(part * scale[:, None] * weight[None, :]))
    if CONCATENATE:
        store_rows(concatenated_ptr + FIRST, rows, live, channel, WRITTEN, part)


@jit(do_not_specialize=["columns"])
def _gather_norm_silu_kernel(
    out_ptr,
    concatenated_ptr,
    first_ptr,
    second_ptr,
    genes_ptr,
    weight_ptr,
    first_strides,
    second_strides,
    genes_strides,
    columns,
    epsilon,
    SIDE: tl.constexpr,
    SLICES: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    GENES: tl.constexpr,
    WRITTEN: tl.constexpr,
    SHIFT_FIRST: tl.constexpr,
    SHIFT_SECOND: tl.constexpr,
    CONCATENATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_FIRST: tl.constexpr,
    BLOCK_SECOND: tl.constexpr,
    BLOCK_GENES: tl.constexpr,
):
    """BLOCK voxels of a patch: FIRST, SECOND and GENES channels (none where 0) -> WRITTEN channels, zero-padded."""
    VOXELS: tl.constexpr = SIDE * SIDE * SLICES
    CHANNELS: tl.constexpr = FIRST + SECOND + GENES
    blocks = (VOXELS + BLOCK - 1) // BLOCK
    patch = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = voxel < VOXELS
    y, x, z = voxel_of(voxel, SIDE, SLICES)

    channel = tl.arange(0, BLOCK_FIRST)
    source = _source_rows(patch, y, x, z, first_strides, columns, SIDE, SHIFT_FIRST)
    first = load_rows(first_ptr, source, live, channel, FIRST)
    squares = tl.sum(first * first, axis=1)
    if SECOND > 0:
        second_channel = tl.arange(0, BLOCK_SECOND)
        source = _source_rows(patch, y, x, z, second_strides, columns, SIDE, SHIFT_SECOND)
        second = load_rows(second_ptr, source, live, second_channel, SECOND)
        squares += tl.sum(second * second, axis=1)
    if GENES > 0:
        gene_channel = tl.arange(0, BLOCK_GENES)
        source = row_offsets(patch, y // 2, x // 2, z, genes_strides)
        genes = load_rows(genes_ptr, source, live, gene_channel, GENES)
        squares += tl.sum(genes * genes, axis=1)

    scale = inverse_rms(squares, CHANNELS, epsilon)
    target = (tl.cast(patch, tl.int64) * VOXELS + voxel) * WRITTEN
    _write_part(
        out_ptr,
        concatenated_ptr,
        target,
        live,
        first,
        scale,
        weight_ptr,
        channel,
        FIRST=0,
        CHANNELS=FIRST,
        WRITTEN=FIRST if SECOND + GENES > 0 else WRITTEN,
        CONCATENATE=CONCATENATE,
    )
    if SECOND > 0:
        _write_part(
            out_ptr,
            concatenated_ptr,
            target,
            live,
            second,
            scale,
            weight_ptr,
            second_channel,
            FIRST=FIRST,
            CHANNELS=SECOND,
            WRITTEN=SECOND if GENES > 0 else WRITTEN - FIRST,
            CONCATENATE=CONCATENATE,
        )
    if GENES > 0:
        _write_part(
            out_ptr,
            concatenated_ptr,
            target,
            live,
            genes,
            scale,
            weight_ptr,
            gene_channel,
            FIRST=FIRST + SECOND,
            CHANNELS=GENES,
            WRITTEN=WRITTEN - FIRST - SECOND,
            CONCATENATE=CONCATENATE,
        )


# ---- host function ---------------------------------------------------------------------------------------------------


def _gather_norm_silu_triton(
    features: Sequence[Tensor], genes: Tensor | None, weight: Tensor, multiple: int, concatenate: bool
) -> tuple[Tensor, Tensor | None]:
    first, *rest = [channel_rows(part) for part in features]
    second = rest[0] if rest else first  # a pointer for what the kernel leaves out
    level = channel_rows(genes) if genes is not None else first
    side, _, slices, channels = first.shape[-4:]
    counts = [channels, rest[0].shape[-1] if rest else 0, genes.shape[-1] if genes is not None else 0]
    written = sum(counts) + -sum(counts) % multiple
    patches = _decoder_patches(first)
    out = first.new_empty(patches, side, side, slices, written)
    joined = torch.empty_like(out) if concatenate else None
    if out.numel() == 0:
        return out, joined
    row = _block_channels(counts, written)
    plan = launch.constants("gather_norm_silu", out)
    voxels = side * side * slices
    block = min(fitting_rows(plan.elements, sum(row)), next_power_of_2(voxels))
    launch.start(
        _gather_norm_silu_kernel,
        (patches * -(-voxels // block),),
        plan,
        out_ptr=out,
        concatenated_ptr=out if joined is None else joined,
        first_ptr=first,
        second_ptr=second,
        genes_ptr=level,
        weight_ptr=channel_vector(weight),
        first_strides=first.stride()[:-1],
        second_strides=second.stride()[:-1],
        genes_strides=level.stride()[:-1],
        columns=next((part.shape[1] - 1 for part in features if part.ndim == 6), 1),
        epsilon=EPSILON,
        SIDE=side,
        SLICES=slices,
        FIRST=counts[0],
        SECOND=counts[1],
        GENES=counts[2],
        WRITTEN=written,
        SHIFT_FIRST=first.ndim == 6,
        SHIFT_SECOND=second.ndim == 6,
        CONCATENATE=concatenate,
        BLOCK=block,
        BLOCK_FIRST=row[0],
        BLOCK_SECOND=row[1],
        BLOCK_GENES=row[2],
    )
    return out, joined


def _block_channels(counts: Sequence[int], written: int) -> list[int]:
    """Power-of-two widths that hold each part; the last part there is also holds the padding."""
    last = max(index for index, count in enumerate(counts) if count)
    padded = [count + (written - sum(counts) if index == last else 0) for index, count in enumerate(counts)]
    return [next_power_of_2(max(1, count)) for count in padded]


def _decoder_patches(feature: Tensor) -> int:
    """How many patches come out."""
    return len(feature) if feature.ndim == 5 else (feature.shape[0] - 1) * (feature.shape[1] - 1)


# ---- dispatch --------------------------------------------------------------------------------------------------------


def gather_norm_silu(
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    *,
    multiple: int = 1,
    concatenate: bool = False,
    planes: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``SiLU(RMSNorm(cat(features, upsampled genes)))``, features gathered from the encoder's grid if they lie there.

    Args:
        features: one or two tensors (N, P, P, Z, c), any strides. Where one is (n+1, m+1, P, P, Z, c), it holds a grid
            of encoder patches, and the N = n*m patches are those between them, shifted by half a patch.
        genes: gene level at half resolution, (N, P/2, P/2, Z, cg), or None.
        weight: of the norm, (c + ... + cg,) elements in any shape.
        multiple: the channels that come out are filled up with zeros to a multiple of this. 8 in half precision lets
            the convolution use matrix units and every access be 16 bytes wide; its weight needs zeros there.
        concatenate: also return the concatenation before the norm, which a skip connection reads.
        planes: the reference may lay its result out plane by plane, see ``silu_in_place``.
        implementation: see ``dispatch``.

    Returns:
        (N, P, P, Z, C), and the concatenation of the same shape, or None.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    _check(features, genes, weight, multiple)
    tensors = [*features, weight] if genes is None else [*features, genes, weight]
    channels = weight.numel()
    limits = Verdict(channels <= MAX_CHANNELS, f"{channels} channels are more than their {MAX_CHANNELS}")
    if use_triton("gather_norm_silu", implementation, tensors, limits):
        return _gather_norm_silu_triton(features, genes, weight, multiple, concatenate)
    return gather_norm_silu_reference(
        features, genes, weight, multiple=multiple, concatenate=concatenate, planes=planes
    )


def _check(features: Sequence[Tensor], genes: Tensor | None, weight: Tensor, multiple: int) -> None:
    shapes = [tuple(part.shape) for part in features]
    voxels = shapes[0][-4:-1]  # (P, P, Z)
    fits = len(shapes) in (1, 2) and all(len(shape) in (5, 6) and shape[-4:-1] == voxels for shape in shapes)
    if not fits or len({_decoder_patches(part) for part in features}) > 1 or voxels[0] != voxels[1]:
        raise InputError(
            f"features have shapes {shapes}; one or two of (N, P, P, Z, C) are needed, or (n+1, m+1, P, P, Z, C) with "
            "N = n*m, which differ in channels alone"
        )
    grids = {shape[:2] for shape in shapes if len(shape) == 6}
    if len(grids) > 1 or any(min(grid) < 2 for grid in grids) or (grids and voxels[0] % 2):
        raise InputError(f"grids of encoder patches are {shapes}; they need one shape of at least 2 x 2, and an even P")
    patches, side = _decoder_patches(features[0]), voxels[0]
    expected = (patches, side // 2, side // 2, voxels[2])
    if genes is not None and (side % 2 or genes.ndim != 5 or tuple(genes.shape[:4]) != expected):
        raise InputError(f"genes have shape {tuple(genes.shape)}; for features {shapes} they need half the side")
    channels = sum(shape[-1] for shape in shapes) + (0 if genes is None else genes.shape[4])
    if weight.numel() != channels or min(shape[-1] for shape in shapes) < 1:
        raise InputError(f"the norm has {weight.numel()} weights for {channels} channels")
    if multiple < 1:
        raise InputError(f"multiple is {multiple}; it has to be at least 1")
