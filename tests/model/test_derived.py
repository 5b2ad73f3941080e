"""Weights derived for inference follow the parameters they come from."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch

from teramind import InputError, ModelConfig, TeraMind
from teramind.kernels.layout import upsample
from teramind.model import prepared
from teramind.model.derived import GivenUpWeight
from teramind.model.layers import Conv, Linear, Pointwise, UpConv
from teramind.model.policy import POLICIES

SMALL = ModelConfig(genes=5, patch_size=32, base_channels=16, channel_mult=(1, 1, 1, 2), embed_channels=8)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Conv(3, 16, 3, 3).eval()


@pytest.fixture
def x():
    return torch.randn(2, 7, 9, 2, 3, generator=torch.Generator().manual_seed(1))


def plain(layer, x):
    """What conv3d computes."""
    if isinstance(layer, UpConv):
        x = upsample(x)
    padding = (layer.weight.shape[2] // 2, 1, 1)
    out = torch.nn.functional.conv3d(x.permute(0, 4, 3, 1, 2), layer.weight, layer.bias, padding=padding)
    return out.permute(0, 3, 4, 2, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}),
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight * 2)),
        lambda layer: layer.to(torch.bfloat16).to(torch.float32),
        lambda layer: torch.optim.SGD([layer.weight], lr=1).step(),
    ],
)
def test_a_change_of_the_weights_is_seen(layer, x, change):
    with torch.no_grad():
        before = layer(x)
        layer.weight.grad = torch.ones_like(layer.weight)
        change(layer)
        after = layer(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, plain(layer, x))


@torch.no_grad()
def test_they_are_made_once_and_dropped_in_training(layer, x, monkeypatch):
    made = []
    prepare = prepared.prepare
    monkeypatch.setattr(prepared, "prepare", lambda *arguments: made.append(1) or prepare(*arguments))
    layer(x)
    count = len(made)
    layer(x[:1])
    assert len(made) == count == 3
    layer.train().eval()(x)
    assert len(made) == 2 * count


@torch.no_grad()
def test_they_are_neither_saved_nor_copied():
    net = TeraMind(SMALL).eval()
    names = list(net.state_dict())
    x = torch.randn(1, 2, 2, 64, 64)
    inputs = x, torch.tensor([3]), torch.ones(1, 5, 4, 4, 4)
    expected = net(*inputs)
    assert list(net.state_dict()) == names
    assert torch.equal(copy.deepcopy(net)(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(*inputs), expected)


def test_weights_made_in_inference_mode(x):
    with torch.inference_mode():
        layer = Conv(3, 16, 3, 3)
        before = layer(x)
        layer.weight.mul_(2)
        assert not torch.equal(layer(x), before)


@pytest.fixture
def net_and_inputs():
    torch.manual_seed(0)
    net = TeraMind(SMALL).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net, (torch.randn(1, 2, 2, 64, 96), torch.tensor([3]), torch.ones(1, 5, 4, 4, 6))


@torch.no_grad()
@pytest.mark.parametrize("policy", ["cpu", "cuda"])
def test_weights_that_are_given_up(net_and_inputs, policy, monkeypatch):
    net, inputs = net_and_inputs
    monkeypatch.setitem(POLICIES, "cpu", POLICIES[policy])
    expected, held = net(*inputs), weights_in_memory(net)
    net.give_up_weights()
    with ThreadPoolExecutor(3) as pool:  # several workers share a network
        found = list(pool.map(lambda _: torch.no_grad()(net)(*inputs), range(3)))
    assert all(torch.equal(one, expected) for one in found)
    assert weights_in_memory(net) < 0.3 * held


@pytest.mark.parametrize(
    "use",
    [
        lambda net, _: net.state_dict(),
        lambda net, _: net.load_upstream_state_dict({}),
        lambda net, _: net.to(torch.bfloat16),
        lambda net, _: copy.deepcopy(net),
        lambda net, inputs: net(*inputs),
        lambda net, inputs: torch.no_grad()(net.train())(*inputs),
    ],
)
def test_what_needs_the_weights_that_are_gone_says_so(net_and_inputs, use):
    net, inputs = net_and_inputs
    net.give_up_weights()
    with torch.no_grad():
        net(*inputs)
    with pytest.raises(InputError, match=r"has given up its weights .* load the checkpoint again"):
        use(net, inputs)


def weights_in_memory(net):
    return sum(weight.numel() for weight in net.parameters() if not isinstance(weight, GivenUpWeight))


@pytest.mark.parametrize("outputs", [5, 16, 19])
@pytest.mark.parametrize("slices", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("kind", "kz"), [(Conv, 1), (Conv, 3), (UpConv, 3)])
@torch.no_grad()
def test_every_form_is_conv3d(kind, kz, slices, outputs):
    torch.manual_seed(slices)
    layer = kind(7, outputs, kz, 3).eval()
    x = torch.randn(3, 6, 10, slices, 7)
    scale = 2 if kind is UpConv else 1
    onto = torch.randn(3, 6 * scale, 10 * scale, slices, outputs)
    torch.testing.assert_close(layer(x), plain(layer, x), atol=2e-5, rtol=0)  # differences of taps round once more
    torch.testing.assert_close(layer(x, onto=onto), onto + plain(layer, x), atol=2e-5, rtol=0)
    filled = torch.nn.functional.pad(x, (0, 1))  # to 8 channels
    torch.testing.assert_close(layer(filled), plain(layer, x), atol=2e-5, rtol=0)
    with torch.backends.mkldnn.flags(enabled=False), mock.patch.dict(POLICIES, cpu=POLICIES["cuda"]):
        for image in (x, filled):
            torch.testing.assert_close(layer(image), plain(layer, x), atol=2e-5, rtol=0)
    with torch.enable_grad():
        trained = layer(x, onto=onto)
        torch.testing.assert_close(trained, onto + plain(layer, x), atol=2e-5, rtol=0)
        gradient = torch.autograd.grad(trained.square().sum(), layer.weight)[0]
        expected = torch.autograd.grad((onto + plain(layer, x)).square().sum(), layer.weight)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
def test_linear_layers_read_parts():
    torch.manual_seed(0)
    layer = Pointwise(3 + 5 + 2, 7).eval()
    features, genes = [torch.randn(3, 4, 6, 2, 3), torch.randn(3, 4, 6, 2, 5)], torch.randn(3, 2, 3, 2, 2)
    joined = torch.cat([*features, upsample(genes)], dim=-1)
    expected = torch.nn.functional.linear(joined, layer.weight.flatten(1), layer.bias)
    torch.testing.assert_close(layer(joined), expected)
    torch.testing.assert_close(layer(torch.nn.functional.pad(joined, (0, 6))), expected)  # filled up to 16 channels
    torch.testing.assert_close(layer.of_parts(features, genes), expected)
    linear = Linear(3, 11)
    expected = torch.nn.functional.gelu(
        torch.nn.functional.linear(features[0], linear.weight, linear.bias), approximate="tanh"
    )
    torch.testing.assert_close(linear(features[0], gelu=True), expected)
