"""Attention between genes: a gene's token is its counts in the bins of a patch, and keys are the queries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.attention import attention_weights, store_weighted_values
from teramind.kernels.dispatch import Implementation, Verdict, use_triton
from teramind.kernels.language import jit, tl
from teramind.kernels.launch import SMALLEST_DOT, channel_chunk, channel_rows, channel_vector, next_power_of_2
from teramind.kernels.norms import EPSILON, rms_norm, wide_type

MOST_GENES = 512  # as keys, which the weights of the smallest block of queries leave registers for

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def gene_gene_attention_reference(query: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """``gene_gene_attention`` in plain torch."""
    normed = rms_norm(query, weight)
    return F.scaled_dot_product_attention(normed, normed, value, scale=1 / query.shape[-1])


def gene_attention_rows_reference(query: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """``gene_attention_rows`` in plain torch."""
    normed = rms_norm(query, weight).to(wide_type(query))
    logits = normed[:, rows.long()] @ normed.transpose(1, 2) / query.shape[-1]
    return torch.softmax(logits, dim=-1)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _gene_gene_attention_kernel(
    out_ptr,
    query_ptr,
    value_ptr,
    weight_ptr,
    query_strides,
    value_strides,
    genes,
    epsilon,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """QUERIES genes of one patch on all its genes."""
    patch = tl.cast(tl.program_id(0), tl.int64)
    gene = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    query_base = query_ptr + patch * query_strides[0]
    weights = attention_weights(
        query_base,
        gene.to(tl.int64) * query_strides[1],
        gene < genes,
        query_base,
        key.to(tl.int64) * query_strides[1],
        key < genes,
        weight_ptr,
        weight_ptr,
        epsilon,
        CHANNELS=FEATURES,
        QUERIES=QUERIES,
        KEYS=KEYS,
        CHUNK=CHUNK,
    )
    store_weighted_values(
        out_ptr,
        (patch * genes + gene) * FEATURES,
        gene < genes,
        weights,
        value_ptr + patch * value_strides[0],
        key.to(tl.int64) * value_strides[1],
        key < genes,
        CHANNELS=FEATURES,
        CHUNK=CHUNK,
    )


@jit
def _gene_attention_rows_kernel(
    out_ptr,
    query_ptr,
    weight_ptr,
    selected_ptr,
    query_strides,
    genes,
    selected,
    epsilon,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """QUERIES selected rows of one patch's attention matrix."""
    patch = tl.cast(tl.program_id(0), tl.int64)
    index = tl.cast(tl.program_id(1), tl.int64) * QUERIES + tl.arange(0, QUERIES)
    live = index < selected
    gene = tl.load(selected_ptr + index, mask=live, other=0).to(tl.int64)
    key = tl.arange(0, KEYS)
    query_base = query_ptr + patch * query_strides[0]
    weights = attention_weights(
        query_base,
        gene * query_strides[1],
        live,
        query_base,
        key.to(tl.int64) * query_strides[1],
        key < genes,
        weight_ptr,
        weight_ptr,
        epsilon,
        CHANNELS=FEATURES,
        QUERIES=QUERIES,
        KEYS=KEYS,
        CHUNK=CHUNK,
    )
    out_rows = (patch * selected + index) * genes
    tl.store(out_ptr + out_rows[:, None] + key[None, :], weights, mask=live[:, None] & (key < genes)[None, :])


# ---- host functions --------------------------------------------------------------------------------------------------


def _gene_gene_attention_triton(query: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    query, value = channel_rows(query), channel_rows(value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    patches, genes, features = query.shape
    plan = launch.constants("gene_gene_attention", query)
    blocks = _blocks(plan, queries=genes, genes=genes, features=features)
    launch.start(
        _gene_gene_attention_kernel,
        (patches, -(-genes // blocks["QUERIES"])),
        plan,
        out_ptr=out,
        query_ptr=query,
        value_ptr=value,
        weight_ptr=channel_vector(weight),
        query_strides=query.stride()[:2],
        value_strides=value.stride()[:2],
        genes=genes,
        epsilon=EPSILON,
        FEATURES=features,
        **blocks,
    )
    return out


def _gene_attention_rows_triton(query: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    query = channel_rows(query)
    patches, genes, features = query.shape
    out = torch.empty((patches, len(rows), genes), dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    plan = launch.constants("gene_attention_rows", query)
    blocks = _blocks(plan, queries=len(rows), genes=genes, features=features)
    launch.start(
        _gene_attention_rows_kernel,
        (patches, -(-len(rows) // blocks["QUERIES"])),
        plan,
        out_ptr=out,
        query_ptr=query,
        weight_ptr=channel_vector(weight),
        selected_ptr=rows.contiguous(),
        query_strides=query.stride()[:2],
        genes=genes,
        selected=len(rows),
        epsilon=EPSILON,
        FEATURES=features,
        **blocks,
    )
    return out


def _blocks(plan: launch.Launch, *, queries: int, genes: int, features: int) -> dict[str, Any]:
    keys = max(SMALLEST_DOT, next_power_of_2(genes))
    return {
        "QUERIES": max(SMALLEST_DOT, min(plan.elements // keys, next_power_of_2(queries))),
        "KEYS": keys,
        "CHUNK": channel_chunk(plan, features),
    }


# ---- dispatch --------------------------------------------------------------------------------------------------------


def gene_gene_attention(
    query: Tensor, value: Tensor, weight: Tensor, *, implementation: Implementation | None = None
) -> Tensor:
    """``softmax(q q^T / F) v`` with ``q = RMSNorm(query)``, for the genes of each patch.

    Args:
        query: (N, G, F) projected tokens before their norm, any strides.
        value: (N, G, F).
        weight: of the norm, F elements.
        implementation: see ``dispatch``.

    Returns:
        (N, G, F), contiguous, in the type of ``query``.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    _check(query, weight)
    if value.shape != query.shape or value.dtype != query.dtype:
        raise InputError(
            f"values are {tuple(value.shape)} {value.dtype}; for these queries they have to be "
            f"{tuple(query.shape)} {query.dtype}"
        )
    if use_triton("gene_gene_attention", implementation, (query, value, weight), _limits(query)):
        return _gene_gene_attention_triton(query, value, weight)
    return gene_gene_attention_reference(query, value, weight)


def gene_attention_rows(
    query: Tensor, weight: Tensor, rows: Tensor, *, implementation: Implementation | None = None
) -> Tensor:
    """Selected rows of the matrix ``softmax(q q^T / F)``; for all of them, what each gene attends to.

    Args:
        query: as in ``gene_gene_attention``.
        weight: of the norm, F elements.
        rows: (R,) integer indices of genes, 0 .. G-1, in any order.
        implementation: see ``dispatch``.

    Returns:
        (N, R, G) float32, each row a distribution over genes (float64 from the reference, of float64 queries).

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    _check(query, weight)
    if rows.ndim != 1 or rows.is_floating_point():
        raise InputError(f"rows are {tuple(rows.shape)} {rows.dtype}; they have to be a list of integer indices")
    if use_triton("gene_attention_rows", implementation, (query, weight, rows), _limits(query)):
        return _gene_attention_rows_triton(query, weight, rows)
    return gene_attention_rows_reference(query, weight, rows)


def _check(query: Tensor, weight: Tensor) -> None:
    if query.ndim != 3 or weight.numel() != query.shape[-1]:
        raise InputError(f"queries {tuple(query.shape)} have to be (N, G, F), with F weights, not {weight.numel()}")


def _limits(query: Tensor) -> Verdict:
    genes = query.shape[1]
    return Verdict(genes <= MOST_GENES, f"{genes} genes are more than their {MOST_GENES}")
