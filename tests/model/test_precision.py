"""Half precision against float32 at the published size, with gene counts up to 100."""

import copy

import pytest
import torch

# Measured on a CPU with the fixture's random weights (fitted weights may differ), over t = 0, 603, 938: bfloat16 1.2e-2
# RMS and 5.6e-2 at most, float16 1.2e-3 and 6.1e-3, in units of the standard deviation. The bounds are twice that.
BOUNDS = [
    pytest.param(torch.bfloat16, 0.024, 0.11, id="bfloat16"),
    pytest.param(torch.float16, 0.0025, 0.012, id="float16", marks=pytest.mark.slow),  # emulated on most CPUs
]


@pytest.fixture(scope="module")
def published(parity):
    """The network, an image and counts of which 44 % are above zero, up to 100."""
    fixture = parity("full")
    uniform = torch.rand(fixture["genes"].shape, generator=torch.Generator().manual_seed(0))
    return fixture.network(), fixture["x"], (101 * uniform**8).floor()


@pytest.mark.parametrize(("dtype", "rms", "largest"), BOUNDS)
@torch.no_grad()
def test_error_of_half_precision(published, dtype, rms, largest):
    net, x, counts = published
    assert counts.max() == 100
    t = torch.tensor([603])
    expected = net(x, t, counts)
    error = (copy.deepcopy(net).to(dtype)(x, t, counts).float() - expected) / expected.std()
    assert error.square().mean().sqrt() < rms
    assert error.abs().max() < largest
