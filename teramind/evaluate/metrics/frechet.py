"""Frechet distance between the features of two sets of images (Heusel et al. 2017, https://arxiv.org/abs/1706.08500)."""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from teramind.errors import InputError

Features = npt.NDArray[np.float64]


class Encoder(Protocol):
    """Turns images into features.

    Attributes:
        name: of the distance that it makes, for tables.
        side: of the square images that it takes, px.
    """

    name: str
    side: int

    def __call__(self, images: npt.NDArray[np.uint8]) -> Features:
        """Features (n, F) of images (n, S, side, side)."""


class Moments:
    """Number, sum and sum of outer products of features, in float64: sums of parts are the sum of the whole."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.total = np.zeros(features)
        self.products = np.zeros((features, features))

    def update(self, features: Features) -> None:
        """Take features (n, F)."""
        features = np.asarray(features, dtype=np.float64)
        self.count += len(features)
        self.total += features.sum(axis=0)
        self.products += features.T @ features

    def merge(self, other: Moments) -> None:
        """Take what another one took, for instance in another process."""
        if other.total.shape != self.total.shape:
            raise InputError(f"{len(other.total)} features cannot be joined with {len(self.total)}; use one encoder")
        self.count += other.count
        self.total += other.total
        self.products += other.products

    @property
    def mean(self) -> Features:
        """(F,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Features:
        """(F, F), unbiased."""
        return (self.products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays to store or send; see `from_state`."""
        return {"count": np.array(self.count), "total": self.total, "products": self.products}

    @classmethod
    def from_state(cls, state: dict[str, npt.NDArray[Any]]) -> Self:
        """What `state` returned, made whole again."""
        moments = cls(len(state["total"]))
        moments.count = int(state["count"])
        moments.total, moments.products = state["total"].copy(), state["products"].copy()
        return moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

    The trace of the root is the sum of the root eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which is symmetric: no complex
    roots, and no noise added to covariances of less than full rank.

    Returns:
        The distance, or NaN if a set has fewer than two images.
    """
    if min(first.count, second.count) < 2:
        return float("nan")
    difference = first.mean - second.mean
    covariance_1, covariance_2 = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ covariance_2 @ root).clip(0)).sum()
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * overlap
    return float(max(distance, 0.0))


class FrechetDistance:
    """Frechet distance of generated images from true ones, taken batch by batch.

    Attributes:
        truth: moments of the true images' features; may be shared between several distances.
        generated: moments of the generated images' features.
    """

    def __init__(self, encoder: Encoder, truth: Moments | None = None) -> None:
        self.encoder = encoder
        self.truth = truth
        self.generated: Moments | None = None

    def update(self, images: npt.NDArray[np.uint8], *, truth: bool = False) -> None:
        """Take images (n, S, side, side) of one of the two sets."""
        if not len(images):
            return
        features = self.encoder(images)
        if truth:
            self.truth = self.truth or Moments(features.shape[1])
            self.truth.update(features)
        else:
            self.generated = self.generated or Moments(features.shape[1])
            self.generated.update(features)

    def merge(self, other: FrechetDistance) -> None:
        """Take what another distance with the same encoder took."""
        for kind in ("truth", "generated"):
            mine, theirs = getattr(self, kind), getattr(other, kind)
            if mine is None:
                setattr(self, kind, theirs)
            elif theirs is not None:
                mine.merge(theirs)

    def compute(self) -> float:
        """The distance; NaN if a set has fewer than two images."""
        if self.truth is None or self.generated is None:
            return float("nan")
        return frechet_distance(self.truth, self.generated)
