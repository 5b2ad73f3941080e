"""The network on a GPU: on its kernels and on their references, against arrays computed with the authors' code."""

import copy

import pytest
import torch

from teramind.diffusion.loss import training_loss
from teramind.diffusion.sampling import sample
from teramind.engine.denoise import full_float32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

ONE_PASS, AFTER_DDIM = 2e-5, 2e-4  # as on a CPU
CUDA = torch.device("cuda")
SMALL = ["tiny", "dapi_z1", "patch32_z4", "pyramid"]


@pytest.fixture(params=["kernels", "references"], autouse=True)
def _implementation(request, monkeypatch):
    if request.param == "references":
        monkeypatch.setenv("TERAMIND_KERNELS", "reference")


@pytest.fixture
def on_gpu(parity):
    def build(name):
        fixture = parity(name)
        return fixture, copy.deepcopy(fixture.network()).to(CUDA)

    return build


@pytest.mark.parametrize("name", [*SMALL, "full"])
@pytest.mark.parametrize("patch_batch", [None, 1])
@torch.no_grad()
def test_boundary_path(on_gpu, deviation, name, patch_batch):
    fixture, net = on_gpu(name)
    if patch_batch:
        net.limit_patch_batch(patch_batch)
    for t in (0, 603, 938):
        with full_float32(CUDA):
            eps = net(fixture["x"].to(CUDA), torch.tensor([t], device=CUDA), fixture["genes"].to(CUDA))
        assert deviation(eps.cpu(), fixture[f"eps_boundary_t{t}"]) < ONE_PASS


@pytest.mark.parametrize("name", ["tiny", "dapi_z1", "patch32_z4"])
def test_ddim(on_gpu, deviation, name):
    fixture, net = on_gpu(name)
    with full_float32(CUDA):
        final = sample(net, fixture["ddim_genes"], noise=fixture["ddim_noise"], steps=15, tile=64)
    assert deviation(final.cpu(), fixture["ddim_final"]) < AFTER_DDIM


def test_gene_attention(on_gpu, deviation):
    fixture, net = on_gpu("tiny")
    with full_float32(CUDA), torch.no_grad():
        assert deviation(net.gene_attention(fixture["genes"].to(CUDA)).cpu(), fixture["gene_attention"]) < ONE_PASS


def test_training(on_gpu):
    fixture, net = on_gpu("tiny")
    names = ("train_image", "train_genes", "train_t", "train_noise")
    image, genes, t, noise = (fixture[name].to(CUDA) for name in names)
    with full_float32(CUDA):
        loss = training_loss(net, image, genes.float(), t, noise)
        loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in net.parameters()]).norm()
    assert loss.item() == pytest.approx(fixture["train_loss"].item(), rel=1e-5)
    assert norm.item() == pytest.approx(fixture["train_grad_norm"].item(), rel=1e-4)


# Twice what was measured on a CPU at the published size.
@pytest.mark.parametrize(("dtype", "rms"), [(torch.bfloat16, 0.024), (torch.float16, 0.0025)])
@torch.no_grad()
def test_half_precision(on_gpu, dtype, rms):
    fixture, net = on_gpu("full")
    eps = net.to(dtype)(fixture["x"].to(CUDA), torch.tensor([603], device=CUDA), fixture["genes"].to(CUDA))
    expected = fixture["eps_boundary_t603"]
    assert (eps.float().cpu() - expected).square().mean().sqrt() < rms * expected.std()
