"""The blocks of the network: residual, gene-morph attention, gene-gene, time.

Gene features are constant on 2x2 px at every level (each level ends in a nearest upsampling), so they are kept, and
everything computed from them alone is computed, at half resolution: ``(N, H/2, W/2, Z, C)``.
Attribute names follow the reference implementation's checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teramind.model.layers import Conv, Linear, Pointwise, RMSNorm, UpConv, parts
from teramind.model.norms import adaptive_norm, modulated_silu, norm_silu
from teramind.model.resample import average_pool, concatenate, pairs, spread, upsample


class TimeEmbedding(nn.Module):
    """Timestep -> embedding: sinusoidal features, Linear, SiLU, Linear."""

    def __init__(self, channels: int, embed_channels: int) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(
            nn.Linear(channels, embed_channels), nn.SiLU(), nn.Linear(embed_channels, embed_channels)
        )
        self.channels = channels

    def forward(self, t: Tensor) -> Tensor:  # (B,)
        half = self.channels // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angles = t.float()[:, None] * 10000.0**-exponents  # (B, C/2)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, C)
        return self.time_embed(features.to(next(self.parameters()).dtype))  # (B, E)


class ResidualBlock(nn.Module):
    """Residual block on the channel-wise concatenation of its inputs, modulated by time.

    ``resample`` is None, "down" (average pooling) or "up" (nearest), applied to both branches after norm and SiLU; such
    a block has one input.
    """

    def __init__(
        self, inputs: int, outputs: int, embed_channels: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__()
        first = UpConv if resample == "up" else Conv
        self.in_layers = nn.Sequential(RMSNorm(1, inputs, 1, 1), nn.SiLU(), first(inputs, outputs, 3, 3))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_channels, 2 * outputs))
        self.out_layers = nn.Sequential(
            RMSNorm(1, outputs, 1, 1), nn.SiLU(), nn.Dropout(dropout), Conv(outputs, outputs, 3, 3)
        )
        for parameter in self.out_layers[3].parameters():
            nn.init.zeros_(parameter)  # a block starts as its skip connection
        self.skip_connection = nn.Identity() if inputs == outputs else Pointwise(inputs, outputs)
        self.resample = resample

    def modulation(self, time: Tensor) -> Tensor:
        """Scale and shift of the second norm: (B, E) -> (B, 1, 1, 1, 2O)."""
        return self.emb_layers(time)[:, None, None, None]

    def forward(self, features: list[Tensor], genes: Tensor | None, modulation: Tensor) -> Tensor:
        """``features`` (N, H, W, Z, ci) each, ``genes`` (N, H/2, W/2, Z, cg), ``modulation`` (N, 1, 1, 1, 2O).

        Gives (N, H', W', Z, O).
        """
        norm, _, conv = parts(self.in_layers)
        h = norm_silu(features, genes, norm.weight, conv.reads_planes(features[0]))  # (N, H, W, Z, I)
        h = conv(average_pool(h) if self.resample == "down" else h)  # (N, H', W', Z, O)
        scale, shift = modulation.chunk(2, dim=-1)  # (N, 1, 1, 1, O)
        norm, _, dropout, conv = parts(self.out_layers)
        h = dropout(modulated_silu(h, norm.weight, scale, shift, conv.reads_planes(h)))  # (N, H', W', Z, O)
        return conv(h, onto=self._skip(features, genes))  # (N, H', W', Z, O)

    def _skip(self, features: list[Tensor], genes: Tensor | None) -> Tensor:
        if self.resample == "down":
            return average_pool(features[0])
        if self.resample == "up":
            return upsample(features[0])
        if isinstance(self.skip_connection, Pointwise):
            return self.skip_connection(features, genes)
        return concatenate(features, genes)


class MLP(nn.Module):
    """Linear to four times the width, tanh-GELU, Linear back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, 4 * channels)
        self.fc2 = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (..., C)
        return self.fc2(self.fc1(x, gelu=True))  # (..., C)


class GeneMorphAttention(nn.Module):
    """Attention of the image on the genes within the four quadrants of a patch, over all its slices.

    Queries come from the image, values from the gene embedding, and keys from the gene embedding ("gene", as released)
    or the image ("image", as in eq. 2 of the paper). One head; queries and keys are RMS-normalised and the logits are
    divided by the width itself (the released code applies width^-1/2 twice).
    """

    def __init__(self, channels: int, keys: str) -> None:
        super().__init__()
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.q_norm = RMSNorm(channels)
        self.k_norm = RMSNorm(channels)
        self.proj = Linear(channels, channels)
        self.keys = keys

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:  # (N, H, W, Z, C), (N, H/2, W/2, Z, C)
        q = self.q_norm(self.q(x))  # (N, H, W, Z, C)
        v = self.v(embed)  # (N, H/2, W/2, Z, C)
        if self.keys == "gene":
            # Four equal keys with four equal values weigh as one: half the resolution gives the same softmax.
            k = self.k_norm(self.k(embed))  # (N, H/2, W/2, Z, C)
        else:
            k, v = self.k_norm(self.k(x)), upsample(v)  # (N, H, W, Z, C)
        out = F.scaled_dot_product_attention(to_quadrants(q), to_quadrants(k), to_quadrants(v), scale=1 / x.shape[-1])
        return self.proj(from_quadrants(out, x.shape))  # (N, H, W, Z, C)


def to_quadrants(x: Tensor) -> Tensor:
    """(N, H, W, Z, C) -> (N, 4, H/2 * W/2 * Z, C): the tokens of each quadrant."""
    n, h, w, z, c = x.shape
    return x.reshape(n, 2, h // 2, 2, w // 2, z, c).transpose(2, 3).reshape(n, 4, -1, c)


def from_quadrants(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``to_quadrants``."""
    n, h, w, z, c = shape
    return tokens.reshape(n, 2, 2, h // 2, w // 2, z, c).transpose(2, 3).reshape(n, h, w, z, c)


class GeneMorphBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the genes (AdaLN)."""

    def __init__(self, channels: int, gene_channels: int, keys: str) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.attn = GeneMorphAttention(channels, keys)
        self.norm2 = RMSNorm(channels)
        self.mlp = MLP(channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(gene_channels, 7 * channels))

    def forward(self, x: Tensor, genes: Tensor) -> Tensor:  # (N, H, W, Z, C), (N, H/2, W/2, Z, Cg)
        modulation = self.adaLN_modulation(genes)  # (N, H/2, W/2, Z, 7C)
        shift1, scale1, gate1, embed, shift2, scale2, gate2 = modulation.chunk(7, dim=-1)
        h = self.attn(adaptive_norm(x, self.norm1.weight, scale1, shift1), embed)  # (N, H, W, Z, C)
        x = add_gated(x, h, gate1)
        h = self.mlp(adaptive_norm(x, self.norm2.weight, scale2, shift2))  # (N, H, W, Z, C)
        return add_gated(x, h, gate2)  # (N, H, W, Z, C)


def add_gated(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    """``x + h * gate`` for x and h (N, H, W, Z, C) with the gate (N, H/2, W/2, Z, C) at half resolution."""
    return torch.addcmul(pairs(x), pairs(h), spread(gate)).reshape(x.shape)


class GeneGeneAttention(nn.Module):
    """Attention between genes; a gene's token is its counts in the N bins of the patch. Keys are the queries."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.q = Linear(features, features)
        self.v = Linear(features, features)
        self.q_norm = RMSNorm(features)
        self.proj = Linear(features, features)

    def forward(self, counts: Tensor) -> Tensor:  # (N, G, F)
        q = self.q_norm(self.q(counts))  # (N, G, F)
        out = F.scaled_dot_product_attention(q, q, self.v(counts), scale=1 / counts.shape[-1])
        return self.proj(out)  # (N, G, F)

    def weights(self, counts: Tensor) -> Tensor:
        """The attention matrix: (N, G, F) -> (N, G, G), each row a distribution over genes."""
        q = self.q_norm(self.q(counts)).float()  # (N, G, F)
        return torch.softmax(q @ q.transpose(1, 2) / counts.shape[-1], dim=-1)  # (N, G, G)


class GeneGeneBlock(nn.Module):
    """Gene-gene attention and MLP without residuals, then the convolution that turns Zg gene slices into Z."""

    def __init__(self, genes: int, gene_slices: int, patch_bins: int, z_kernel: int) -> None:
        super().__init__()
        features = gene_slices * patch_bins**2
        self.attn = GeneGeneAttention(features)
        self.norm2 = RMSNorm(features)
        self.mlp = MLP(features)
        self.down_z = nn.Conv3d(genes, genes, (z_kernel, 3, 3), padding=(0, 1, 1))
        self.shape = (genes, gene_slices, patch_bins, patch_bins)

    def forward(self, counts: Tensor) -> Tensor:  # (N, G, Zg, p, p)
        tokens = self.mlp(self.norm2(self.attn(counts.flatten(2))))  # (N, G, Zg*p*p)
        return self.down_z(tokens.unflatten(2, self.shape[1:]))  # (N, G, Z, p, p)
