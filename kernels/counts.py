"""Sparse transcript counts of a window -> the dense ones that the network reads, on the device.

A window's entries are a few per cent of its dense counts: they are what crosses from the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.dispatch import YES, Implementation, use_triton
from teramind.kernels.language import jit, tl

Shape = tuple[int, int, int, int]

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def dense_counts_reference(entries: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """``dense_counts`` in plain torch."""
    place, gene, count = entries.long()
    panel, bins = shape[0], math.prod(shape[1:])
    kept = (place >= 0) & (place < bins) & (gene >= 0) & (gene < panel)
    dense = torch.zeros(shape, dtype=dtype, device=entries.device)
    dense.flatten()[gene[kept] * bins + place[kept]] = count[kept].to(dtype)
    return dense


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _dense_counts_kernel(out_ptr, entries_ptr, entries, bins, panel, BLOCK: tl.constexpr):
    """BLOCK entries, each to its place in (gene, bin)."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = entry < entries
    row = tl.cast(entries, tl.int64)
    place = tl.load(entries_ptr + entry, mask=there, other=-1).to(tl.int64)
    gene = tl.load(entries_ptr + row + entry, mask=there, other=0).to(tl.int64)
    count = tl.load(entries_ptr + 2 * row + entry, mask=there, other=0)
    there = there & (place >= 0) & (place < bins) & (gene >= 0) & (gene < panel)
    tl.store(out_ptr + gene * bins + place, count.to(tl.float32).to(out_ptr.dtype.element_ty), mask=there)


# ---- host function ---------------------------------------------------------------------------------------------------


def _dense_counts_triton(entries: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(shape, dtype=dtype, device=entries.device)
    if entries.numel() == 0 or out.numel() == 0:
        return out
    plan = launch.constants("dense_counts", entries)
    count = entries.shape[1]
    launch.start(
        _dense_counts_kernel,
        (-(-count // plan.elements),),
        plan,
        out_ptr=out,
        entries_ptr=entries.contiguous(),
        entries=count,
        bins=math.prod(shape[1:]),
        panel=shape[0],
        BLOCK=plan.elements,
    )
    return out


# ---- dispatch --------------------------------------------------------------------------------------------------------


def dense_counts(
    entries: Tensor,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.float32,
    implementation: Implementation | None = None,
) -> Tensor:
    """Dense counts of a window from those that are not 0.

    Args:
        entries: integers (3, n): flat index of each entry's bin in (slices, height, width), its gene, and its count. An
            entry outside the bins or the panel is left out; no bin and gene come twice.
        shape: (genes, slices, height, width) of the window.
        dtype: of the result.
        implementation: see ``dispatch``.

    Returns:
        Counts of that shape.

    Raises:
        InputError: entries of another kind, or kernels asked for by name that cannot run.
    """
    if entries.ndim != 2 or len(entries) != 3 or entries.is_floating_point():
        raise InputError(f"entries are {tuple(entries.shape)} {entries.dtype}; they have to be integers (3, n)")
    if use_triton("dense_counts", implementation, (entries,), YES):
        return _dense_counts_triton(entries, shape, dtype)
    return dense_counts_reference(entries, shape, dtype)
