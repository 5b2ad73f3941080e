"""Maps of the attention between genes, from the rows of the asked genes alone.

A map is *attention-weighted expression*: with the K x K block of a patch's attention matrix that belongs to K genes,
``A[genes][:, genes] @ counts`` spreads the patch's attention over its bins. Source: Tera-MIND (arXiv 2503.01220v3),
"gene-gene attention maps", and ``TeraMind.gene_attention``, which forms the whole matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.engine.denoise import full_float32, on_device
from teramind.errors import InputError
from teramind.kernels import gene_attention_rows
from teramind.model.layers import parts
from teramind.model.network import SLICE_PAIRS, TeraMind, check_gene_attention

QUANTITIES = ("lower", "upper", "window", "expression")
"""Attention towards the lower and the upper neighbour slice, of the whole window, and the raw counts."""
WINDOW_SLICES = 4
IMAGE_SLICES = 2  # of a window; they show its gene slices 1 and 2

# What the patches that are worked on together take: enough of them to fill a device, few enough for a CPU's cache.
BATCH_BYTES = {"cpu": 32 << 20, "cuda": 4 << 30}
COPIES = 5  # of a patch's counts in float32 that are alive at once
MATRICES = 10  # of the asked genes' rows of its attention


@torch.no_grad()
def attention_rows(net: TeraMind, counts: Tensor, rows: Tensor) -> Tensor:
    """Rows of the matrices that ``TeraMind.gene_attention`` gives.

    Each projection of a pair of slices is a product with half of the weights; that of the window is the sum of the
    first pair's and the last pair's. So four matrices cost one and a half projections.

    Args:
        net: with windows of four gene slices.
        counts: (N, G, 4, p, p) of N patches, in the type of the weights.
        rows: (R,) indices of genes.

    Returns:
        (4, N, R, G), each row a distribution over genes: from gene slices (0,1), (1,2), (2,3), and from all four.

    Raises:
        InputError: a network of another number of gene slices.
    """
    check_gene_attention(net.config)
    [block] = parts(net.rna_blocks[0])
    attention = block.attn
    tokens = counts.flatten(3)  # (N, G, 4, p*p)
    weight = attention.q.weight.unflatten(1, (WINDOW_SLICES, -1))  # (F, 4, p*p)

    def project(pair: tuple[int, int]) -> Tensor:
        kept = slice(pair[0], pair[1] + 1)
        projected: Tensor = F.linear(tokens[:, :, kept].flatten(2), weight[:, kept].flatten(1), attention.q.bias)
        return projected  # (N, G, F)

    def select(query: Tensor) -> Tensor:
        selected: Tensor = gene_attention_rows(query, attention.q_norm.weight, rows)
        return selected  # (N, R, G)

    first, middle, last = SLICE_PAIRS
    query = project(first)
    lower, between = select(query), select(project(middle))
    other = project(last)
    upper = select(other)
    whole = select(query.add_(other).sub_(attention.q.bias))
    return torch.stack([lower, between, upper, whole])  # (4, N, R, G)


def weighted_expression(attention: Tensor, expression: Tensor) -> Tensor:
    """Attention times expression.

    Args:
        attention: (4, N, K, K) of K genes to each other, as ``attention_rows`` orders the slices.
        expression: (N, K, 4, p*p) their counts.

    Returns:
        (N, 4, K, 2, p*p): the ``QUANTITIES`` for the two image slices.
    """
    lower, between, upper, whole = attention
    first, second = expression[:, :, 1], expression[:, :, 2]  # (N, K, p*p)
    shown = torch.stack([first, second], dim=2)  # (N, K, 2, p*p)
    return torch.stack(
        [
            torch.stack([lower @ first, between @ second], dim=2),
            torch.stack([between @ first, upper @ second], dim=2),
            torch.stack([whole @ first, whole @ second], dim=2),
            shown,
        ],
        dim=1,
    )  # (N, 4, K, 2, p*p)


def interaction_maps(
    net: TeraMind, counts: npt.NDArray[Any], genes: Sequence[int], *, patches: int | None = None
) -> npt.NDArray[np.float32]:
    """Attention-weighted expression of K genes in a region of one z-window.

    Patches in which none of the genes was read are 0 without being computed: attention weighs counts.

    Args:
        net: with windows of four gene slices, on the device that is to be used, in float32.
        counts: (G, 4, n*p, m*p) transcripts per bin of n x m encoder patches.
        genes: K indices into the network's gene axis, each once.
        patches: how many to work on at once; by default what suits the device.

    Returns:
        (4, K, 2, n*p, m*p): the ``QUANTITIES`` of each gene in the two image slices.

    Raises:
        InputError: a network of another number of gene slices, genes that it does not have, or counts of another shape.
    """
    check_gene_attention(net.config)
    bins = net.config.patch_bins
    _check(net, counts, genes)
    rows, columns = counts.shape[2] // bins, counts.shape[3] // bins
    # (n, m, G, 4, p, p), a view
    cut = counts.reshape(*counts.shape[:2], rows, bins, columns, bins).transpose(2, 4, 0, 1, 3, 5)
    read = cut[:, :, list(genes), 1:-1].any(axis=(2, 3, 4, 5))
    live = np.argwhere(read)
    maps = np.zeros((rows, columns, len(QUANTITIES), len(genes), IMAGE_SLICES, bins * bins), np.float32)
    device = next(net.parameters()).device
    at_once = patches or patches_at_once(net, device, len(genes))
    selected = torch.tensor(list(genes), device=device)
    with on_device(device), full_float32(device):
        for start in range(0, len(live), at_once):
            places = tuple(live[start : start + at_once].T)
            batch = torch.from_numpy(cut[places].astype(np.float32)).to(device)  # (N, G, 4, p, p)
            attention = attention_rows(net, batch, selected)[..., selected]  # (4, N, K, K)
            maps[places] = weighted_expression(attention, batch[:, selected].flatten(3)).cpu().numpy()
    maps = maps.reshape(*maps.shape[:5], bins, bins).transpose(2, 3, 4, 0, 5, 1, 6)
    return np.ascontiguousarray(maps).reshape(*maps.shape[:3], rows * bins, columns * bins)


def patches_at_once(net: TeraMind, device: torch.device, rows: int = 1) -> int:
    """How many patches ``interaction_maps`` works on at once where it is not told, for so many asked genes."""
    patch = net.config.genes * (WINDOW_SLICES * net.config.patch_bins**2 * COPIES + rows * MATRICES) * 4
    return max(1, BATCH_BYTES.get(device.type, BATCH_BYTES["cuda"]) // patch)


def _check(net: TeraMind, counts: npt.NDArray[Any], genes: Sequence[int]) -> None:
    config = net.config
    expected = (config.genes, WINDOW_SLICES)
    if counts.ndim != 4 or counts.shape[:2] != expected or any(side % config.patch_bins for side in counts.shape[2:]):
        raise InputError(
            f"the counts have shape {counts.shape}; this network takes {expected} and whole patches of "
            f"{config.patch_bins} bins"
        )
    if not genes or len(set(genes)) != len(genes) or not all(0 <= gene < config.genes for gene in genes):
        raise InputError(f"genes {list(genes)} are not different indices from 0 to {config.genes - 1}")
