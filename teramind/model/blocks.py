"""The blocks of the network: residual, gene-morph attention, gene-gene, time.

Gene features are constant on 2x2 px at every level (each level ends in a nearest upsampling), so they are kept, and
everything computed from them alone is computed, at half resolution: ``(N, H/2, W/2, Z, C)``.
Attribute names follow the reference implementation's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teramind import kernels
from teramind.kernels.layout import average_pool, pairs, spread, upsample
from teramind.model.layers import Conv, Linear, Pointwise, RMSNorm, UpConv, parts


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
        """Scale and shift of the second norm: (B, E) -> (B, 2O)."""
        return self.emb_layers(time)

    def forward(self, features: list[Tensor], genes: Tensor | None, modulation: Tensor) -> Tensor:
        """``features`` (N, H, W, Z, ci) each, ``genes`` (N, H/2, W/2, Z, cg), ``modulation`` (N, 2O).

        Features but the first may lie on the encoder's grid, see ``kernels.gather_norm_silu``. Gives (N, H', W', Z, O).
        """
        norm, _, conv = parts(self.in_layers)
        h, joined = kernels.gather_norm_silu(
            features,
            genes,
            norm.weight,
            multiple=conv.channel_multiple(features[0]),
            concatenate=self._reads_concatenation(features, genes),
            planes=conv.reads_planes(features[0]),
        )  # (N, H, W, Z, I)
        h = conv(average_pool(h) if self.resample == "down" else h)  # (N, H', W', Z, O)
        scale, shift = modulation.chunk(2, dim=-1)  # (N, O)
        norm, _, dropout, conv = parts(self.out_layers)
        h = kernels.modulated_silu(h, norm.weight, scale, shift, planes=conv.reads_planes(h))  # (N, H', W', Z, O)
        return conv(dropout(h), onto=self._skip(features, genes, joined))  # (N, H', W', Z, O)

    def _reads_concatenation(self, features: list[Tensor], genes: Tensor | None) -> bool:
        """Whether the skip connection reads its inputs as one tensor that is none of them."""
        if len(features) == 1 and genes is None:
            return False
        return not (isinstance(self.skip_connection, Pointwise) and self.skip_connection.reads_parts(features))

    def _skip(self, features: list[Tensor], genes: Tensor | None, joined: Tensor | None) -> Tensor:
        if self.resample == "down":
            return average_pool(features[0])
        if self.resample == "up":
            return upsample(features[0])
        if isinstance(self.skip_connection, Pointwise) and joined is None:
            return self.skip_connection.of_parts(features, genes)
        return self.skip_connection(features[0] if joined is None else joined)


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
        # Four equal keys with four equal values weigh as one: genes at half the resolution give the same softmax.
        k = self.k(embed if self.keys == "gene" else x)
        out = kernels.gene_morph_attention(self.q(x), k, self.v(embed), self.q_norm.weight, self.k_norm.weight)
        return self.proj(out)  # (N, H, W, Z, C)


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
        h = self.attn(kernels.adaptive_norm(x, self.norm1.weight, scale1, shift1), embed)  # (N, H, W, Z, C)
        x = add_gated(x, h, gate1)
        h = self.mlp(kernels.adaptive_norm(x, self.norm2.weight, scale2, shift2))  # (N, H, W, Z, C)
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
        return self.proj(kernels.gene_gene_attention(self.q(counts), self.v(counts), self.q_norm.weight))  # (N, G, F)

    def weights(self, counts: Tensor) -> Tensor:
        """The attention matrix: (N, G, F) -> (N, G, G), each row a distribution over genes."""
        rows = torch.arange(counts.shape[1], device=counts.device)
        return kernels.gene_attention_rows(self.q(counts), self.q_norm.weight, rows)  # (N, G, G)


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
