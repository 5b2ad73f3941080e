"""The loss: its weightings, and that it is the reference's where it should be."""

import numpy as np
import pytest
import torch

from teramind import InputError, ModelConfig, TeraMind, training_loss
from teramind.diffusion.loss import denoising_errors
from teramind.diffusion.schedule import alphas_cumprod
from teramind.train.objective import LOSSES, Objective, loss_weights
from teramind.train.optimizer import COSINE_FLOOR, rate


def test_the_weightings():
    abar = alphas_cumprod()
    snr = abar / (1 - abar)
    assert (loss_weights("plain") == 1).all()
    # Of the image's error, e (1 - abar) / abar, min-SNR weighs min(snr, gamma); of the velocity's, e / abar, one.
    image_error = (1 - abar) / abar
    np.testing.assert_allclose(loss_weights("min-snr", gamma=3.0) / image_error, np.minimum(snr, 3), rtol=1e-9)
    assert loss_weights("min-snr", gamma=3.0)[snr <= 3].max() == 1
    velocity = loss_weights("velocity", cap=50.0)
    np.testing.assert_allclose(velocity[abar > 0.02] * abar[abar > 0.02], 1)
    assert velocity.max() == 50
    with pytest.raises(InputError, match="no loss 'huber'; there are plain"):
        loss_weights("huber")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    config = ModelConfig(
        patch_size=32, genes=3, gene_slices=4, base_channels=6, channel_mult=(1, 1, 1, 1), res_blocks=1,
        embed_channels=16, dropout=0.0,
    )  # fmt: skip
    net = TeraMind(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # second convolutions start at zero
    return net


@pytest.fixture
def batch():
    """Two windows of padded crops: (3, 0) of one 4 x 4 patches large."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 2, 2, 128, 128), generator=generator, dtype=torch.uint8)
    genes = torch.randint(0, 4, (2, 3, 4, 8, 8), generator=generator)
    noise = torch.randn(2, 2, 2, 160, 160, generator=generator)
    return image, genes, torch.tensor([40, 900]), noise


def window(image, genes, t, noise, row=3, column=0):
    """What a crop's reader gives for this window."""
    pixels, bins = (slice(row * 32, row * 32 + 64), slice(column * 32, column * 32 + 64)), None
    padded = torch.nn.functional.pad(image, (16,) * 4)[..., pixels[0], pixels[1]]
    inside = torch.nn.functional.pad(torch.ones(2, 1, 1, 128, 128), (16,) * 4)[..., pixels[0], pixels[1]]
    bins = (slice(row * 2, row * 2 + 4), slice(column * 2, column * 2 + 4))
    counts = torch.nn.functional.pad(genes, (1,) * 4)[..., bins[0], bins[1]]
    return padded, inside.bool(), counts, t, noise[..., pixels[0], pixels[1]]


def test_the_plain_objective_is_the_training_loss(net, batch):
    image, genes, t, noise = batch
    expected = training_loss(net, image.float() / 127.5 - 1, genes.float(), t, noise, (3, 0))
    loss, errors = Objective(net, loss_weights("plain"), "both")(*window(*batch))
    assert errors.shape == (2, 2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_each_crop_is_weighted_by_its_timestep(net, batch, name):
    weights = loss_weights(name)
    loss, errors = Objective(net, weights, "both")(*window(*batch))
    expected = sum(weights[time] * errors[:, crop].sum().item() for crop, time in enumerate([40, 900])) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_boundary_path_alone_is_the_first_of_both(net, batch):
    weights = loss_weights("plain")
    _, both = Objective(net, weights, "both")(*window(*batch))
    loss, alone = Objective(net, weights, "boundary")(*window(*batch))
    assert torch.allclose(alone[0], both[0], rtol=1e-5)
    assert loss.item() == pytest.approx(both[0].mean().item(), rel=1e-5)


def test_the_learning_rate():
    assert [rate("constant", step, 0.5, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert rate("cosine", 10, 0.5, 0) == pytest.approx((1 + COSINE_FLOOR) / 2)
    assert rate("cosine", 10, 1.2, 0) == pytest.approx(COSINE_FLOOR)


def test_with_the_images_deviation_every_timestep_counts_the_same():
    """For a network that knows but the deviation d: its error is abar d^2 / (abar d^2 + 1 - abar)."""
    abar, deviation = alphas_cumprod(), 0.2
    uncapped = abar > 1 / 300
    errors = abar * deviation**2 / (abar * deviation**2 + 1 - abar)
    assert np.allclose((loss_weights("velocity", deviation=deviation) * errors)[uncapped], 1)
    assert np.array_equal(loss_weights("velocity"), np.minimum(1 / abar, 300))


def test_the_border_of_patches_may_count_more(net, batch):
    """By hand: the outermost pixels of each 32 px patch five times, and the mean weight one."""
    image, inside, genes, t, noise = window(*batch, row=1, column=1)
    arguments = image / 127.5 - 1, inside.float(), genes.float(), t, noise
    assert torch.equal(denoising_errors(net, *arguments), denoising_errors(net, *arguments, border=1.0))
    weighted = denoising_errors(net, *arguments, paths="boundary", border=5.0)
    abar = torch.from_numpy(alphas_cumprod()).float()[t].reshape(-1, 1, 1, 1, 1)
    noisy = abar.sqrt() * arguments[0] + (1 - abar).sqrt() * noise
    squares = (net(noisy, t, arguments[2]) - noise[..., 16:-16, 16:-16]) ** 2
    ring = torch.zeros(32, 32, dtype=torch.bool)
    ring[[0, -1]] = ring[:, [0, -1]] = True
    weights = torch.where(ring, 5.0, 1.0)
    expected = (squares * weights / weights.mean()).flatten(1).mean(1)
    assert weighted.shape == (1, 2)
    torch.testing.assert_close(weighted[0], expected, rtol=1e-5, atol=0)  # sums in another order
