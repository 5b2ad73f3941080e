"""What turns images into the features of a Frechet distance."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from teramind.errors import InputError
from teramind.evaluate.metrics.frechet import Features

Images = npt.NDArray[np.uint8]


class TextureEncoder:
    """A fixed bank of filters, for where no weights can be had; its distances compare with each other alone.

    A stain's features are the mean and standard deviation of its grey levels and, on each of four octaves, the mean
    size of the gradient and of the bright and of the dark blobs (Laplacian of Gaussian): brightness, and how much edge,
    spot and gap there is at 1, 2, 4 and 8 px. For two stains or more there is also the correlation of each with the
    first, an octave. All but the correlations, which are scaled alike, are in grey levels.
    """

    name = "texture Fréchet distance"
    side = 128
    octaves = 4

    def __init__(self) -> None:
        self._filters = _filter_bank()

    def __call__(self, images: Images) -> Features:
        """Features of images (n, S, h, w), uint8."""
        level = torch.from_numpy(np.ascontiguousarray(images)).float()
        features = [level.mean(dim=(2, 3)), level.std(dim=(2, 3))]
        for octave in range(self.octaves):
            if octave:
                level = F.avg_pool2d(level, 2)
            features += self._filtered(level)
            features.append(_correlations(level))
        return torch.cat(features, dim=1).double().numpy()

    def _filtered(self, level: torch.Tensor) -> list[torch.Tensor]:
        n, stains, h, w = level.shape
        dx, dy, blob = F.conv2d(level.reshape(n * stains, 1, h, w), self._filters).unbind(1)
        kinds = (torch.hypot(dx, dy), blob.clamp(min=0), (-blob).clamp(min=0))
        return [kind.mean(dim=(1, 2)).reshape(n, stains) for kind in kinds]


def _filter_bank() -> torch.Tensor:
    """Gradient along x and y and the Laplacian of a Gaussian of 1 px; each answers its own shape with its height."""
    y, x = np.mgrid[-3:4, -3:4].astype(np.float64)
    bell = np.exp(-(x**2 + y**2) / 2)
    blob = (2 - x**2 - y**2) * bell
    blob -= blob.mean()
    filters = np.stack([x * bell, y * bell, blob])
    filters /= np.abs(filters).sum(axis=(1, 2), keepdims=True) / 2
    return torch.from_numpy(filters[:, None]).float()


def _correlations(level: torch.Tensor) -> torch.Tensor:
    """Correlation of every stain with the first, (n, S - 1), scaled to weigh like a spread of 32 grey levels."""
    centred = level - level.mean(dim=(2, 3), keepdim=True)
    spread = centred.square().mean(dim=(2, 3)).sqrt() + 1
    products = (centred[:, 1:] * centred[:, :1]).mean(dim=(2, 3))
    return 32 * products / (spread[:, 1:] * spread[:, :1])


class InceptionEncoder:
    """FID and spatial FID with the network that published figures are made with.

    Stains become channels as in the reference implementation: one is repeated three times, two are (0, first, second).
    Images are resized to 299 px (bicubic, antialiased), clipped, and scaled to -1..1. The spatial distance (Nash et al.
    2021) takes the first 7 channels of the convolution that opens the layer ``mixed_6``, 7 x 17 x 17 = 2,023 features.

    Args:
        path: the TorchScript file ``inception-2015-12-05.pt`` that NVIDIA publishes with StyleGAN2-ADA.
        spatial: the spatial distance.

    Raises:
        InputError: there is no such file, or it is another network.
    """

    side = 256  # the reference's tile
    batch = 16

    _TRUNK = (
        "conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed", "mixed_1", "mixed_2", "mixed_3",
        "mixed_4", "mixed_5", "mixed_6.conv",
    )  # fmt: skip
    _SPATIAL_CHANNELS = 7

    def __init__(self, path: str | Path, *, spatial: bool = False) -> None:
        self.name = "sFID" if spatial else "FID"
        self.spatial = spatial
        self._layers = _load_layers(Path(path))
        if spatial:
            try:
                self._trunk = [operator.attrgetter(name)(self._layers) for name in self._TRUNK]
            except AttributeError as error:
                raise InputError(f"{path} has no such layers as the spatial distance needs ({error})") from None

    @torch.inference_mode()
    def __call__(self, images: Images) -> Features:
        """Features of images (n, S, h, w), uint8; 1, 2 or 3 stains."""
        batches = (images[start : start + self.batch] for start in range(0, len(images), self.batch))
        return np.concatenate([self._features(as_channels(batch)) for batch in batches])

    def _features(self, channels: torch.Tensor) -> Features:
        resized = F.interpolate(channels, (299, 299), mode="bicubic", antialias=True, align_corners=False)
        x: Any = resized.clamp(0, 255) / 127.5 - 1
        if not self.spatial:
            return np.asarray(self._layers(x).flatten(1).double().numpy())
        for layer in self._trunk:
            x = layer(x)
        return np.asarray(x[:, : self._SPATIAL_CHANNELS].flatten(1).double().numpy())


def as_channels(images: Images) -> torch.Tensor:
    """Stains (n, S, h, w) as the three channels that Inception takes, float32, 0..255."""
    stains = torch.from_numpy(np.ascontiguousarray(images)).float()
    count = stains.shape[1]
    if count == 1:
        return stains.repeat(1, 3, 1, 1)
    if count == 2:
        return torch.cat([torch.zeros_like(stains[:, :1]), stains], dim=1)
    if count == 3:
        return stains
    raise InputError(f"Inception sees 3 channels and the images have {count} stains; compare at most 3")


def _load_layers(path: Path) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise InputError(
            f"there is no file {path}: FID needs NVIDIA's TorchScript file inception-2015-12-05.pt, which teramind "
            "does not download"
        )
    try:
        layers = torch.jit.load(path, map_location="cpu").eval().layers
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not the TorchScript file inception-2015-12-05.pt ({reason})") from None
    if not isinstance(layers, torch.jit.ScriptModule):
        raise InputError(f"{path} is not the TorchScript file inception-2015-12-05.pt: its layers are no network")
    return layers
