"""Fit a small network briefly to one small atlas, so that the whole way from folder to picture can be shown.

    python bench/fit_sample.py ATLAS.zarr OUT.safetensors --minutes 20

The network learns the very tissue it will be asked for: what comes out shows that the machinery works, not that
anything was learned about other tissue. Timesteps are drawn in proportion to min((1-abar)/abar, 20) instead of
uniformly, which is the same as weighting the loss so: the error of the predicted image counts and not that of the
noise, and a short fit spends its time where the genes matter, at high noise.
"""

import argparse
import copy
import math
import re
import time
from pathlib import Path

import numpy as np
import torch

from teramind import Atlas, ModelConfig, TeraMind, load_checkpoint, save_checkpoint, training_loss
from teramind.diffusion.schedule import TRAINING_STEPS, alphas_cumprod
from teramind.model.config import BIN_SIZE

AVERAGING = 0.995  # of the weights that are saved, over the last few hundred steps


def main() -> None:
    arguments = parse()
    torch.manual_seed(arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    atlas = Atlas.open(arguments.atlas)
    config = ModelConfig(
        patch_size=arguments.patch_size,
        genes=len(atlas.genes),
        gene_slices=arguments.gene_slices,
        stains=len(atlas.stains),
        base_channels=arguments.base_channels,
        channel_mult=tuple(arguments.channel_mult),
        res_blocks=1,
        embed_channels=64,
        dropout=0.0,
    )
    net = TeraMind(config).train()
    if arguments.start:
        net.load_state_dict(load_checkpoint(arguments.start)[0].state_dict())
    else:
        start_as_identity(net)
        listen_to_genes(net)
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = torch.optim.Adam(net.parameters(), lr=arguments.lr, betas=(0.9, 0.99))
    odds = np.minimum(1 / alphas_cumprod() - 1, 20)
    odds /= odds.sum()
    print(f"{sum(p.numel() for p in net.parameters()):,} weights, atlas {atlas.shape}, {len(atlas.genes)} genes")
    start, step, losses = time.perf_counter(), 0, []
    while (elapsed := time.perf_counter() - start) < arguments.minutes * 60:
        progress = elapsed / (arguments.minutes * 60)
        for group in optimizer.param_groups:  # a linear start, then a cosine to zero
            group["lr"] = arguments.lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
        image, genes = crops(atlas, config, arguments.batch, generator)
        t = torch.from_numpy(generator.choice(TRAINING_STEPS, size=arguments.batch, p=odds))
        side = image.shape[-1] + config.patch_size
        noise = torch.randn(*image.shape[:3], side, side)
        window = tuple(int(part) for part in generator.integers(0, image.shape[-1] // config.patch_size, 2))
        loss = training_loss(net, image, genes, t, noise, window)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(AVERAGING, step / (step + 10))
        for average, parameter in zip(weights, net.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"{elapsed / 60:6.1f} min  step {step:6d}  loss {np.mean(losses[-100:]):.4f}", flush=True)
        if step % 500 == 0:
            save(arguments, atlas, net, weights, step)
    save(arguments, atlas, net, weights, step)


@torch.no_grad()
def start_as_identity(net: TeraMind, constant: float = 8.0) -> None:
    """Let the untrained network predict its input: nearly right at high noise, so that what is left to learn is tissue.

    The first convolution copies every stain with both signs and adds a channel that is constant and large, so that the
    last RMSNorm divides by nearly the same everywhere; ``SiLU(u) - SiLU(-u) = u`` undoes the activation; and the last
    block's skip connection hands the first convolution's output on.
    """
    channels, stains = net.config.base_channels, net.config.stains
    first, last, out = net.input_blocks[0][0], net.output_blocks[-1][0].skip_connection, net.out[2]
    for weight in (first.weight[: 2 * stains + 1], first.bias[: 2 * stains + 1], last.weight, last.bias, out.weight):
        weight.zero_()
    for stain in range(stains):
        for channel, sign in ((2 * stain, 1.0), (2 * stain + 1, -1.0)):
            first.weight[channel, stain, 0, 1, 1] = sign
            out.weight[stain, channel, 0, 1, 1] = sign * constant / math.sqrt(channels)
    first.bias[2 * stains] = constant
    last.weight[:, channels : 2 * channels, 0, 0, 0] = torch.eye(channels)


@torch.no_grad()
def listen_to_genes(net: TeraMind) -> None:
    """Let the genes be heard from the first step; as torch starts, a sparse panel is not, for thousands of steps.

    The gene-gene attention has no residual and begins nearly uniform, so a count of one gene among G is divided by G,
    and the norm that follows sees the biases alone. Keys three times as long make a gene attend to itself, and without
    biases a gene that was not read says nothing. What passes a convolution shrinks by sqrt(3) and is halved by SiLU.
    """
    attention = net.rna_blocks[0][0].attn
    attention.q_norm.weight.fill_(3.0)
    for layer in (attention.q, attention.v, attention.proj):
        layer.bias.zero_()
    for name, weight in net.named_parameters():
        if name.endswith("weight") and (".down_z." in name or re.match(r"rna_blocks\.[123]\.", name)):
            weight.mul_(math.sqrt(6))
        elif name.endswith("adaLN_modulation.1.weight"):
            weight.mul_(math.sqrt(3))


def save(arguments: argparse.Namespace, atlas: Atlas, net: TeraMind, weights: list[torch.Tensor], step: int) -> None:
    """Write the averaged weights."""
    averaged = copy.deepcopy(net)
    with torch.no_grad():
        for average, parameter in zip(weights, averaged.parameters(), strict=True):
            parameter.copy_(average)
    save_checkpoint(
        arguments.output,
        averaged.half() if arguments.half else averaged,
        genes=atlas.genes,
        stains=atlas.stains,
        pixel_size=atlas.pixel_size,
        scaling=atlas.scaling,
        fitted={"steps": step, "batch": arguments.batch, "minutes": arguments.minutes, "seed": arguments.seed},
    )


def crops(
    atlas: Atlas, config: ModelConfig, batch: int, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops of 4P x 4P px on the bin grid, in random windows, with random quarter turns and flips."""
    side, depth = 4 * config.patch_size, config.slices
    slices, height, width = atlas.shape
    images, counts = [], []
    for _ in range(batch):
        z = int(generator.integers(0, -(-slices // depth))) * depth
        y, x = (
            int(generator.integers(0, max(1, (size - side) // BIN_SIZE + 1))) * BIN_SIZE for size in (height, width)
        )
        image = atlas.image_window(z, z + depth, y, y + side, x, x + side).astype(np.float32) / 127.5 - 1
        reach = config.z_kernel // 2
        start = z - reach
        genes = atlas.gene_window(start, start + config.gene_slices, y, y + side, x, x + side).astype(np.float32)
        turns, flip = int(generator.integers(0, 4)), int(generator.integers(0, 2))
        for values, kept in ((image, images), (genes, counts)):
            turned = np.rot90(values, turns, axes=(2, 3))
            kept.append(np.flip(turned, axis=3) if flip else turned)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(counts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patch-size", type=int, default=64)
    parser.add_argument("--gene-slices", type=int, default=4)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--channel-mult", type=int, nargs=4, default=(1, 2, 4, 4))
    parser.add_argument("--start", type=Path, help="go on from these weights")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
