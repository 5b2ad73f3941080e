"""Attention of the image on the genes within the quadrants of a patch, the norms of queries and keys inside.

Keys and values that come from the genes are constant on 2x2 px: taken once, at half resolution, they give the same
softmax with a quarter of the keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.errors import InputError
from teramind.kernels import launch
from teramind.kernels.attention import attention_weights, store_weighted_values
from teramind.kernels.dispatch import Implementation, Verdict, use_triton
from teramind.kernels.language import jit, row_offsets, tl, voxel_of
from teramind.kernels.launch import SMALLEST_DOT, channel_chunk, channel_rows, channel_vector, next_power_of_2
from teramind.kernels.layout import upsample
from teramind.kernels.norms import EPSILON, rms_norm

MOST_KEYS = 512  # that the weights of the smallest block of queries leave registers for

# ---- plain-torch reference -------------------------------------------------------------------------------------------


def gene_morph_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, query_weight: Tensor, key_weight: Tensor
) -> Tensor:
    """``gene_morph_attention`` in plain torch."""
    if key.shape[1] == query.shape[1]:
        value = upsample(value)
    q, k = _quadrants(rms_norm(query, query_weight)), _quadrants(rms_norm(key, key_weight))
    out = F.scaled_dot_product_attention(q, k, _quadrants(value), scale=1 / query.shape[-1])
    n, h, w, z, c = query.shape
    return out.reshape(n, 2, 2, h // 2, w // 2, z, c).transpose(2, 3).reshape(n, h, w, z, c)


def _quadrants(x: Tensor) -> Tensor:
    """(N, H, W, Z, C) -> (N, 4, H/2 * W/2 * Z, C): the tokens of each quadrant."""
    n, h, w, z, c = x.shape
    return x.reshape(n, 2, h // 2, 2, w // 2, z, c).transpose(2, 3).reshape(n, 4, -1, c)


# ---- Triton kernels --------------------------------------------------------------------------------------------------


@jit
def _gene_morph_attention_kernel(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    query_weight_ptr,
    key_weight_ptr,
    query_strides,
    key_strides,
    value_strides,
    epsilon,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SLICES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FULL_KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """QUERIES queries of one quadrant, HEIGHT x WIDTH px, on all its keys."""
    window = tl.program_id(0)
    patch = tl.cast(window // 4, tl.int64)
    top = window % 4 // 2 * HEIGHT
    left = window % 2 * WIDTH

    token = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    query_live = token < HEIGHT * WIDTH * SLICES
    y, x, z = voxel_of(token, WIDTH, SLICES)
    query_rows = row_offsets(patch, y + top, x + left, z, query_strides)
    out_rows = (((patch * 2 * HEIGHT + y + top) * 2 * WIDTH + x + left) * SLICES + z) * CHANNELS

    key_token = tl.arange(0, KEYS)
    if FULL_KEYS:
        key_live = key_token < HEIGHT * WIDTH * SLICES
        key_y, key_x, key_z = voxel_of(key_token, WIDTH, SLICES)
        key_rows = row_offsets(patch, key_y + top, key_x + left, key_z, key_strides)
        value_rows = row_offsets(patch, (key_y + top) // 2, (key_x + left) // 2, key_z, value_strides)
    else:
        key_live = key_token < HEIGHT // 2 * (WIDTH // 2) * SLICES
        key_y, key_x, key_z = voxel_of(key_token, WIDTH // 2, SLICES)
        key_rows = row_offsets(patch, key_y + top // 2, key_x + left // 2, key_z, key_strides)
        value_rows = row_offsets(patch, key_y + top // 2, key_x + left // 2, key_z, value_strides)

    weights = attention_weights(
        query_ptr,
        query_rows,
        query_live,
        key_ptr,
        key_rows,
        key_live,
        query_weight_ptr,
        key_weight_ptr,
        epsilon,
        CHANNELS=CHANNELS,
        QUERIES=QUERIES,
        KEYS=KEYS,
        CHUNK=CHUNK,
    )
    store_weighted_values(
        out_ptr,
        out_rows,
        query_live,
        weights,
        value_ptr,
        value_rows,
        key_live,
        CHANNELS=CHANNELS,
        CHUNK=CHUNK,
    )


# ---- host function ---------------------------------------------------------------------------------------------------


def _gene_morph_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, query_weight: Tensor, key_weight: Tensor
) -> Tensor:
    query, key, value = map(channel_rows, (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    patches, height, width, slices, channels = query.shape
    plan = launch.constants("gene_morph_attention", query)
    tokens, keys = height * width * slices // 4, _keys(key)
    key_block = max(SMALLEST_DOT, next_power_of_2(keys))
    queries = max(SMALLEST_DOT, min(plan.elements // key_block, next_power_of_2(tokens)))
    launch.start(
        _gene_morph_attention_kernel,
        (4 * patches, -(-tokens // queries)),
        plan,
        out_ptr=out,
        query_ptr=query,
        key_ptr=key,
        value_ptr=value,
        query_weight_ptr=channel_vector(query_weight),
        key_weight_ptr=channel_vector(key_weight),
        query_strides=query.stride()[:4],
        key_strides=key.stride()[:4],
        value_strides=value.stride()[:4],
        epsilon=EPSILON,
        HEIGHT=height // 2,
        WIDTH=width // 2,
        SLICES=slices,
        CHANNELS=channels,
        FULL_KEYS=key.shape[1] == height,
        QUERIES=queries,
        KEYS=key_block,
        CHUNK=channel_chunk(plan, channels),
    )
    return out


def _keys(key: Tensor) -> int:
    """Keys of a quadrant."""
    return key.shape[1] * key.shape[2] * key.shape[3] // 4


# ---- dispatch --------------------------------------------------------------------------------------------------------


def gene_morph_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    *,
    implementation: Implementation | None = None,
) -> Tensor:
    """``softmax(RMSNorm(q) RMSNorm(k)^T / C) v`` within each quadrant of a patch, over all its slices.

    Args:
        query: (N, H, W, Z, C) before its norm, any strides; H and W are multiples of 4.
        key: before its norm; (N, H/2, W/2, Z, C) from the genes, or (N, H, W, Z, C) from the image.
        value: (N, H/2, W/2, Z, C), from the genes.
        query_weight: of the queries' norm, C elements.
        key_weight: of the keys' norm, C elements.
        implementation: see ``dispatch``.

    Returns:
        (N, H, W, Z, C), contiguous, in the type of ``query``.

    Raises:
        InputError: shapes that do not fit together, or kernels asked for by name that cannot run.
    """
    n, h, w, z, c = query.shape if query.ndim == 5 else (0, 1, 1, 0, 0)
    half = (n, h // 2, w // 2, z, c)
    norms = (query_weight.numel(), key_weight.numel())
    if h % 4 or w % 4 or key.shape not in (half, query.shape) or value.shape != half or norms != (c, c):
        raise InputError(
            f"q {tuple(query.shape)}, k {tuple(key.shape)}, v {tuple(value.shape)} and norms of {norms} weights do not "
            "fit together; v has half the height and width of q, which are multiples of 4, and k those of either"
        )
    if len({query.dtype, key.dtype, value.dtype}) > 1:
        raise InputError(f"q is {query.dtype}, k {key.dtype} and v {value.dtype}; they have to be of one type")
    limits = Verdict(_keys(key) <= MOST_KEYS, f"{_keys(key)} keys of a quadrant are more than their {MOST_KEYS}")
    if use_triton("gene_morph_attention", implementation, (query, key, value, query_weight, key_weight), limits):
        return _gene_morph_attention_triton(query, key, value, query_weight, key_weight)
    return gene_morph_attention_reference(query, key, value, query_weight, key_weight)
