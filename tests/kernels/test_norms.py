"""The references of the norms: inference equals training, and the written-out gradient equals torch's."""

import pytest
import torch
import torch.nn.functional as F

from teramind.kernels.adaln import adaptive_norm_reference
from teramind.kernels.gather import gather_norm_silu_reference
from teramind.kernels.layout import average_pool, upsample
from teramind.kernels.modulation import modulated_silu_reference
from teramind.kernels.norms import normalise


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("per_patch", [True, False])
@pytest.mark.parametrize("with_shift", [True, False])
def test_gradient(patches, per_patch, with_shift):
    torch.manual_seed(0)
    shape = (patches, 1, 1, 1, 7) if per_patch else (7,)
    inputs = [torch.randn(patches, 5, 4, 2, 7), torch.randn(shape)] + [torch.randn(shape)] * with_shift
    weights = torch.randn(patches, 5, 4, 2, 7)
    ours, theirs = ([value.clone().requires_grad_() for value in inputs] for _ in range(2))
    (normalise(*ours) * weights).sum().backward()
    x, gain, *shift = theirs
    (weights * (F.rms_norm(x, (7,), None, 1e-6) * gain + sum(shift))).sum().backward()
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_.grad, theirs_.grad, atol=1e-4, rtol=1e-5)  # sums of 120 products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("planes", [True, False])
def test_inference_equals_training(dtype, planes):
    torch.manual_seed(0)
    features = [torch.randn(3, 4, 6, 2, 5, dtype=dtype), torch.randn(3, 4, 6, 2, 7, dtype=dtype)]
    genes = torch.randn(3, 2, 3, 2, 3, dtype=dtype)
    weight = torch.randn(1, 15, 1, 1, dtype=dtype)
    scale, shift = torch.randn(2, 3, 5, dtype=dtype)
    gene_scale, gene_shift = torch.randn(2, 3, 2, 3, 2, 5, dtype=dtype)
    results = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            results.append(
                [
                    *gather_norm_silu_reference(features, genes, weight, concatenate=True, planes=planes),
                    modulated_silu_reference(features[0], weight[:, :5], scale, shift, planes=planes),
                    adaptive_norm_reference(features[0], weight.flatten()[:5], gene_scale, gene_shift),
                ]
            )
    for trained, inferred in zip(*results, strict=True):
        assert trained.dtype == inferred.dtype == dtype
        # bfloat16: training rounds between the steps, inference once
        tolerance = {"atol": 0.06, "rtol": 0.03} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(inferred, trained, **tolerance)


def test_upsampling_and_its_gradient():
    x = torch.randn(2, 3, 5, 2, 4, requires_grad=True)
    weights = torch.randn(2, 6, 10, 2, 4)
    (upsample(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, 4 * average_pool(weights))
    assert torch.equal(upsample(x)[:, 1::2, ::2], x)
