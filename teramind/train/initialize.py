"""How a network starts: as the reference's does, or so that a small one learns in minutes.

The "fast" start makes the untrained network predict its own input, ``eps = x``. That is right at high noise, and with
the "velocity" loss the error of every timestep is then the tissue image itself: all of the gradient says what is
missing from the image, and what the genes know of it. From torch's usual start, a network first spends thousands of
steps on copying the noise.
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from teramind.diffusion.schedule import TRAINING_STEPS, alphas_cumprod
from teramind.errors import InputError
from teramind.model.blocks import MLP, GeneGeneAttention
from teramind.model.layers import parts
from teramind.model.network import TeraMind

STARTS = ("fresh", "fast")
# Root mean square of what the last norm sees, from a constant channel: large beside the others, so that the norm
# divides by nearly the same everywhere. A larger one makes the prediction more exact, which counts at high noise, and
# the last layer more linear, which counts at low noise: in trials of 200 steps on one sample, 8 was worse there than 24
# by half and 128 better by little, and the other way round here. QUIET makes the other channels smaller; zero would
# leave them without a gradient for good.
LEVEL, QUIET = 24.0, 0.1
# The time embedding starts from frequencies (per timestep) that turn a few times in 1000 steps, with weights that let
# its units bend: sqrt(abar) is then a sum of them with small weights, which the next steps do not upset.
FASTEST_TURN, BENDING = 0.02, 4.0
RIDGE = 1e-2  # of the fit; what it costs is below 0.01
# Of a gene's logit with itself, the square root. Long enough that a gene's own counts stand out among those of all
# others, short enough that little is lost of what uniform attention says of an image (bench/gene_probe.py).
KEY_LENGTH = 1.5


def start_fast(net: TeraMind) -> None:
    """Fill a new network with the "fast" start.

    Raises:
        InputError: where the network is too narrow for it.
    """
    predict_input(net)
    fade_with_noise(net)
    listen_to_genes(net)


@torch.no_grad()
def predict_input(net: TeraMind) -> None:
    """Let the network predict its input within 0.2 %, whatever the timestep and the genes.

    The first convolution copies every stain with both signs. The last block's skip connection hands them on, and adds a
    channel that is constant and large, from its bias, so that the RMSNorm behind it divides by nearly the same
    everywhere. ``SiLU(u) - SiLU(-u) = u`` undoes the activation. What the last block's residual path learns is added to
    the copies, and so to the prediction, one to one.

    Raises:
        InputError: where there are fewer than 2 S + 1 channels.
    """
    channels, stains = net.config.base_channels, net.config.stains
    if channels < 2 * stains + 1:
        raise InputError(
            f"the fast start needs base_channels of at least 2 x {stains} stains + 1 = {2 * stains + 1}; "
            f"the network has {channels}"
        )
    [first], [last, *_] = parts(net.input_blocks[0]), parts(net.output_blocks[-1])
    skip, (_, _, out) = last.skip_connection, parts(net.out)
    copies = 2 * stains
    skip.weight.mul_(QUIET)
    for weight in (first.weight[:copies], first.bias[:copies], skip.weight[: copies + 1], skip.bias[: copies + 1]):
        weight.zero_()
    out.weight.zero_()
    out.bias.zero_()
    skip.bias[copies] = LEVEL * math.sqrt(len(skip.bias))
    decoded = skip.weight.shape[1] - channels - net.config.gene_channels(0)  # before the encoder's first channels
    for stain in range(stains):
        for channel, sign in ((2 * stain, 1.0), (2 * stain + 1, -1.0)):
            first.weight[channel, stain, 0, 1, 1] = sign
            skip.weight[channel, decoded + channel] = 1.0
            out.weight[stain, channel, 0, 1, 1] = sign * LEVEL


@torch.no_grad()
def fade_with_noise(net: TeraMind) -> None:
    """Let the last block's residual path be scaled by sqrt(abar_t), the share of the image in its input.

    ``x - eps`` is near ``sqrt(abar) image``: with this factor the path has to learn the image, the same at every t. The
    weights of the block's time modulation are fitted by least squares to all timesteps, after the embedding was made
    smooth in t: from fast frequencies, as torch starts, they would have to be large.
    """
    first, _, _ = parts(net.time_embed.time_embed)
    half = net.time_embed.channels // 2
    slow = (10000.0 ** -(torch.arange(half) / half) <= FASTEST_TURN).float().repeat(2)  # cosines, then sines
    first.weight.uniform_(-BENDING, BENDING).mul_(slow / slow.sum().clamp(min=1).sqrt())
    first.bias.uniform_(-BENDING, BENDING)

    [block, *_] = parts(net.output_blocks[-1])
    _, linear = parts(block.emb_layers)
    features = F.silu(net.time_embed(torch.arange(TRAINING_STEPS))).double()  # (1000, E)
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    wanted = torch.from_numpy(alphas_cumprod()).sqrt() - 1
    penalty = RIDGE * torch.eye(features.shape[1], dtype=features.dtype)
    penalty[-1, -1] = 0  # the bias may be anything
    fitted = torch.linalg.solve(features.T @ features + penalty, features.T @ wanted).float()
    scales = linear.out_features // 2  # then come the shifts
    linear.weight.zero_()
    linear.bias.zero_()
    linear.weight[:scales] = fitted[:-1]
    linear.bias[:scales] = fitted[-1]


@torch.no_grad()
def listen_to_genes(net: TeraMind) -> None:
    """Let the genes be heard from the first step; as torch starts, a sparse panel is not, for thousands of steps.

    The gene-gene block has no residuals: what its layers do to a gene's counts at the start is all that the rest of the
    network sees of them. As torch starts, the attention is nearly uniform, so a count of one gene among G is divided by
    G, and every layer mixes the bins. Here a gene attends to itself, and its counts pass bin by bin.
    """
    [level0] = parts(net.rna_blocks[0])
    attend_to_itself(level0.attn)
    pass_through(level0.mlp)
    for name, weight in net.named_parameters():  # a convolution shrinks by sqrt(3) what passes, SiLU halves it
        if name.endswith("weight") and (".down_z." in name or re.match(r"rna_blocks\.[123]\.", name)):
            weight.mul_(math.sqrt(6))
        elif name.endswith("adaLN_modulation.1.weight"):
            weight.mul_(math.sqrt(3))


def attend_to_itself(attention: GeneGeneAttention) -> None:
    """Let a gene's value be its counts, and go mostly to the genes whose counts lie where they do.

    The keys are short: a gene that was not read attends to all alike and shows where anything was read at all, which
    tells most of where cells are; one that was read shows its own counts among that.
    """
    attention.q_norm.weight.fill_(KEY_LENGTH)
    for layer in (attention.q, attention.v, attention.proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)


def pass_through(mlp: MLP) -> None:
    """Let an MLP be the identity: ``GELU(u) - GELU(-u) = u``. The other half of its units waits with no effect."""
    features = mlp.fc1.weight.shape[1]
    nn.init.zeros_(mlp.fc1.bias)
    nn.init.zeros_(mlp.fc2.bias)
    nn.init.zeros_(mlp.fc2.weight)
    for start, sign in ((0, 1.0), (features, -1.0)):
        mlp.fc1.weight[start : start + features] = sign * torch.eye(features)
        mlp.fc2.weight[:, start : start + features] = sign * torch.eye(features)
