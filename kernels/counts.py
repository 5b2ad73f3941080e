"""Sparse transcript counts of a window -> the dense gene patches that the network reads, on the device.

A window's entries are a few per cent of its dense counts: they are what crosses from the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.dispatch import Implementation, Verdict, use_triton
from teramind.kernels.language import jit, tl

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def gene_patches_reference(
    bins: Tensor,
    genes: Tensor,
    counts: Tensor,
    *,
    shape: tuple[int, int, int, int],
    patch_bins: int,
    regions: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``gene_patches`` in plain torch."""
    panel, slices, height, width = shape
    rows, columns = height // patch_bins, width // patch_bins
    bins, genes = bins.long(), genes.long()
    kept = (bins >= 0) & (bins < regions * slices * height * width) & (genes >= 0) & (genes < panel)
    bins, genes, counts = bins[kept], genes[kept], counts[kept]
    dense = torch.zeros(regions, rows, columns, panel, slices, patch_bins, patch_bins, dtype=dtype, device=bins.device)
    x, y, z = bins % width, bins // width % height, bins // (width * height) % slices
    region = bins // (width * height * slices)
    place = (region, y // patch_bins, x // patch_bins, genes, z, y % patch_bins, x % patch_bins)
    dense[place] = counts.to(torch.int32).to(dtype)
    return dense.flatten(0, 2)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _gene_patches_kernel(
    out_ptr,
    bins_ptr,
    genes_ptr,
    counts_ptr,
    entries,
    total_bins,
    panel,
    slices,
    height,
    width,
    PATCH_BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK entries, each to its place in (region, row, column, gene, slice, y, x)."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    place = tl.load(bins_ptr + entry, mask=there, other=-1).to(tl.int64)
    gene = tl.load(genes_ptr + entry, mask=there, other=0).to(tl.int64)
    count = tl.load(counts_ptr + entry, mask=there, other=0)
    there = there & (place >= 0) & (place < total_bins) & (gene >= 0) & (gene < panel)
    x = place % width
    y = place // width % height
    plane = place // width // height
    row = (plane // slices) * (height // PATCH_BINS) + y // PATCH_BINS  # of patches, regions below each other
    patch = row * (width // PATCH_BINS) + x // PATCH_BINS
    target = ((patch * panel + gene) * slices + plane % slices) * (PATCH_BINS * PATCH_BINS)
    target += y % PATCH_BINS * PATCH_BINS + x % PATCH_BINS
    tl.store(out_ptr + target, count.to(tl.float32).to(out_ptr.dtype.element_ty), mask=there)


# ---- host function ---------------------------------------------------------------------------------------------------


def _gene_patches_triton(
    bins: Tensor,
    genes: Tensor,
    counts: Tensor,
    shape: tuple[int, int, int, int],
    patch_bins: int,
    regions: int,
    dtype: torch.dtype,
) -> Tensor:
    panel, slices, height, width = shape
    patches = regions * (height // patch_bins) * (width // patch_bins)
    out = torch.zeros(patches, panel, slices, patch_bins, patch_bins, dtype=dtype, device=bins.device)
    if bins.numel() == 0 or out.numel() == 0:
        return out
    plan = launch.constants("gene_patches", bins)
    launch.start(
        _gene_patches_kernel,
        (-(-bins.numel() // plan.elements),),
        plan,
        out_ptr=out,
        bins_ptr=bins.contiguous(),
        genes_ptr=genes.contiguous(),
        counts_ptr=counts.contiguous(),
        entries=bins.numel(),
        total_bins=regions * math.prod(shape[1:]),
        panel=panel,
        slices=slices,
        height=height,
        width=width,
        PATCH_BINS=patch_bins,
        BLOCK=plan.elements,
    )
    return out


# ---- dispatch --------------------------------------------------------------------------------------------------------


def gene_patches(
    bins: Tensor,
    genes: Tensor,
    counts: Tensor,
    *,
    shape: tuple[int, int, int, int],
    patch_bins: int,
    regions: int = 1,
    dtype: torch.dtype = torch.float32,
    implementation: Implementation | None = None,
) -> Tensor:
    """Dense counts of every patch from those that are not 0.

    Args:
        bins: (n,) integers: flat index of each entry's bin in (regions, slices, height, width).
        genes: (n,) integers: index of its gene. An entry outside the panel or the bins is left out.
        counts: (n,) integers; no bin and gene come twice.
        shape: (genes, slices, height, width) of a region's window, height and width in bins.
        patch_bins: bins along the side of a patch, which height and width are multiples of.
        regions: windows of this shape.
        dtype: of the result.
        implementation: see ``dispatch``.

    Returns:
        (regions * rows * columns, genes, slices, patch_bins, patch_bins), patches row-major.

    Raises:
        InputError: arguments that do not fit together, or kernels asked for by name that cannot run.
    """
    if not bins.shape == genes.shape == counts.shape or bins.ndim != 1:
        raise InputError(
            f"bins {tuple(bins.shape)}, genes {tuple(genes.shape)} and counts {tuple(counts.shape)} have to be three "
            "lists of the same length"
        )
    if any(part.is_floating_point() for part in (bins, genes, counts)):
        raise InputError(
            f"bins, genes and counts are {bins.dtype}, {genes.dtype} and {counts.dtype}; integers are needed"
        )
    if patch_bins < 1 or shape[2] % patch_bins or shape[3] % patch_bins:
        raise InputError(f"a window of {shape[2]} x {shape[3]} bins does not consist of patches of {patch_bins}")
    if use_triton("gene_patches", implementation, (bins, genes, counts), Verdict(True)):
        return _gene_patches_triton(bins, genes, counts, shape, patch_bins, regions, dtype)
    return gene_patches_reference(bins, genes, counts, shape=shape, patch_bins=patch_bins, regions=regions, dtype=dtype)
