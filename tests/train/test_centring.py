"""Means in centre taps: the same inside a patch, and on its border as inside."""

import torch

from teramind import ModelConfig, TeraMind
from teramind.model.layers import Conv
from teramind.train.centring import centre_taps

CONFIG = ModelConfig(
    patch_size=32, genes=3, gene_slices=1, base_channels=6, channel_mult=(1, 1, 1, 1), res_blocks=1, embed_channels=16,
    stains=2, dropout=0.0,
)  # fmt: skip


def test_a_mean_is_the_same_on_the_border_as_inside():
    """Of a convolution whose input is one vector everywhere but for its length: exact, but for rounding."""
    torch.manual_seed(0)
    net = TeraMind(CONFIG)
    last = net.out[2]
    assert isinstance(last, Conv)
    common = torch.randn(6)
    lengths = torch.tensor([0.5, 1.0, 2.0])
    features = (lengths[:, None] * common)[:, None, None, None].expand(3, 8, 8, 1, 6).contiguous()

    def others(net):
        """The other layers need an input, too."""
        x = torch.randn(1, 2, 1, 64, 64)
        net(x, torch.tensor([500]), torch.zeros(1, 3, 1, 4, 4))

    def predict(net):
        others(net)
        for _ in range(1000):  # of what the last layer is given, this has the say
            last(features)

    before = last(features)
    centre_taps(net, predict)
    after = last(features)
    interior = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[interior], before[interior], rtol=1e-3, atol=1e-3)  # the direction is estimated
    torch.testing.assert_close(after, after[:, 4:5, 4:5].expand_as(after), rtol=1e-2, atol=1e-2)
    assert (before - before[:, 4:5, 4:5]).abs().max() > 0.1


def test_the_encoder_stays():
    torch.manual_seed(0)
    net = TeraMind(CONFIG)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(1, 2, 1, 64, 64)
    centre_taps(net, lambda net: net(x, torch.tensor([500]), torch.zeros(1, 3, 1, 4, 4)))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("output_blocks.", "out.")) for name in changed)
    assert all(before[name].shape[-1] == 3 for name in changed)
    sums = {name: net.state_dict()[name].sum((-2, -1)) for name in changed}
    for name, total in sums.items():  # a constant image of any features is seen alike inside a patch
        torch.testing.assert_close(total, before[name].sum((-2, -1)), rtol=1e-4, atol=1e-5)  # float32 sums
