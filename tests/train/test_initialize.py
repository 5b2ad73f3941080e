"""The fast start: what an untrained network predicts, and that it hears the genes."""

import pytest
import torch
import torch.nn.functional as F

from teramind import InputError, ModelConfig, TeraMind
from teramind.diffusion.loss import denoising_errors
from teramind.diffusion.schedule import TRAINING_STEPS, alphas_cumprod
from teramind.train import initialize
from teramind.train.initialize import start_fast

SHAPES = [
    {"base_channels": 6, "embed_channels": 32},
    {"base_channels": 8, "embed_channels": 64, "stains": 1, "gene_slices": 4},
    {"base_channels": 16, "embed_channels": 48, "stains": 3, "res_blocks": 2},
    {"base_channels": 8, "embed_channels": 64, "channel_mult": (1, 2, 1, 1), "patch_size": 64},
]


def network(start=start_fast, **changed):
    torch.manual_seed(0)
    small = {
        "patch_size": 32, "genes": 11, "gene_slices": 1, "stains": 2, "base_channels": 8, "embed_channels": 64,
        "channel_mult": (1, 1, 1, 1), "res_blocks": 1, "dropout": 0.0,
    }  # fmt: skip
    net = TeraMind(ModelConfig(**small | changed))
    if start:
        start(net)
    return net


def inputs(config, times):
    side = 2 * config.patch_size
    x = torch.randn(len(times), config.stains, config.slices, side, side)
    genes = torch.poisson(torch.full((len(times), config.genes, config.gene_slices, side // 16, side // 16), 0.2))
    return x, torch.tensor(times), genes


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_untrained_network_predicts_its_input(shape):
    """Within 0.3 % in the root mean square, at every t: what the last norm sees of its input makes up to 0.2 %."""
    net = network(**shape)
    x, t, genes = inputs(net.config, [0, 1, 10, 100, 300, 500, 700, 938, 999])
    boundary, unshifted = net(x, t, genes, paths="both")
    margin = net.config.patch_size // 2
    for error in (boundary - x[..., margin:-margin, margin:-margin], unshifted - x):
        assert error.square().mean((1, 2, 3, 4)).sqrt().max() < 3e-3


def test_the_prediction_can_be_made_exact(monkeypatch):
    """That is all that is between them: with a larger constant channel, within 1e-3."""
    monkeypatch.setattr(initialize, "LEVEL", 128.0)
    net = network()
    x, t, genes = inputs(net.config, [0, 100, 999])
    assert (net(x, t, genes) - x[..., 16:-16, 16:-16]).abs().max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_residual_path_fades_with_the_noise(shape):
    """The last block's modulation is within 0.03 of sqrt(abar) at every t (0.01 measured), and shifts nothing."""
    net = network(**shape)
    block = net.output_blocks[-1][0]
    scale, shift = block.modulation(net.time_embed(torch.arange(TRAINING_STEPS))).chunk(2, dim=-1)
    wanted = torch.from_numpy(alphas_cumprod()).sqrt().float()
    assert (1 + scale.flatten(1) - wanted[:, None]).abs().max() < 0.03
    assert not shift.any()


def test_the_velocity_loss_starts_as_the_image():
    """Then the error of every timestep, where its weight is not capped, is the mean square of the image."""
    net = network()
    times = [300, 500, 700]  # near t = 0, sqrt(1 - abar) is far from 1
    x, t, genes = inputs(net.config, times)
    image, noise = 0.3 * torch.randn_like(x), torch.randn_like(x)
    inside = torch.ones_like(x[:, :1, :1])
    abar = torch.from_numpy(alphas_cumprod()).float()[t]
    errors = denoising_errors(net, image, inside, genes, t, noise, "boundary")[0] / abar
    expected = 0.09 + ((1 - (1 - abar).sqrt()) ** 2 / abar)
    assert torch.allclose(errors, expected, rtol=0.1)


def gene_gradient(net):
    """Root mean square of d loss / d genes in units of what the loss is, after a few steps at a fixed batch."""
    x, t, genes = inputs(net.config, [400, 900])
    noise, inside = torch.randn_like(x), torch.ones_like(x[:, :1, :1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    genes.requires_grad_()
    for _ in range(4):
        loss = denoising_errors(net, 0.3 * x, inside, genes, t, noise, "boundary").mean()
        optimizer.zero_grad()
        genes.grad = None
        loss.backward()
        optimizer.step()
    return (genes.grad.square().mean().sqrt() / loss.detach()).item()


def test_the_genes_are_heard():
    """The last block's path starts at zero, so no gene can matter before it moves; after four steps they do."""
    fast, fresh = gene_gradient(network()), gene_gradient(network(start=None))
    assert fast > 1e-4
    assert fast > 10 * fresh


@torch.no_grad()
def test_gene_features_differ_from_bin_to_bin():
    """As torch starts, the gene levels are nearly constant; with the fast start, they follow the counts."""

    def contrast(net):
        _, _, genes = inputs(net.config, [0])
        with_genes, without = net.gene_pyramid(genes)[3], net.gene_pyramid(torch.zeros_like(genes))[3]
        return ((with_genes - without).std() / with_genes.abs().mean()).item()

    assert contrast(network()) > 5 * contrast(network(start=None))


@pytest.mark.parametrize("patch_size", [32, 64])
@torch.no_grad()
def test_counts_pass_the_gene_block_bin_by_bin(patch_size):
    """A gene that was read shows its own counts first, one that was not where any gene was read; no bin is moved."""
    net = network(genes=40, gene_slices=4, patch_size=patch_size)
    block = net.rna_blocks[0][0]
    counts = torch.poisson(torch.logspace(-3, 0, 40)[None, :, None].expand(3, 40, 4 * (patch_size // 16) ** 2))
    tokens = block.mlp(block.norm2(block.attn(counts)))
    mean = counts.mean(1, keepdim=True).expand_as(counts)
    read = counts.any(-1)
    assert 10 < read.sum() < 110
    assert F.cosine_similarity(tokens[~read], mean[~read], dim=-1).min() > 0.95
    own, others = (
        F.cosine_similarity(tokens[read], shown[read], dim=-1).mean() for shown in (counts, counts.roll(1, 1))
    )
    assert own > others + 0.15  # the rest of it is what all genes show together
    moved = block.mlp(block.norm2(block.attn(counts.flip(-1))))
    assert torch.allclose(moved, tokens.flip(-1), atol=1e-4)


def test_too_narrow_a_network_is_refused():
    with pytest.raises(InputError, match=r"at least 2 x 2 stains \+ 1 = 5; the network has 4"):
        network(base_channels=4)


@torch.no_grad()
def test_what_the_residual_path_adds_is_added_to_the_prediction():
    """A constant in the last convolution's bias comes out as it is, from the pair of a stain's channels."""
    net = network()
    x, t, genes = inputs(net.config, [500])
    before = net(x, t, genes)
    bias = net.output_blocks[-1][0].out_layers[3].bias
    bias[2], bias[3] = 0.5, -0.5  # the second stain's
    moved = net(x, t, genes) - before
    assert torch.allclose(moved[:, 1], torch.full_like(moved[:, 1], 0.5), atol=0.01)
    assert moved[:, 0].abs().max() < 0.01
