import numpy as np
import pytest
import torch

from teramind.errors import InputError
from teramind.evaluate.metrics import ms_ssim, psnr, ssim
from teramind.evaluate.metrics.similarity import REACH, SimilaritySums


def pair(shape, seed=0):
    """Smooth pixels and a noisy copy."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 1, -(-shape[-2] // 8), -(-shape[-1] // 8))))
    smooth = torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bilinear")[0, 0].numpy()
    truth = np.broadcast_to(smooth, shape) + rng.normal(0, 5, shape)
    noisy = truth + rng.normal(0, 20, shape)
    return tuple(image.clip(0, 255).astype(np.uint8) for image in (truth, noisy))


def test_psnr_is_that_of_its_definition():
    truth = np.full((2, 5, 7), 100, np.uint8)
    assert psnr(truth, truth + 1) == pytest.approx(20 * np.log10(255))
    assert psnr(truth, truth) == float("inf")


@pytest.mark.parametrize("shape", [(97, 61), (2, 3, 40, 33), (11, 11)])
def test_ssim_equals_the_packages(shape):
    truth, image = pair(shape)
    theirs = pytest.importorskip("pytorch_msssim")
    planes = [torch.from_numpy(pixels).double().reshape(-1, 1, *shape[-2:]) for pixels in (truth, image)]
    # Its Gaussian window is float32: weights off by up to 6e-8 each, a few 1e-6 in the ratio of variances.
    assert ssim(truth, image) == pytest.approx(theirs.ssim(*planes, data_range=255).item(), abs=5e-6)
    assert 0 < ssim(truth, image) < 1


def test_ssim_equals_scikit_image_with_the_same_options():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    truth, image = pair((97, 61))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    # Its mean leaves out the 5 px at the borders that its padding reaches.
    theirs = structural_similarity(truth.astype(float), image.astype(float), **options)
    assert ssim(truth, image) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("shape", [(161, 161), (2, 163, 250), (200, 177)])
def test_ms_ssim_equals_the_package(shape):
    theirs = pytest.importorskip("pytorch_msssim")
    truth, image = pair(shape)
    planes = [torch.from_numpy(pixels).double().reshape(-1, 1, *shape[-2:]) for pixels in (truth, image)]
    assert ms_ssim(truth, image) == pytest.approx(theirs.ms_ssim(*planes, data_range=255).item(), abs=5e-6)
    assert ms_ssim(truth, truth) == pytest.approx(1)


@pytest.mark.parametrize("side", [37, 64, 131])
def test_windows_together_are_the_whole(side):
    truth, image = pair((2, 131, 150))
    sums = SimilaritySums(slices=3, stains=2)
    for y in range(0, 131, side):
        for x in range(0, 150, side):
            core = slice(y, min(y + side, 131)), slice(x, min(x + side, 150))
            near = tuple(slice(max(part.start - REACH, 0), part.stop + REACH) for part in core)
            sums.update(1, truth, image, core, near)
    assert sums.psnr() == pytest.approx(psnr(truth, image))
    assert sums.psnr(stain=1) == pytest.approx(psnr(truth[1], image[1]))
    assert sums.ssim(index=1) == pytest.approx(ssim(truth, image))
    assert sums.ssim(stain=0) == pytest.approx(ssim(truth[0], image[0]))
    assert np.isnan(sums.ssim(index=0))
    assert np.isnan(sums.ms_ssim())


def test_what_cannot_be_compared_is_said():
    small, large = np.zeros((10, 40), np.uint8), np.zeros((40, 40), np.uint8)
    with pytest.raises(InputError, match=r"\(10, 40\) and \(40, 40\)"):
        psnr(small, large)
    with pytest.raises(InputError, match="no SSIM"):
        ssim(small, small)
    with pytest.raises(InputError, match="needs 161 px"):
        ms_ssim(large, large)
