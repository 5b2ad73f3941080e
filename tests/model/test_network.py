"""Properties of the network beyond parity with the reference."""

import pytest
import torch

from teramind import InputError, ModelConfig, TeraMind
from teramind.model.blocks import ResidualBlock

SMALL = {"genes": 5, "base_channels": 8, "channel_mult": (1, 2, 2, 2), "embed_channels": 16}


def make(seed=0, **options):
    torch.manual_seed(seed)
    net = TeraMind(ModelConfig(**(SMALL | options))).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # no weight at its zero start, so that every path counts
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return net


def inputs(config, rows=3, columns=2, batch=2):
    size = config.patch_size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.stains, config.slices, rows * size, columns * size, generator=generator)
    bins = (rows * config.patch_bins, columns * config.patch_bins)
    genes = torch.poisson(torch.full((batch, config.genes, config.gene_slices, *bins), 0.7), generator=generator)
    return x, torch.tensor([7, 900])[:batch], genes


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 32, "gene_slices": 1, "stains": 1},
        {"patch_size": 32, "gene_slices": 4},
        {"patch_size": 32, "gene_slices": 8, "stains": 3},
        {"patch_size": 32, "gene_slices": 16},
        {"patch_size": 64, "gene_slices": 4, "res_blocks": 1},
        {"patch_size": 64, "gene_slices": 4, "attention_keys": "image"},
        {"patch_size": 128, "gene_slices": 1},
    ],
)
def test_shapes_and_row_streaming(options, monkeypatch):
    """Row by row, in small batches, the same values come out as from the whole region at once.

    Inference and training order their sums differently: float32 differs by up to 2.3e-5 at 8 slices.
    """
    net = make(**options)
    x, t, genes = inputs(net.config)
    whole, patch = net(x, t, genes, paths="both")
    config = net.config
    size = config.patch_size
    assert whole.shape == (2, config.stains, config.slices, 2 * size, size)
    assert patch.shape == x.shape
    with torch.no_grad():
        for batch in (1, 3, 1000):
            monkeypatch.setattr(net, "_patch_batch", batch)
            torch.testing.assert_close(net(x, t, genes), whole.detach(), rtol=0, atol=5e-5 * whole.std().item())


def test_image_keys_differ_from_gene_keys():
    gene, image = make(patch_size=32), make(patch_size=32, attention_keys="image")
    image.load_state_dict(gene.state_dict())
    with torch.no_grad():
        x, t, genes = inputs(gene.config)
        assert (gene(x, t, genes) - image(x, t, genes)).abs().max() > 1e-5


@torch.no_grad()
def test_a_decoder_patch_depends_on_half_a_patch_around_it():
    net = make(patch_size=32)
    x, t, genes = inputs(net.config, rows=4, columns=4, batch=1)
    before = net(x, t[:1], genes)
    changed = x.clone()
    changed[..., :32, :] += 1  # the first encoder row: px 0..32 of the padded region, -16..16 of the inner one
    after = net(changed, t[:1], genes)
    assert not torch.equal(after[..., :32, :], before[..., :32, :])
    assert torch.equal(after[..., 32:, :], before[..., 32:, :])


def test_a_new_block_is_its_skip_connection():
    torch.manual_seed(0)
    net = TeraMind(ModelConfig(**SMALL, patch_size=32))
    assert all(not block.out_layers[3].weight.any() for block in net.modules() if isinstance(block, ResidualBlock))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, g: (x[:, :1], t, g), "the image has shape"),
        (lambda x, t, g: (x[..., :-1, :], t, g), "95 x 64 px"),
        (lambda x, t, g: (x[..., :32, :], t, g[..., :2, :]), "at least 64"),
        (lambda x, t, g: (x, t, g[:, :4]), "the genes have shape"),
        (lambda x, t, g: (x, t[:1], g), "one timestep a region"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    net = make(patch_size=32)
    with pytest.raises(InputError, match=message):
        net(*change(*inputs(net.config)))


def test_gene_attention_needs_four_slices():
    net = make(patch_size=32, gene_slices=8)
    with pytest.raises(InputError, match="gene_slices=4; this one has 8"):
        net.gene_attention(inputs(net.config)[2])


def test_training_under_autocast():
    net = make(patch_size=32).train()
    image, t, genes = inputs(net.config)
    with torch.autocast("cpu", torch.bfloat16):
        boundary, patch = net(image, t, genes, paths="both")
        loss = boundary.float().square().mean() + patch.float().square().mean()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        halved = net(image, t, genes)
    with torch.no_grad():
        full = net(image, t, genes)
    assert (halved - full).square().mean().sqrt() < 0.05 * full.std()
