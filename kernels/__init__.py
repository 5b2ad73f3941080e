"""Triton kernels, one operation a file, each with its plain-torch reference.

The operations are reached as attributes of this package, which imports their files (and Triton) when first used:
importing the package costs nothing and asks no device anything. See ``dispatch`` for how one chooses between kernel
and reference.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teramind.kernels.adaln import adaptive_norm
    from teramind.kernels.counts import dense_counts
    from teramind.kernels.ddim import ddim_update
    from teramind.kernels.gather import gather_norm_silu
    from teramind.kernels.gene_attention import gene_attention_rows, gene_gene_attention
    from teramind.kernels.modulation import modulated_silu
    from teramind.kernels.noise import noise_field, philox_words
    from teramind.kernels.window_attention import gene_morph_attention

_FILES = {
    "adaptive_norm": "adaln",
    "ddim_update": "ddim",
    "dense_counts": "counts",
    "gather_norm_silu": "gather",
    "gene_attention_rows": "gene_attention",
    "gene_gene_attention": "gene_attention",
    "gene_morph_attention": "window_attention",
    "modulated_silu": "modulation",
    "noise_field": "noise",
    "philox_words": "noise",
}

__all__ = [
    "adaptive_norm",
    "ddim_update",
    "dense_counts",
    "gather_norm_silu",
    "gene_attention_rows",
    "gene_gene_attention",
    "gene_morph_attention",
    "modulated_silu",
    "noise_field",
    "philox_words",
]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operation = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = operation  # found without this function from now on
    return operation
