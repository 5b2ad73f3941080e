"""The baseline of the benchmarks is the network too."""

import pytest
import torch
from plain_baseline import PlainNetwork

# Two independent float32 implementations differ by 1.2e-5 of the standard deviation at the published size.
ONE_PASS = 2e-5


@pytest.mark.parametrize("name", ["tiny", "dapi_z1", "patch32_z4", "pyramid", "full"])
@torch.no_grad()
def test_parity(parity, deviation, name):
    fixture = parity(name)
    net = PlainNetwork(fixture.config, fixture.state_dict())
    boundary, patch = net.predict(fixture["x"], torch.tensor([603]), fixture["genes"])
    assert deviation(boundary, fixture["eps_boundary_t603"]) < ONE_PASS
    assert deviation(patch, fixture["eps_patch_t603"]) < ONE_PASS


@torch.no_grad()
def test_a_step_goes_tile_by_tile(parity):
    fixture = parity("pyramid")
    net = PlainNetwork(fixture.config, fixture.state_dict())
    x = torch.randn(1, 2, 2, 256 + 32, 512 + 32, generator=torch.Generator().manual_seed(0))
    genes = torch.ones(1, 12, 4, 18, 34)
    t = torch.tensor([603])
    out = net.step(x, t, genes)
    assert out.shape == (1, 2, 2, 256, 512)
    assert torch.equal(out[..., 256:], net.predict(x[..., 256:], t, genes[..., 16:])[0])
