"""Concatenation of features, on the shifted grid where asked, RMSNorm and SiLU: the input of a residual block's conv.

Done apart, a decoder block writes its shifted skip features, its shifted and upsampled genes, their concatenation, the
norm and the activation. Here each input is read once and only what the convolution reads is written.
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

EPSILON = 1e-6
MAX_CHANNELS = 8192  # a voxel's channels are held in registers together

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def gather_norm_silu_reference(
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    shifted: Sequence[bool] = (),
    multiple: int = 1,
) -> tuple[Tensor, Tensor]:
    """(activated, concatenated) of ``gather_norm_silu``, in plain torch."""
    parts = list(features)
    if grid is not None:
        parts = [_shift(part, *grid) if moved else part for part, moved in zip(parts, shifted, strict=True)]
    if genes is not None:
        level = genes if grid is None else _shift(genes, *grid)
        parts.append(level.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    joined = torch.cat(parts, dim=-1)  # (N, H, W, Z, C)
    wide = joined if joined.dtype == torch.float64 else joined.float()
    activated = F.silu(F.rms_norm(wide, wide.shape[-1:], weight.to(wide.dtype), EPSILON)).to(joined.dtype)
    padding = (0, -joined.shape[-1] % multiple)
    return F.pad(activated, padding), F.pad(joined, padding)


def _shift(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Encoder patches laid out as an image, cropped by half a patch on each side and cut again."""
    _, p, _, z, c = patches.shape
    image = patches.reshape(-1, rows, columns, p, p, z, c).transpose(2, 3).reshape(-1, rows * p, columns * p, z, c)
    inner = image[:, p // 2 : -(p // 2), p // 2 : -(p // 2)]
    cut = inner.reshape(-1, rows - 1, p, columns - 1, p, z, c).transpose(2, 3)
    return cut.reshape(-1, p, p, z, c)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _source_rows(patch, y, x, z, strides, rows, columns, SIDE: tl.constexpr, SHIFTED: tl.constexpr):
    """Offsets of the rows that voxels of (rows x columns) decoder patches are read from."""
    if SHIFTED:
        y = y + SIDE // 2
        x = x + SIDE // 2
        region = patch // (rows * columns)
        row = patch // columns % rows + y // SIDE
        column = patch % columns + x // SIDE
        source = (region * (rows + 1) + row) * (columns + 1) + column
        return row_offsets(source, y % SIDE, x % SIDE, z, strides)
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


@jit
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
    rows,
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
    SHIFT_GENES: tl.constexpr,
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
    source = _source_rows(patch, y, x, z, first_strides, rows, columns, SIDE, SHIFT_FIRST)
    first = load_rows(first_ptr, source, live, channel, FIRST)
    squares = tl.sum(first * first, axis=1)
    if SECOND > 0:
        second_channel = tl.arange(0, BLOCK_SECOND)
        source = _source_rows(patch, y, x, z, second_strides, rows, columns, SIDE, SHIFT_SECOND)
        second = load_rows(second_ptr, source, live, second_channel, SECOND)
        squares += tl.sum(second * second, axis=1)
    if GENES > 0:
        # Nearest upsampling: the level has half the side, and a shift by half its patch is the same shift.
        gene_channel = tl.arange(0, BLOCK_GENES)
        source = _source_rows(patch, y // 2, x // 2, z, genes_strides, rows, columns, SIDE // 2, SHIFT_GENES)
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
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    grid: tuple[int, int] | None,
    shifted: Sequence[bool],
    multiple: int,
    concatenate: bool,
) -> tuple[Tensor, Tensor]:
    """(activated, concatenated); the second is the first where it is not asked for."""
    first, *rest = [channel_rows(part) for part in features]
    second = rest[0] if rest else first  # a pointer for what the kernel leaves out
    level = channel_rows(genes) if genes is not None else first
    side, _, slices, channels = first.shape[1:]
    counts = [channels, rest[0].shape[-1] if rest else 0, genes.shape[-1] if genes is not None else 0]
    written = sum(counts) + -sum(counts) % multiple
    patches = _decoder_patches(features, grid, shifted)
    out = first.new_empty(patches, side, side, slices, written)
    concatenated = torch.empty_like(out) if concatenate else out
    if out.numel() == 0:
        return out, concatenated
    rows, columns = (grid[0] - 1, grid[1] - 1) if grid is not None else (1, 1)
    moved = [*(shifted if grid is not None else ()), False, False][:2]
    row = _block_channels(counts, written)
    plan = launch.constants("gather_norm_silu", out)
    voxels = side * side * slices
    block = min(fitting_rows(plan.elements, sum(row)), next_power_of_2(voxels))
    launch.start(
        _gather_norm_silu_kernel,
        (patches * -(-voxels // block),),
        plan,
        out_ptr=out,
        concatenated_ptr=concatenated,
        first_ptr=first,
        second_ptr=second,
        genes_ptr=level,
        weight_ptr=channel_vector(weight),
        first_strides=first.stride()[:4],
        second_strides=second.stride()[:4],
        genes_strides=level.stride()[:4],
        rows=rows,
        columns=columns,
        epsilon=EPSILON,
        SIDE=side,
        SLICES=slices,
        FIRST=counts[0],
        SECOND=counts[1],
        GENES=counts[2],
        WRITTEN=written,
        SHIFT_FIRST=moved[0],
        SHIFT_SECOND=moved[1],
        SHIFT_GENES=grid is not None,
        CONCATENATE=concatenate,
        BLOCK=block,
        BLOCK_FIRST=row[0],
        BLOCK_SECOND=row[1],
        BLOCK_GENES=row[2],
    )
    return out, concatenated


def _block_channels(counts: Sequence[int], written: int) -> list[int]:
    """Power-of-two widths that hold each part; the last part there is also holds the padding."""
    last = max(index for index, count in enumerate(counts) if count)
    padded = [count + (written - sum(counts) if index == last else 0) for index, count in enumerate(counts)]
    return [next_power_of_2(max(1, count)) for count in padded]


def _decoder_patches(features: Sequence[Tensor], grid: tuple[int, int] | None, shifted: Sequence[bool]) -> int:
    """How many patches come out."""
    if grid is None or not shifted[0]:
        return len(features[0])
    rows, columns = grid
    return len(features[0]) // (rows * columns) * (rows - 1) * (columns - 1)


# ---- dispatch --------------------------------------------------------------------------------------------------------


def gather_norm_silu(
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    shifted: Sequence[bool] = (),
    multiple: int = 1,
    concatenate: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``SiLU(RMSNorm(cat(features, upsampled genes)))``, inputs gathered from the encoder's grid where they lie there.

    Args:
        features: one or two tensors (N, P, P, Z, c). On the encoder's grid, N counts B regions of ``grid`` patches,
            row-major; on the decoder's, which is shifted by half a patch, B regions of (rows-1) x (columns-1).
        genes: gene level at half resolution, (N, P/2, P/2, Z, cg), or None. It lies on the encoder's grid where there
            is a ``grid``.
        weight: of the norm, (c + ... + cg,) elements in any shape.
        grid: rows and columns of encoder patches; None where nothing is shifted.
        shifted: for each of ``features``, whether it lies on the encoder's grid; with ``grid`` alone.
        multiple: the channels that come out are filled up with zeros to a multiple of this. 8 in half precision lets
            the convolution use matrix units and every access be 16 bytes wide; its weight needs zeros there.
        concatenate: also return the concatenation before the norm, which a 1x1 skip convolution reads.
        implementation: see ``dispatch``.

    Returns:
        (N, P, P, Z, C), and the concatenation of the same shape, or None; both contiguous.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    _check(features, genes, weight, grid, shifted, multiple)
    tensors = [*features, weight] if genes is None else [*features, genes, weight]
    channels = weight.numel()
    limits = Verdict(channels <= MAX_CHANNELS, f"{channels} channels are more than their {MAX_CHANNELS}")
    if use_triton("gather_norm_silu", implementation, tensors, limits):
        out, concatenated = _gather_norm_silu_triton(features, genes, weight, grid, shifted, multiple, concatenate)
    else:
        out, concatenated = gather_norm_silu_reference(
            features, genes, weight.flatten(), grid=grid, shifted=shifted, multiple=multiple
        )
    return out, concatenated if concatenate else None


def _check(
    features: Sequence[Tensor],
    genes: Tensor | None,
    weight: Tensor,
    grid: tuple[int, int] | None,
    shifted: Sequence[bool],
    multiple: int,
) -> None:
    shapes = [tuple(part.shape) for part in features]
    if len(features) not in (1, 2) or any(len(shape) != 5 or shape[1] != shape[2] for shape in shapes):
        raise InputError(f"features have shapes {shapes}; one or two of (N, P, P, Z, C) are needed")
    if any(shape[1:4] != shapes[0][1:4] for shape in shapes):
        raise InputError(f"features have shapes {shapes}; they may differ in patches and channels alone")
    if multiple < 1:
        raise InputError(f"multiple is {multiple}; it has to be at least 1")
    side, _, slices, _ = shapes[0][1:]
    if genes is not None and (side % 2 or genes.ndim != 5 or genes.shape[1:4] != (side // 2, side // 2, slices)):
        raise InputError(f"genes have shape {tuple(genes.shape)}; for features {shapes[0]} they need half the side")
    channels = sum(shape[4] for shape in shapes) + (0 if genes is None else genes.shape[4])
    if weight.numel() != channels or min(shape[4] for shape in shapes) < 1:
        raise InputError(f"the norm has {weight.numel()} weights for {channels} channels")
    _check_grid([len(part) for part in features], None if genes is None else len(genes), side, grid, shifted)


def _check_grid(
    patches: Sequence[int], gene_patches: int | None, side: int, grid: tuple[int, int] | None, shifted: Sequence[bool]
) -> None:
    if grid is None:
        if any(shifted) or len({*patches, patches[0] if gene_patches is None else gene_patches}) > 1:
            raise InputError(f"without a grid, shifted is {tuple(shifted)} and patches are {[*patches, gene_patches]}")
        return
    rows, columns = grid
    if len(shifted) != len(patches) or min(rows, columns) < 2 or side % 2 or (gene_patches is not None and side % 4):
        raise InputError(f"a grid of {rows} x {columns} patches of side {side} cannot be shifted as {tuple(shifted)}")
    before, after = rows * columns, (rows - 1) * (columns - 1)
    per_region = [before if moved else after for moved in shifted] + ([] if gene_patches is None else [before])
    counted = [*patches] + ([] if gene_patches is None else [gene_patches])
    regions = {divmod(count, each) for count, each in zip(counted, per_region, strict=True)}
    if len(regions) > 1 or any(rest for _, rest in regions):
        raise InputError(
            f"a grid of {rows} x {columns} patches does not fit {counted} patches, shifted {tuple(shifted)}"
        )
