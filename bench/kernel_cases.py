"""What the kernels are measured and compiled on: their calls in one step of a tile, at the published size.

One registry for ``pytest bench/kernels --benchmark-only``, ``python bench/gpu.py`` and the compilation tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from teramind.kernels.adaln import adaptive_norm
from teramind.kernels.counts import dense_counts
from teramind.kernels.ddim import ddim_update
from teramind.kernels.gather import gather_norm_silu
from teramind.kernels.gene_attention import gene_attention_rows, gene_gene_attention
from teramind.kernels.modulation import modulated_silu
from teramind.kernels.noise import noise_field, philox_words
from teramind.kernels.window_attention import gene_morph_attention

PATCH, SLICES, STAINS, GENES, GENE_SLICES, BINS = 64, 2, 2, 229, 4, 4  # the published size; bins along a patch
CHANNELS = {64: 64, 32: 128, 16: 256, 8: 512}  # of the image features, by the side of their maps
GENE_CHANNELS = {64: 32, 32: 64, 16: 128, 8: GENES}


Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments and options
Build = Callable[[str, torch.dtype], Call]  # (device, type of activations) -> a call, with random values


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        name: what it is in the network.
        operation: the public function.
        build: makes its arguments.
        flops: multiplications and additions of its matrix products; 0 where memory alone counts.
    """

    name: str
    operation: Callable[..., Any]
    build: Build
    flops: int = 0

    @property
    def is_memory_bound(self) -> bool:
        return self.flops == 0


def tensors_in(values: object) -> Iterator[Tensor]:
    """All tensors within tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)


def bytes_moved(arguments: object, results: object) -> int:
    """The least that has to move: every distinct input read once and every output written once."""
    inputs = sum(distinct_elements(tensor) * tensor.element_size() for tensor in tensors_in(arguments))
    outputs = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors_in(results)}
    return inputs + sum(outputs.values())


def distinct_elements(tensor: Tensor) -> int:
    """Elements in memory: an expanded axis is read once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return torch.Size(sizes).numel()


def cases(tile: int) -> list[Case]:
    """The calls of one step of a tile of ``tile`` px, its encoder patches shared."""
    rows = tile // PATCH
    grid = (rows + 1, rows + 1)
    return [
        *_gathers(grid),
        *(_modulation(side, rows * rows) for side in CHANNELS),
        *(_adaptive_norm(side, rows * rows) for side in (16, 8)),
        _window_attention(16, rows * rows, "gene"),
        _window_attention(8, rows * rows, "gene"),
        _window_attention(16, rows * rows, "image"),
        _gene_attention(grid[0] * grid[1], GENES, GENE_SLICES * BINS**2),
        _gene_attention(grid[0] * grid[1], 500, GENE_SLICES * BINS**2),
        _gene_attention(max(1, rows), 500, 1024),
        _selected_rows(grid[0] * grid[1]),
        _ddim(tile, last=False),
        _ddim(tile, last=True),
        Case("noise", noise_field, _noise(tile, {"dtype": torch.float16})),
        Case("words of the noise", philox_words, _noise(tile, {})),
        _counts(grid),
    ]


def _gathers(grid: tuple[int, int]) -> Iterator[Case]:
    yield _gather("one feature, 64 px", 64, 1, grid, with_genes=False)
    for side in (64, 16, 8):
        yield _gather(f"encoder {side} px", side, 1, grid)
    for side in CHANNELS:
        yield _gather(f"decoder {side} px", side, 2, grid)


def _gather(name: str, side: int, features: int, grid: tuple[int, int], *, with_genes: bool = True) -> Case:
    """One feature on encoder patches, or one on decoder patches and one on the grid of encoder patches around them."""
    channels, genes = CHANNELS[side], GENE_CHANNELS[side] if with_genes else 0

    def build(device: str, dtype: torch.dtype) -> Call:
        patches = grid[0] * grid[1] if features == 1 else (grid[0] - 1) * (grid[1] - 1)
        of = [_random(device, dtype, patches, side, side, SLICES, channels)]
        if features == 2:
            of.append(_random(device, dtype, *grid, side, side, SLICES, channels))
        level = _random(device, dtype, patches, side // 2, side // 2, SLICES, genes) if with_genes else None
        weight = _random(device, dtype, features * channels + genes)
        return (of, level, weight), {"multiple": 8, "concatenate": with_genes}

    return Case(f"gather + norm + SiLU, {name}", gather_norm_silu, build)


def _modulation(side: int, patches: int) -> Case:
    channels = CHANNELS[side]

    def build(device: str, dtype: torch.dtype) -> Call:
        x = _random(device, dtype, patches, side, side, SLICES, channels)
        scale, shift = _random(device, dtype, 1, 2 * channels).expand(patches, -1).chunk(2, dim=-1)
        return (x, _random(device, dtype, channels), scale, shift), {}

    return Case(f"norm + time + SiLU, {side} px", modulated_silu, build)


def _adaptive_norm(side: int, patches: int) -> Case:
    channels = CHANNELS[side]

    def build(device: str, dtype: torch.dtype) -> Call:
        x = _random(device, dtype, patches, side, side, SLICES, channels)
        shift, scale, *_ = _random(device, dtype, patches, side // 2, side // 2, SLICES, 7 * channels).chunk(7, dim=-1)
        return (x, _random(device, dtype, channels), scale, shift), {}

    return Case(f"AdaLN, {side} px", adaptive_norm, build)


def _window_attention(side: int, patches: int, keys: str) -> Case:
    channels = CHANNELS[side]
    queries = side * side // 4 * SLICES

    def build(device: str, dtype: torch.dtype) -> Call:
        query = _random(device, dtype, patches, side, side, SLICES, channels)
        key_side = side if keys == "image" else side // 2
        key = _random(device, dtype, patches, key_side, key_side, SLICES, channels)
        value = _random(device, dtype, patches, side // 2, side // 2, SLICES, channels)
        return (query, key, value, *(_random(device, dtype, channels) for _ in range(2))), {}

    count = queries if keys == "image" else queries // 4
    flops = 4 * patches * 4 * queries * count * channels
    return Case(f"gene-morph attention, {queries} x {count} of {channels}", gene_morph_attention, build, flops)


def _gene_attention(patches: int, genes: int, features: int) -> Case:
    def build(device: str, dtype: torch.dtype) -> Call:
        query, value = _random(device, dtype, 2, patches, genes, features)
        return (query, value, _random(device, dtype, features)), {}

    name = f"gene-gene attention, {genes} x {features}"
    return Case(name, gene_gene_attention, build, 4 * patches * genes * genes * features)


def _selected_rows(patches: int, selected: int = 10) -> Case:
    features = GENE_SLICES * BINS**2

    def build(device: str, dtype: torch.dtype) -> Call:
        query = _random(device, dtype, patches, GENES, features)
        rows = torch.arange(selected, device=device) * 20
        return (query, _random(device, dtype, features), rows), {}

    return Case(
        f"{selected} rows of gene-gene attention", gene_attention_rows, build, 2 * patches * selected * GENES * features
    )


def _ddim(tile: int, *, last: bool) -> Case:
    def build(device: str, dtype: torch.dtype) -> Call:
        side = tile + PATCH
        state = _random(device, torch.float16, 1, STAINS, SLICES, side, side)
        x = state[..., PATCH // 2 : -PATCH // 2, PATCH // 2 : -PATCH // 2]
        eps = _random(device, dtype, 1, STAINS, SLICES, tile, tile)
        step = (0.9, 1.0) if last else (0.4, 0.5)
        return (x, eps, *step), {"state_dtype": torch.float16, "quantise": "round" if last else None}

    return Case(f"DDIM update{', last step' if last else ''}", ddim_update, build)


def _noise(tile: int, options: dict[str, Any]) -> Build:
    box = (7, 3, 4096, 2048, (STAINS, SLICES, tile, tile))
    return lambda device, _: (box, {"device": device, **options})


def _counts(grid: tuple[int, int]) -> Case:
    shape = (GENES, GENE_SLICES, grid[0] * BINS, grid[1] * BINS)
    bins = shape[1] * shape[2] * shape[3]
    filled = 12  # genes a bin holds of 229, as in tissue

    def build(device: str, dtype: torch.dtype) -> Call:
        places = torch.arange(bins, device=device, dtype=torch.int32).repeat_interleave(filled)
        genes = torch.arange(bins * filled, device=device, dtype=torch.int32) * 19 % GENES
        return (torch.stack((places, genes, torch.ones_like(genes))), shape), {"dtype": dtype}

    return Case("sparse counts to dense ones", dense_counts, build)


def _random(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)
