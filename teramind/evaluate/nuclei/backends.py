"""Segmenters that the user has: Cellpose and InstanSeg, with weights from a local file. Nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from teramind.errors import InputError
from teramind.evaluate.nuclei.segment import Labeller, Labels, Plane, Segmenter, Watershed

MARGIN_UM = 30.0  # a nucleus and its neighbours; both networks look a little further, with little effect


class Cellpose:
    """Cellpose 3 or 4 with weights of the user's.

    Args:
        weights: a model's file, for instance ``cyto3`` or ``cpsam``.
        diameter_um: of a typical nucleus.

    Raises:
        InputError: Cellpose is not installed, or there is no such file.
    """

    name = "cellpose"
    margin_um = MARGIN_UM

    def __init__(self, weights: str | os.PathLike[str], diameter_um: float = 7.0) -> None:
        models = _installed("cellpose.models", "cellpose")
        self.weights, self.diameter_um = _file(weights, self.name), diameter_um
        self.version = importlib.metadata.version("cellpose")
        self._model: Any = models.CellposeModel(pretrained_model=str(self.weights))

    def describe(self) -> dict[str, Any]:
        """See ``Segmenter``."""
        return {
            "name": self.name,
            "version": self.version,
            "weights": self.weights.name,
            "diameter_um": self.diameter_um,
        }

    def calibrate(self, images: Iterable[Plane], pixel_size: float) -> Labeller:
        """See ``Segmenter``; the network scales every block by its own percentiles."""
        del images
        # Cellpose 4 has no channels any more, and Cellpose 3 wants to be told that there is only one.
        options = {"channels": [0, 0]} if int(self.version.split(".")[0]) < 4 else {}

        def label(image: Plane) -> Labels:
            masks = self._model.eval(image, diameter=self.diameter_um / pixel_size, **options)[0]
            return np.asarray(masks, dtype=np.int32)

        return label


class InstanSeg:
    """InstanSeg with a TorchScript model of the user's.

    Args:
        weights: the model, ``instanseg.pt``.

    Raises:
        InputError: InstanSeg is not installed, or there is no such file.
    """

    name = "instanseg"
    margin_um = MARGIN_UM

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        module = _installed("instanseg", "instanseg-torch")
        self.weights = _file(weights, self.name)
        torch = importlib.import_module("torch")
        self.version = importlib.metadata.version("instanseg-torch")
        self._model: Any = module.InstanSeg(torch.jit.load(str(self.weights), map_location="cpu"), verbosity=0)

    def describe(self) -> dict[str, Any]:
        """See ``Segmenter``."""
        return {"name": self.name, "version": self.version, "weights": self.weights.name}

    def calibrate(self, images: Iterable[Plane], pixel_size: float) -> Labeller:
        """See ``Segmenter``; the network scales every block by its own percentiles."""
        del images

        def label(image: Plane) -> Labels:
            found = self._model.eval_small_image(image[None], pixel_size, return_image_tensor=False)
            # (1, outputs, h, w); a model of nuclei and cells puts the nuclei first.
            return np.asarray(found[0, 0].cpu(), dtype=np.int32)

        return label


def segmenter(name: str, weights: str | os.PathLike[str] | None = None) -> Segmenter:
    """The segmenter of a name.

    Args:
        name: "watershed", "cellpose" or "instanseg".
        weights: file of the latter two.

    Raises:
        InputError: there is none of that name, or it cannot be used.
    """
    if name == Watershed.name:
        if weights is not None:
            raise InputError(f"the watershed has no weights, but {weights} was given; choose cellpose or instanseg")
        return Watershed()
    if name not in (Cellpose.name, InstanSeg.name):
        raise InputError(f"there is no segmentation {name!r}; choose watershed, cellpose or instanseg")
    if weights is None:
        raise InputError(f"{name} needs the file of its weights: give --segmentation-weights; teramind downloads none")
    return Cellpose(weights) if name == Cellpose.name else InstanSeg(weights)


def _installed(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise InputError(f"{package} is not installed: pip install {package}, or choose watershed") from None


def _file(path: str | os.PathLike[str], name: str) -> Path:
    if not Path(path).is_file():
        raise InputError(f"there are no weights {path} for {name}: give the model's file")
    return Path(path)
