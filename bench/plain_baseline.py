"""The network run plainly, for comparison: what a straightforward implementation of the published method does.

Every convolution is ``conv3d`` on (N, C, Z, H, W), concatenations and norms are eager torch, genes are at full
resolution, both decoder passes are run, and a region goes through in 256-px tiles each with a halo of its own, so that
25 patches are encoded for 16 decoded. Fed from the state dict of a ``TeraMind``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from teramind.model.config import BIN_SIZE, ModelConfig

TILE = 256  # px


class PlainNetwork:
    """The network from its weights; stateless otherwise."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = weights

    # ---- layers --------------------------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def convolution(self, name: str, x: Tensor, padding: bool = True) -> Tensor:
        """(N, I, Z, H, W) -> (N, O, Z, H, W); without ``padding`` the plane alone is padded."""
        weight = self.weights[f"{name}.weight"]
        kz, k = weight.shape[2:4] if padding else (1, weight.shape[3])
        return F.conv3d(x, weight, self.weights[f"{name}.bias"], padding=(kz // 2, k // 2, k // 2))

    def norm(self, name: str, x: Tensor, dim: int) -> Tensor:
        """RMSNorm over one axis."""
        wide = x.float()
        shape = [-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)]
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=dim, keepdim=True) + 1e-6)
        return normed.to(x.dtype) * self.weights[f"{name}.weight"].reshape(shape)

    def residual(self, name: str, x: Tensor, time: Tensor, resample: str | None = None) -> Tensor:
        h = F.silu(self.norm(f"{name}.in_layers.0", x, 1))
        if resample:
            h, x = _resample(h, resample), _resample(x, resample)
        h = self.convolution(f"{name}.in_layers.2", h)
        scale, shift = self.linear(f"{name}.emb_layers.1", F.silu(time))[:, :, None, None, None].chunk(2, dim=1)
        h = F.silu(self.norm(f"{name}.out_layers.0", h, 1) * (1 + scale) + shift)
        h = self.convolution(f"{name}.out_layers.3", h)
        if f"{name}.skip_connection.weight" in self.weights:
            x = self.convolution(f"{name}.skip_connection", x)
        return x + h

    def attention(self, name: str, x: Tensor, genes: Tensor) -> Tensor:
        """Gene-morph attention block at full resolution of the level."""
        tokens, gene_tokens = _quadrants(x), _quadrants(genes)  # (N, 4, T, C), (N, 4, T, Cg)
        modulation = self.linear(f"{name}.adaLN_modulation.1", F.silu(gene_tokens))
        shift1, scale1, gate1, embed, shift2, scale2, gate2 = modulation.chunk(7, dim=-1)
        h = self.norm(f"{name}.norm1", tokens, -1) * (1 + scale1) + shift1
        q = self.norm(f"{name}.attn.q_norm", self.linear(f"{name}.attn.q", h), -1)
        k = self.linear(f"{name}.attn.k", embed if self.config.attention_keys == "gene" else h)
        k = self.norm(f"{name}.attn.k_norm", k, -1)
        v = self.linear(f"{name}.attn.v", embed)
        h = F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
        tokens = tokens + gate1 * self.linear(f"{name}.attn.proj", h)
        h = self.norm(f"{name}.norm2", tokens, -1) * (1 + scale2) + shift2
        return _planes(tokens + gate2 * self.mlp(f"{name}.mlp", h), x.shape)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", x), approximate="tanh"))

    # ---- parts of the network ------------------------------------------------------------------------------------

    def gene_pyramid(self, counts: Tensor) -> list[Tensor]:
        """(N, G, Zg, p, p) -> the four levels at full resolution, (N, ch, Z, 2p * 2^i, 2p * 2^i)."""
        name = "rna_blocks.0.0"
        tokens = counts.flatten(2)  # (N, G, Zg*p*p)
        q = self.norm(f"{name}.attn.q_norm", self.linear(f"{name}.attn.q", tokens), -1)
        h = F.scaled_dot_product_attention(q, q, self.linear(f"{name}.attn.v", tokens), scale=1 / q.shape[-1])
        h = self.norm(f"{name}.norm2", self.linear(f"{name}.attn.proj", h), -1)
        h = self.mlp(f"{name}.mlp", h).unflatten(2, counts.shape[2:])
        levels = [_resample(self.convolution(f"{name}.down_z", h, padding=False), "up")]
        for i in (1, 2, 3):
            levels.append(_resample(self.convolution(f"rna_blocks.{i}.1", F.silu(levels[-1])), "up"))
        return levels

    def encode(self, image: Tensor, genes: list[Tensor], time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(N, S, Z, P, P) -> the middle features and the skips."""
        h = self.convolution("input_blocks.0.0", image)
        skips = [h]
        per_level = self.config.res_blocks + 1
        for index in range(1, 4 * per_level):
            level, position = divmod(index, per_level)
            name = f"input_blocks.{index}"
            if level and position == 0:
                h = self.residual(f"{name}.0", h, time, "down")
            else:
                h = self.residual(f"{name}.0", torch.cat([h, genes[3 - level]], dim=1), time)
                if self.config.has_attention(level):
                    h = self.attention(f"{name}.1", h, genes[3 - level])
            skips.append(h)
        h = self.residual("middle_block.0", torch.cat([h, genes[0]], dim=1), time)
        h = self.attention("middle_block.1", h, genes[0])
        return self.residual("middle_block.2", h, time), skips

    def decode(self, h: Tensor, skips: list[Tensor], genes: list[Tensor], time: Tensor) -> Tensor:
        """-> predicted noise (N, S, Z, P, P)."""
        per_level = self.config.res_blocks + 1
        for index, skip in enumerate(reversed(skips)):
            level = 3 - index // per_level
            name = f"output_blocks.{index}"
            h = self.residual(f"{name}.0", torch.cat([h, skip, genes[3 - level]], dim=1), time)
            if self.config.has_attention(level):
                h = self.attention(f"{name}.1", h, genes[3 - level])
            if level and index % per_level == per_level - 1:
                h = self.residual(f"{name}.{2 if self.config.has_attention(level) else 1}", h, time, "up")
        return self.convolution("out.2", F.silu(self.norm("out.0", h, 1)))

    def time_embedding(self, t: Tensor) -> Tensor:
        half = self.config.base_channels // 2
        angles = t.float()[:, None] * 10000.0 ** -(torch.arange(half, device=t.device) / half)
        features = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.weights["out.2.bias"].dtype)
        return self.linear("time_embed.time_embed.2", F.silu(self.linear("time_embed.time_embed.0", features)))

    # ---- regions -------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, t: Tensor, genes: Tensor) -> tuple[Tensor, Tensor]:
        """Both passes over one region: shapes as ``TeraMind.forward(..., paths="both")`` with B = 1."""
        size = self.config.patch_size
        rows, columns = x.shape[-2] // size, x.shape[-1] // size
        time = self.time_embedding(t).expand(rows * columns, -1)
        dtype = time.dtype
        levels = self.gene_pyramid(_cut(genes.to(dtype), self.config.patch_bins))
        h, skips = self.encode(_cut(x.to(dtype), size), levels, time)

        def shift(features: Tensor) -> Tensor:
            plane = _join(features, rows, columns)
            half = features.shape[-1] // 2
            return _cut(plane[..., half:-half, half:-half], 2 * half)

        shifted = [shift(skip) for skip in skips], [shift(level) for level in levels]
        inner = time[: (rows - 1) * (columns - 1)]
        boundary = _join(self.decode(shift(h), *shifted, inner), rows - 1, columns - 1)
        return boundary, _join(self.decode(h, skips, levels, time), rows, columns)

    def step(self, x: Tensor, t: Tensor, genes: Tensor, tile: int = TILE) -> Tensor:
        """The prediction for a region, tile by tile: (1, S, Z, H+P, W+P) -> (1, S, Z, H, W); multiples of ``tile``."""
        size = self.config.patch_size
        side, bins = tile + size, (tile + size) // BIN_SIZE
        out = x.new_empty(*x.shape[:-2], x.shape[-2] - size, x.shape[-1] - size)
        for y in range(0, out.shape[-2], tile):
            for left in range(0, out.shape[-1], tile):
                row, column = y // BIN_SIZE, left // BIN_SIZE
                region = x[..., y : y + side, left : left + side]
                counts = genes[..., row : row + bins, column : column + bins]
                out[..., y : y + tile, left : left + tile] = self.predict(region, t, counts)[0]
        return out


def _resample(x: Tensor, how: str) -> Tensor:
    """Average pooling or nearest upsampling by 2 in plane."""
    if how == "down":
        return F.avg_pool3d(x, (1, 2, 2))
    return F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")


def _cut(region: Tensor, size: int) -> Tensor:
    """(1, C, Z, n*size, m*size) -> (n*m, C, Z, size, size)."""
    patches = region[0].unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (C, Z, n, size, m, size)
    return patches.permute(2, 4, 0, 1, 3, 5).flatten(0, 1).contiguous()


def _join(patches: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of ``_cut``."""
    grid = patches.unflatten(0, (rows, columns)).permute(2, 3, 0, 4, 1, 5)  # (C, Z, n, size, m, size)
    return grid.flatten(4, 5).flatten(2, 3)[None]


def _quadrants(x: Tensor) -> Tensor:
    """(N, C, Z, H, W) -> (N, 4, Z * H/2 * W/2, C)."""
    grid = x.unflatten(4, (2, -1)).unflatten(3, (2, -1))  # (N, C, Z, 2, H/2, 2, W/2)
    return grid.permute(0, 3, 5, 2, 4, 6, 1).flatten(3, 5).flatten(1, 2)


def _planes(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``_quadrants``."""
    n, c, z, height, width = shape
    grid = tokens.reshape(n, 2, 2, z, height // 2, width // 2, c).permute(0, 6, 3, 1, 4, 2, 5)
    return grid.reshape(shape)
