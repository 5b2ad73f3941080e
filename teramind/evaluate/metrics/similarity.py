"""How like two images are: PSNR, SSIM and MS-SSIM.

SSIM (Wang et al. 2004) and MS-SSIM (Wang et al. 2003) follow the definition of the package pytorch-msssim, which the
reference implementation carries: a Gaussian window of 11 px and sigma 1.5, only windows that lie inside the image, data
range 255, K = (0.01, 0.03), biased variances. Other packages pad the image and find values that differ by 0.01.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from teramind.errors import InputError

DATA_RANGE = 255.0
WINDOW = 11
REACH = WINDOW // 2
"""How far beyond a pixel its SSIM looks, px."""
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST_MS_SIDE = (WINDOW - 1) * 2 ** (len(MS_WEIGHTS) - 1) + 1
"""The least side of an image with an MS-SSIM, px."""

_SIGMA = 1.5
_STRIP = 128  # rows
_C1, _C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2

Pixels = npt.NDArray[Any]
Box = tuple[slice, slice]
"""Rows and columns."""


def psnr(truth: Pixels, image: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal images.

    Args:
        truth: any shape, values 0..255.
        image: the same shape.
    """
    _check_shapes(truth, image)
    difference = truth.astype(np.float64) - image
    return psnr_of(float(np.mean(difference * difference)))


def psnr_of(mean_square: float) -> float:
    """PSNR in dB of a mean squared error in grey levels."""
    if mean_square == 0:
        return float("inf")
    return float(10 * np.log10(DATA_RANGE**2 / mean_square))


def ssim(truth: Pixels, image: Pixels) -> float:
    """Mean structural similarity, over all planes.

    Args:
        truth: (..., h, w), values 0..255, at least 11 px a side.
        image: the same shape.
    """
    similarity, _ = ssim_maps(truth, image)
    return float(similarity.mean())


def ssim_maps(truth: Pixels, image: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM at every pixel that is 5 px or more inside, and its factor of contrast and structure.

    Args:
        truth: (..., h, w), values 0..255.
        image: the same shape.

    Returns:
        Two float64 tensors (..., h - 10, w - 10).
    """
    _check_shapes(truth, image)
    if min(truth.shape[-2:]) < WINDOW:
        raise InputError(f"an image of {truth.shape[-2:]} px has no SSIM, whose window is {WINDOW} px wide")
    return _maps(_as_tensor(truth), _as_tensor(image))


def ms_ssim(truth: Pixels, image: Pixels) -> float:
    """Mean multi-scale structural similarity over all planes; five scales.

    Args:
        truth: (..., h, w), values 0..255, at least 161 px a side.
        image: the same shape.
    """
    _check_shapes(truth, image)
    if min(truth.shape[-2:]) < SMALLEST_MS_SIDE:
        raise InputError(f"an image of {truth.shape[-2:]} px has no MS-SSIM, which needs {SMALLEST_MS_SIDE} px a side")
    first, second = (_as_tensor(pixels).reshape(-1, 1, *truth.shape[-2:]) for pixels in (truth, image))
    product = torch.ones(len(first), dtype=torch.float64)
    for level, weight in enumerate(MS_WEIGHTS):
        similarity, structure = _maps(first, second)
        is_last = level == len(MS_WEIGHTS) - 1
        factor = (similarity if is_last else structure).mean(dim=(1, 2, 3))
        product *= factor.relu() ** weight
        if not is_last:
            odd = [side % 2 for side in first.shape[-2:]]
            first, second = (F.avg_pool2d(pixels, 2, padding=odd) for pixels in (first, second))
    return float(product.mean())


class SimilaritySums:
    """The same figures of an image that comes window by window.

    PSNR and SSIM equal those of the whole planes; MS-SSIM, whose coarse scales know no windows, is the mean over them.

    Args:
        slices: how many.
        stains: how many.
    """

    def __init__(self, slices: int, stains: int) -> None:
        self._sums = {kind: np.zeros((slices, stains)) for kind in ("squares", "ssim", "ms_ssim")}
        self._counts = {kind: np.zeros((slices, 1)) for kind in self._sums}

    def update(self, index: int, truth: Pixels, image: Pixels, core: Box, near: Box) -> None:
        """Take a window of a slice.

        Args:
            index: number of the slice.
            truth: (stains, h, w).
            image: the same shape.
            core: rows and columns that this window stands for.
            near: these and 5 px more on every side where the image goes on.
        """
        in_core = (slice(None), *core)
        difference = truth[in_core].astype(np.float64) - image[in_core]
        self._add("squares", index, np.square(difference).sum(axis=(1, 2)), difference[0].size)
        around = (slice(None), *near)
        if min(truth[around].shape[1:]) >= WINDOW:
            similarity, _ = ssim_maps(truth[around], image[around])
            self._add("ssim", index, similarity.sum(dim=(1, 2)).numpy(), similarity[0].numel())
        if min(difference.shape[1:]) >= SMALLEST_MS_SIDE:
            values = [ms_ssim(*planes) for planes in zip(truth[in_core], image[in_core], strict=True)]
            self._add("ms_ssim", index, difference[0].size * np.array(values), difference[0].size)

    def _add(self, kind: str, index: int, sums: npt.NDArray[np.float64], count: int) -> None:
        self._sums[kind][index] += sums
        self._counts[kind][index] += count

    def psnr(self, stain: int | None = None, index: int | None = None) -> float:
        """In dB, from the mean squared error of a stain or all, in a slice or all."""
        return psnr_of(self._mean("squares", stain, index))

    def ssim(self, stain: int | None = None, index: int | None = None) -> float:
        """Mean over the pixels of a stain or all, in a slice or all."""
        return self._mean("ssim", stain, index)

    def ms_ssim(self, stain: int | None = None, index: int | None = None) -> float:
        """Mean over the windows; NaN if they are smaller than 161 px."""
        return self._mean("ms_ssim", stain, index)

    def _mean(self, kind: str, stain: int | None, index: int | None) -> float:
        rows = slice(None) if index is None else slice(index, index + 1)
        columns = slice(None) if stain is None else slice(stain, stain + 1)
        sums, counts = self._sums[kind][rows, columns], self._counts[kind][rows]
        return float(sums.sum() / (counts.sum() * sums.shape[1])) if counts.any() else float("nan")


def _maps(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and its second factor, in strips that stay in the cache: twice as fast as whole planes."""
    rows = first.shape[-2] - WINDOW + 1
    strips = [
        _strip_maps(*(pixels.narrow(-2, row, min(_STRIP, rows - row) + WINDOW - 1) for pixels in (first, second)))
        for row in range(0, rows, _STRIP)
    ]
    similarity, structure = zip(*strips, strict=True)
    return torch.cat(similarity, dim=-2), torch.cat(structure, dim=-2)


def _strip_maps(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean_1, mean_2 = _blurred(first), _blurred(second)
    variance_1 = _blurred(first * first) - mean_1 * mean_1
    variance_2 = _blurred(second * second) - mean_2 * mean_2
    covariance = _blurred(first * second) - mean_1 * mean_2
    structure = (2 * covariance + _C2) / (variance_1 + variance_2 + _C2)
    return (2 * mean_1 * mean_2 + _C1) / (mean_1**2 + mean_2**2 + _C1) * structure, structure


def _blurred(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian mean at every pixel whose window lies inside."""
    places = torch.arange(WINDOW, dtype=torch.float64) - REACH
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (-1, -2):
        length = pixels.shape[axis] - WINDOW + 1
        blurred = weights[0] * pixels.narrow(axis, 0, length)
        for tap in range(1, WINDOW):
            blurred.add_(pixels.narrow(axis, tap, length), alpha=float(weights[tap]))
        pixels = blurred
    return pixels


def _as_tensor(pixels: Pixels) -> torch.Tensor:
    """In float64: the variance of bright flat tissue is lost in a float32 difference of squares."""
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float64))


def _check_shapes(truth: Pixels, image: Pixels) -> None:
    if truth.shape != image.shape:
        raise InputError(f"images of shapes {truth.shape} and {image.shape} cannot be compared; give equal shapes")
