"""Tera-MIND: a patch-based, boundary-aware UNet that predicts the noise in a tissue image from its transcripts.

Source: Tera-MIND (arXiv 2503.01220v3), as its published checkpoints were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise, product
from typing import Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from teramind import kernels
from teramind.errors import InputError
from teramind.kernels.layout import shift, shift_between, upsample
from teramind.model.blocks import GeneGeneBlock, GeneMorphBlock, ResidualBlock, TimeEmbedding
from teramind.model.config import BIN_SIZE, ModelConfig
from teramind.model.derived import DerivingLayer
from teramind.model.layers import Conv, RMSNorm, parts
from teramind.model.patches import cut, join, repeat_per_patch
from teramind.model.policy import policy_for

Modulation = dict[ResidualBlock, Tensor]

SLICE_PAIRS = ((0, 1), (1, 2), (2, 3))  # the gene slices of a window whose attention ``gene_attention`` gives


class Encoded(NamedTuple):
    """What the decoder reads: one entry per patch, batched row-major."""

    middle: Tensor  # (N, P/8, P/8, Z, C3)
    skips: list[
        Tensor
    ]  # (N, P/2^l, P/2^l, Z, C) in the encoder's order; for the decoder, or the encoder's grid of them
    genes: list[Tensor]  # half-resolution gene levels 0..3: (N, P/16 * 2^i, P/16 * 2^i, Z, ch)

    def map(self, function: Callable[..., Tensor], *others: Encoded) -> Encoded:
        """Apply a function to every tensor, or to the tensors in the same place of several."""
        together = (self, *others)
        return Encoded(
            function(*(one.middle for one in together)),
            [function(*tensors) for tensors in zip(*(one.skips for one in together), strict=True)],
            [function(*tensors) for tensors in zip(*(one.genes for one in together), strict=True)],
        )


class TeraMind(nn.Module):
    """The network. ``B`` regions of ``n x m`` patches, padded by half a patch on each side.

    ``forward(x, t, genes)``: ``x`` (B, S, Z, H+P, W+P) noisy image scaled to -1..1, ``t`` (B,) timesteps 0..999,
    ``genes`` (B, G, Zg, (H+P)/16, (W+P)/16) raw transcript counts per bin -> predicted noise (B, S, Z, H, W).
    ``paths="both"`` also gives the prediction of the decoder on the unshifted patches, (B, S, Z, H+P, W+P), which only
    training needs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._patch_batch: int | None = None
        self.time_embed = TimeEmbedding(config.base_channels, config.embed_channels)
        self.rna_blocks = self._gene_blocks()
        self.input_blocks, skip_channels = self._encoder_blocks()
        self.middle_block = self._middle_block()
        self.output_blocks = self._decoder_blocks(skip_channels)
        self.out = nn.Sequential(
            RMSNorm(1, config.base_channels, 1, 1), nn.SiLU(), Conv(config.base_channels, config.stains, 1, 3)
        )

    # ---- structure -----------------------------------------------------------------------------------------------

    def _gene_blocks(self) -> nn.ModuleList:
        """Gene level 0 (gene-gene block) and the convolutions of levels 1 to 3."""
        config = self.config
        level0 = GeneGeneBlock(config.genes, config.gene_slices, config.patch_bins, config.z_kernel)
        widths = [config.gene_channels(level) for level in (3, 2, 1, 0)]
        levels = [nn.ModuleList([nn.SiLU(), Conv(widths[i], widths[i + 1], 1, 3)]) for i in range(3)]
        return nn.ModuleList([nn.ModuleList([level0]), *levels])

    def _residual(self, inputs: int, outputs: int, resample: str | None = None) -> ResidualBlock:
        return ResidualBlock(inputs, outputs, self.config.embed_channels, self.config.dropout, resample)

    def _attention(self, channels: int, level: int) -> GeneMorphBlock:
        return GeneMorphBlock(channels, self.config.gene_channels(level), self.config.attention_keys)

    def _encoder_blocks(self) -> tuple[nn.ModuleList, list[int]]:
        config = self.config
        width = config.base_channels
        blocks, skip_channels = [nn.ModuleList([Conv(config.stains, width, 1, 3)])], [width]
        for level, channels in enumerate(config.level_channels):
            if level:
                blocks.append(nn.ModuleList([self._residual(width, width, "down")]))
                skip_channels.append(width)
            for _ in range(config.res_blocks):
                block: list[nn.Module] = [self._residual(width + config.gene_channels(level), channels)]
                if config.has_attention(level):
                    block.append(self._attention(channels, level))
                blocks.append(nn.ModuleList(block))
                skip_channels.append(width := channels)
        return nn.ModuleList(blocks), skip_channels

    def _middle_block(self) -> nn.ModuleList:
        width = self.config.level_channels[-1]
        return nn.ModuleList(
            [
                self._residual(width + self.config.gene_channels(3), width),
                self._attention(width, 3),
                self._residual(width, width),
            ]
        )

    def _decoder_blocks(self, skip_channels: list[int]) -> nn.ModuleList:
        config = self.config
        width = config.level_channels[-1]
        blocks, remaining = [], list(skip_channels)
        for level in reversed(range(4)):
            channels = config.level_channels[level]
            for index in range(config.res_blocks + 1):
                inputs = width + remaining.pop() + config.gene_channels(level)
                block: list[nn.Module] = [self._residual(inputs, channels)]
                width = channels
                if config.has_attention(level):
                    block.append(self._attention(width, level))
                if level and index == config.res_blocks:
                    block.append(self._residual(width, width, "up"))
                blocks.append(nn.ModuleList(block))
        return nn.ModuleList(blocks)

    # ---- genes ---------------------------------------------------------------------------------------------------

    def _gene_levels(self, counts: Tensor) -> list[Tensor]:
        """(N, G, Zg, p, p) counts -> gene levels 0..3 before their upsampling, (N, h, h, Z, ch), h = p, 2p, 4p, 8p."""
        [level0] = parts(self.rna_blocks[0])
        levels = [level0(counts).permute(0, 3, 4, 2, 1)]  # (N, p, p, Z, G)
        for activation, conv in map(parts, self.rna_blocks[1:]):
            levels.append(conv(upsample(activation(levels[-1]))))  # (N, 2h, 2h, Z, ch)
        return levels

    def gene_pyramid(self, genes: Tensor) -> list[Tensor]:
        """The four gene levels of every encoder patch.

        ``genes`` (B, G, Zg, n*p, m*p) -> [(B*n*m, G, Z, P/8, P/8), 128 channels at P/4, 64 at P/2, 32 at P].
        """
        levels = self._gene_levels(self._cut_genes(genes))
        return [upsample(level).permute(0, 4, 3, 1, 2) for level in levels]

    def gene_attention(self, genes: Tensor) -> Tensor:
        """Attention between genes from pairs of adjacent gene slices: (0,1), (1,2), (2,3), and from all four.

        ``genes`` (B, G, 4, n*p, m*p) -> (4, B*n*m, G, G); each row is a distribution over genes.

        Raises:
            InputError: for a network whose window is not of 4 gene slices: the maps are defined for those alone.
        """
        check_gene_attention(self.config)
        counts = self._cut_genes(genes)  # (N, G, 4, p, p)
        [block] = parts(self.rna_blocks[0])
        matrices = []
        for kept in (*SLICE_PAIRS, (0, 1, 2, 3)):
            mask = torch.zeros(4, dtype=counts.dtype, device=counts.device)
            mask[list(kept)] = 1
            matrices.append(block.attn.weights((counts * mask[:, None, None]).flatten(2)))
        return torch.stack(matrices)  # (4, N, G, G)

    def _cut_genes(self, genes: Tensor) -> Tensor:
        patches = cut(genes, self.config.patch_bins)  # (N, p, p, Zg, G)
        return patches.permute(0, 4, 3, 1, 2).contiguous().to(self.dtype)  # (N, G, Zg, p, p)

    # ---- UNet ----------------------------------------------------------------------------------------------------

    def _modulation(self, t: Tensor) -> Modulation:
        """What every residual block makes of the timesteps: (B,) -> (B, 2O) each."""
        time = self.time_embed(t)  # (B, E)
        return {block: block.modulation(time) for block in self.modules() if isinstance(block, ResidualBlock)}

    def _encode(self, image: Tensor, counts: Tensor, modulation: Modulation) -> Encoded:
        """(N, P, P, Z, S), (N, G, Zg, p, p), (N, 2O) a block -> what the decoder reads."""
        genes = self._gene_levels(counts)
        [first], *rest = map(parts, self.input_blocks)
        h = first(image)  # (N, P, P, Z, C)
        skips = [h]
        for index, (residual, *attention) in enumerate(rest, start=1):
            level, position = divmod(index, self.config.res_blocks + 1)
            level_genes = genes[3 - level]
            is_down = level > 0 and position == 0
            h = residual([h], None if is_down else level_genes, modulation[residual])
            for block in attention:
                h = block(h, level_genes)
            skips.append(h)
        residual1, attention_block, residual2 = parts(self.middle_block)
        h = residual1([h], genes[0], modulation[residual1])  # (N, P/8, P/8, Z, C3)
        h = attention_block(h, genes[0])
        return Encoded(residual2([h], None, modulation[residual2]), skips, genes)

    def _decode(self, encoded: Encoded, modulation: Modulation) -> Tensor:
        """Encoded patches -> predicted noise (N, P, P, Z, S)."""
        h = encoded.middle
        for index, (residual, *others) in enumerate(map(parts, self.output_blocks)):
            level = 3 - index // (self.config.res_blocks + 1)
            genes = encoded.genes[3 - level]
            h = residual([h, encoded.skips[-1 - index]], genes, modulation[residual])
            for block in others:
                h = block(h, genes) if isinstance(block, GeneMorphBlock) else block([h], None, modulation[block])
        norm, _, conv = parts(self.out)
        h, _ = kernels.gather_norm_silu([h], None, norm.weight, planes=conv.reads_planes(h))
        return conv(h)  # (N, P, P, Z, S)

    @overload
    def forward(self, x: Tensor, t: Tensor, genes: Tensor, paths: Literal["boundary"] = "boundary") -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, genes: Tensor, paths: Literal["both"]) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Tensor, t: Tensor, genes: Tensor, paths: Literal["boundary", "both"] = "boundary"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predicted noise; see the class for shapes."""
        rows, columns = self._grid(x, t, genes)
        if paths == "boundary" and not torch.is_grad_enabled():
            by_rows = policy_for(x.device).streams_rows
            predict, at_once = (
                (self._predict_by_rows, self.patch_batch(x.device)) if by_rows else (self._predict_whole, 1)
            )
            inputs = zip(x.split(at_once), t.split(at_once), genes.split(at_once), strict=True)
            return torch.cat([predict(*regions, rows, columns) for regions in inputs])
        image = cut(x.to(self.dtype), self.config.patch_size)  # (N, P, P, Z, S)
        modulation = self._modulation(t)
        encoded = self._encode(image, self._cut_genes(genes), per_patch(modulation, rows * columns))
        shifted = encoded.map(lambda features: shift(features.unflatten(0, (-1, rows, columns))))
        inner = per_patch(modulation, (rows - 1) * (columns - 1))
        boundary = join(self._decode(shifted, inner), rows - 1, columns - 1)  # (B, S, Z, H, W)
        if paths == "boundary":
            return boundary
        unshifted = self._decode(encoded, per_patch(modulation, rows * columns))
        return boundary, join(unshifted, rows, columns)  # (B, S, Z, H+P, W+P)

    def _predict_whole(self, x: Tensor, t: Tensor, genes: Tensor, rows: int, columns: int) -> Tensor:
        """The boundary path of one region whose encoder features are all in memory: skips are gathered where they lie.

        What is small beside the skips is laid out on the decoder's grid.
        """
        size = self.config.patch_size
        modulation = self._modulation(t)
        image, counts = cut(x.to(self.dtype), size), self._cut_genes(genes)
        encoded = self._encode_in_batches(image, counts, per_patch(modulation, rows * columns))
        grid = encoded.map(lambda features: features.unflatten(0, (rows, columns)))
        out = x.new_empty(*x.shape[:3], (rows - 1) * size, (columns - 1) * size, dtype=self.dtype)
        for band, part in self._rectangles(rows - 1, columns - 1, x.device):
            around = grid.map(partial(encoders_of, band, part))
            height, width = band.stop - band.start, part.stop - part.start
            shifted = Encoded(shift(around.middle), around.skips, [shift(level) for level in around.genes])
            noise = self._decode(shifted, per_patch(modulation, height * width))
            place = slice(band.start * size, band.stop * size), slice(part.start * size, part.stop * size)
            out[..., place[0], place[1]] = join(noise, height, width)
        return out  # (1, S, Z, H, W)

    def _predict_by_rows(self, x: Tensor, t: Tensor, genes: Tensor, rows: int, columns: int) -> Tensor:
        """The boundary path, one row of patches at a time, so that memory holds two rows and not the region.

        The encoder runs once per patch; a row of decoder patches starts when the two rows it lies between are there.
        """
        size, bins = self.config.patch_size, self.config.patch_bins
        modulation = self._modulation(t)
        of_row = per_patch(modulation, columns)
        out = x.new_empty(*x.shape[:3], (rows - 1) * size, (columns - 1) * size, dtype=self.dtype)
        above: Encoded | None = None
        for row in range(rows):
            image = cut(x[..., row * size : (row + 1) * size, :].to(self.dtype), size)  # (B*m, P, P, Z, S)
            counts = self._cut_genes(genes[..., row * bins : (row + 1) * bins, :])
            encoded = self._encode_in_batches(image, counts, of_row)
            below = encoded.map(lambda features: features.unflatten(0, (-1, columns)))  # (B, m, ...)
            if above is not None:
                self._decode_row(above, below, modulation, out[..., (row - 1) * size : row * size, :])
            above = below
        return out  # (B, S, Z, H, W)

    def _encode_in_batches(self, image: Tensor, counts: Tensor, modulation: Modulation) -> Encoded:
        """``_encode``, a few patches at a time."""
        whole: Encoded | None = None
        for part in even_parts(len(image), self.patch_batch(image.device)):
            few = self._encode(image[part], counts[part], {block: values[part] for block, values in modulation.items()})
            if part == slice(0, len(image)):
                return few
            whole = whole or few.map(lambda features: features.new_empty(len(image), *features.shape[1:]))
            whole.map(lambda all_, features: all_[part].copy_(features), few)  # noqa: B023
        return cast(Encoded, whole)

    def _decode_row(self, above: Encoded, below: Encoded, modulation: Modulation, out: Tensor) -> None:
        """``_decode``, a few patches at a time, of what lies between two rows (B, m, ...) -> (B, S, Z, P, (m-1)*P)."""
        size = self.config.patch_size
        regions, columns = above.middle.shape[:2]
        for part in even_parts(columns - 1, self.patch_batch(out.device) // regions):
            shifted = above.map(partial(shift_columns, part), below)
            noise = self._decode(shifted, per_patch(modulation, part.stop - part.start))
            out[..., part.start * size : part.stop * size] = join(noise, 1, part.stop - part.start)

    def patch_batch(self, device: torch.device) -> int:
        """Patches that go through encoder or decoder together at inference."""
        if self._patch_batch:
            return self._patch_batch
        config = self.config
        channels = 2 * config.base_channels + config.gene_channels(0)  # of the widest input at full resolution
        patch = config.patch_size**2 * config.slices * channels * self.dtype.itemsize
        return max(1, policy_for(device).batch_bytes // patch)

    def limit_patch_batch(self, patches: int) -> None:
        """Send at most so many patches through together, where memory is short. The result is the same."""
        self._patch_batch = patches

    def give_up_weights(self) -> None:
        """Be for prediction alone: a layer's weight goes when the form of it that inference reads has been derived.

        Memory then holds one of the two. What needs the weights as they are saved (``state_dict``, ``to``, a copy,
        gradients, autocast) is an ``InputError`` from the first prediction on.
        """
        for layer in self.modules():
            if isinstance(layer, DerivingLayer):
                layer.gives_up_weight = True

    def _rectangles(self, rows: int, columns: int, device: torch.device) -> list[tuple[slice, slice]]:
        """Rows and columns of the patches that go through together: whole rows, or parts of one."""
        at_once = self.patch_batch(device)
        return [*product(even_parts(rows, at_once // columns), even_parts(columns, at_once))]

    # ---- checks --------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which activations are computed."""
        return next(self.parameters()).dtype

    def _grid(self, x: Tensor, t: Tensor, genes: Tensor) -> tuple[int, int]:
        """Rows and columns of encoder patches; an ``InputError`` where the shapes do not fit the network."""
        config = self.config
        size = config.patch_size
        if x.ndim != 5 or x.shape[1:3] != (config.stains, config.slices):
            raise InputError(
                f"the image has shape {tuple(x.shape)}; this network takes "
                f"(B, {config.stains}, {config.slices}, H+{size}, W+{size})"
            )
        height, width = x.shape[3:]
        if height % size or width % size or min(height, width) < 2 * size:
            raise InputError(
                f"the padded region is {height} x {width} px; "
                f"each side has to be a multiple of {size} and at least {2 * size}"
            )
        expected = (x.shape[0], config.genes, config.gene_slices, height // BIN_SIZE, width // BIN_SIZE)
        if tuple(genes.shape) != expected:
            raise InputError(f"the genes have shape {tuple(genes.shape)}; this network and image take {expected}")
        if t.shape != (x.shape[0],):
            raise InputError(f"t has shape {tuple(t.shape)}; one timestep a region is {(x.shape[0],)}")
        return height // size, width // size

    def load_upstream_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Fill in weights stored under the reference implementation's names.

        Raises:
            InputError: naming the entries that are missing, unexpected or of another shape. Nothing is loaded then.
        """
        own = self.state_dict()
        missing = sorted(own.keys() - state_dict.keys())
        unexpected = sorted(state_dict.keys() - own.keys())
        misshapen = [
            f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, value in state_dict.items()
            if name in own and value.shape != own[name].shape
        ]
        problems = [
            f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        ]
        if problems:
            raise InputError(f"the weights do not fit the network; {'; '.join(problems)}")
        self.load_state_dict(dict(state_dict))


def check_gene_attention(config: ModelConfig) -> None:
    """Attention between genes is told for pairs of the four gene slices of a window.

    Raises:
        InputError: the network's windows have another number.
    """
    if config.gene_slices != 4:
        raise InputError(
            f"gene attention is defined for networks with gene_slices=4; this one has {config.gene_slices}"
        )


def per_patch(modulation: Modulation, patches: int) -> Modulation:
    """Of regions -> of the patches of each."""
    return {block: repeat_per_patch(values, patches) for block, values in modulation.items()}


def even_parts(count: int, largest: int) -> list[slice]:
    """``range(count)`` in as few parts of about equal size as hold at most ``largest`` each, or one each."""
    parts = -(-count // max(1, largest))
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def encoders_of(rows: slice, columns: slice, grid: Tensor) -> Tensor:
    """The encoder patches around a rectangle of decoder patches: (n, m, ...) -> (rows+1, columns+1, ...), a view."""
    return grid[rows.start : rows.stop + 1, columns.start : columns.stop + 1]


def shift_columns(part: slice, above: Tensor, below: Tensor) -> Tensor:
    """Some columns of ``shift_between``: (B, m, p, p, Z, C) twice -> (B*k, p, p, Z, C)."""
    needed = slice(part.start, part.stop + 1)
    return shift_between(above[:, needed], below[:, needed]).flatten(0, 1)
