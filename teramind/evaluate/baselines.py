"""What can be had from the genes without a network: the yardsticks that a generated image has to beat.

Each baseline is fitted to pairs of genes and pixels and predicts the pixels of a window from its genes. `BaselineImage`
makes it an image like any other, so that it goes through the same measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.linalg

from teramind.atlas.layout import BIN_SIZE
from teramind.atlas.store import Atlas
from teramind.engine.frame import snapped_outward
from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.sources import PIXEL_SIZE_TOLERANCE, AtlasImage, Pixels

Counts = npt.NDArray[Any]

NAMES = ("mean", "ridge", "nearest")
TRAINING_SIDE = 256  # px at most of the windows that training pairs are cut from
_REACH = 1  # bins that a baseline sees around those it predicts
_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Pair:
    """A window to learn from.

    Attributes:
        genes: (G, h + 2, w + 2) counts a bin: one bin more on each side than there are pixels.
        pixels: (S, 16 h, 16 w).
    """

    genes: Counts
    pixels: Pixels


class Baseline(Protocol):
    """Predicts pixels from genes.

    Attributes:
        name: for tables.
        grid: px that the corners of a window must be multiples of.
    """

    name: str
    grid: int

    def fit(self, pairs: Sequence[Pair]) -> None:
        """Learn from windows of tissue."""

    def predict(self, genes: Counts) -> Pixels:
        """Pixels (S, 16 h, 16 w) of a window with genes (G, h + 2, w + 2)."""


class MeanBaseline:
    """The mean grey level of each stain, everywhere."""

    name = "mean image"
    grid = BIN_SIZE

    def fit(self, pairs: Sequence[Pair]) -> None:
        """See ``Baseline``."""
        self._means = np.mean([pair.pixels.mean(axis=(1, 2)) for pair in pairs], axis=0)

    def predict(self, genes: Counts) -> Pixels:
        """See ``Baseline``."""
        h, w = _pixel_shape(genes)
        return np.tile(_as_grey(self._means)[:, None, None], (1, h, w))


class RidgeBaseline:
    """Linear regression from a bin's genes and those of its eight neighbours to its 16 x 16 pixels.

    Counts enter as square roots, whose noise is alike for rare and frequent genes. The penalty is the one, of five,
    that predicts a fifth of the windows best when fitted to the others.
    """

    name = "ridge regression"
    grid = BIN_SIZE
    penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Relative to the mean square of a feature."""

    def fit(self, pairs: Sequence[Pair]) -> None:
        """See ``Baseline``."""
        if len(pairs) < 2:
            raise InputError(f"ridge regression needs two windows to learn from, not {len(pairs)}")
        held_out = max(1, round(_VALIDATION_SHARE * len(pairs)))
        check, train = _normal_equations(pairs[:held_out]), _normal_equations(pairs[held_out:])
        losses = [check.loss(train.solve(penalty)) for penalty in self.penalties]
        self.penalty = self.penalties[int(np.argmin(losses))]
        self._weights = train.joined(check).solve(self.penalty)

    def predict(self, genes: Counts) -> Pixels:
        """See ``Baseline``."""
        h, w = genes.shape[1] - 2 * _REACH, genes.shape[2] - 2 * _REACH
        values = _features(genes) @ self._weights
        stains = values.shape[1] // BIN_SIZE**2
        squares = values.reshape(h, w, stains, BIN_SIZE, BIN_SIZE).transpose(2, 0, 3, 1, 4)
        return _as_grey(squares.reshape(stains, h * BIN_SIZE, w * BIN_SIZE))


class NearestBaseline:
    """The pixels of the training patch whose expression is most alike.

    A patch's expression is the square root of its transcripts of each gene, and of each gene in each quarter, so that
    it says a little about where in the patch they lie.

    Args:
        patch: side of the patches, px, a multiple of 32.
        limit: patches to choose from at most, chosen at random.
    """

    name = "nearest patch"

    def __init__(self, patch: int = 64, limit: int = 20_000) -> None:
        if patch < 2 * BIN_SIZE or patch % (2 * BIN_SIZE):
            raise InputError(f"patches of {patch} px have no quarters of whole bins; give a multiple of {2 * BIN_SIZE}")
        self.grid, self.limit = patch, limit

    def fit(self, pairs: Sequence[Pair]) -> None:
        """See ``Baseline``."""
        patches = [self._patches(pair.pixels) for pair in pairs]
        self._pixels = np.concatenate([part.reshape(-1, *part.shape[2:]) for part in patches])
        self._expression = np.concatenate([self._describe(pair.genes) for pair in pairs])
        if len(self._pixels) > self.limit:
            chosen = np.random.default_rng(0).choice(len(self._pixels), self.limit, replace=False)
            self._pixels, self._expression = self._pixels[chosen], self._expression[chosen]
        self._squares = np.square(self._expression).sum(axis=1)

    def predict(self, genes: Counts) -> Pixels:
        """See ``Baseline``."""
        expression = self._describe(genes)
        nearest = np.argmin(self._squares - 2 * expression @ self._expression.T, axis=1)
        h, w = _pixel_shape(genes)
        patches = self._pixels[nearest]
        rows = patches.reshape(h // self.grid, w // self.grid, *patches.shape[1:])
        return np.ascontiguousarray(rows.transpose(2, 0, 3, 1, 4).reshape(patches.shape[1], h, w))

    def _patches(self, pixels: Pixels) -> Pixels:
        """(rows, columns, S, P, P)."""
        stains, h, w = pixels.shape
        cut = pixels.reshape(stains, h // self.grid, self.grid, w // self.grid, self.grid)
        return cut.transpose(1, 3, 0, 2, 4)

    def _describe(self, genes: Counts) -> npt.NDArray[np.float32]:
        """(patches, 5 G), row-major."""
        inner = genes[:, _REACH:-_REACH, _REACH:-_REACH].astype(np.float32)
        count, h, w = inner.shape
        half = self.grid // BIN_SIZE // 2
        quarters = inner.reshape(count, h // half, half, w // half, half).sum(axis=(2, 4))
        quarters = quarters.reshape(count, h // half // 2, 2, w // half // 2, 2).transpose(1, 3, 2, 4, 0)
        quarters = quarters.reshape(-1, 4, count)
        parts = np.concatenate([quarters.sum(axis=1, keepdims=True), quarters / 2], axis=1)
        described: npt.NDArray[np.float32] = np.sqrt(parts).reshape(len(quarters), -1)
        return described


@dataclass(frozen=True)
class NormalEquations:
    """Sums over samples from which a linear regression follows, and its squared error on these samples."""

    features: npt.NDArray[np.float64]  # (F, F): X^T X
    cross: npt.NDArray[np.float64]  # (F, T): X^T Y
    targets: float  # sum of Y^2

    def joined(self, other: NormalEquations) -> NormalEquations:
        """Those of both sets of samples."""
        return NormalEquations(self.features + other.features, self.cross + other.cross, self.targets + other.targets)

    def solve(self, penalty: float) -> npt.NDArray[np.float64]:
        """Weights (F, T); the last feature, the constant, is not penalised."""
        count = self.features[-1, -1]
        ridge = np.full(len(self.features), penalty * max(np.diag(self.features)[:-1].mean(), 1e-9 * count))
        ridge[-1] = 1e-9 * count
        return np.asarray(scipy.linalg.solve(self.features + np.diag(ridge), self.cross, assume_a="pos"))

    def loss(self, weights: npt.NDArray[np.float64]) -> float:
        """Sum of squared errors of a prediction."""
        return float(self.targets + np.sum(weights * (self.features @ weights - 2 * self.cross)))


class BaselineImage:
    """A fitted baseline applied to an atlas: an image.

    Args:
        parts: baselines, each with the columns of the atlas (first, end) that it predicts.
        atlas: whose genes are read.
        genes: indices of the genes that the baselines were fitted with, in their order.
    """

    def __init__(
        self, parts: Sequence[tuple[tuple[int, int], Baseline]], atlas: Atlas, genes: npt.NDArray[np.int64]
    ) -> None:
        self.name = parts[0][1].name
        self._parts = sorted(parts, key=lambda part: part[0])
        self._atlas, self._genes = atlas, genes

    def read(self, z: int, place: Rectangle) -> Pixels:
        """See ``ImageSource``."""
        pieces = []
        for (first, end), baseline in self._parts:
            part = place._replace(x0=max(place.x0, first), x1=min(place.x1, end))
            if part.x0 < part.x1:
                pieces.append(self._predicted(baseline, z, part))
        return np.concatenate(pieces, axis=2)

    def _predicted(self, baseline: Baseline, z: int, place: Rectangle) -> Pixels:
        whole = snapped_outward(place, baseline.grid)
        pixels = baseline.predict(_gene_window(self._atlas, z, whole)[self._genes])
        y, x = place.y0 - whole.y0, place.x0 - whole.x0
        h, w = place.shape
        return pixels[:, y : y + h, x : x + w]


def training_pairs(
    atlas: Atlas,
    image: AtlasImage,
    genes: npt.NDArray[np.int64],
    *,
    place: Rectangle,
    patch: int,
    windows: int,
    seed: int,
) -> list[Pair]:
    """Random windows with transcripts, of 256 px or as many whole patches as there is room for.

    Args:
        atlas: to learn from.
        image: its images.
        genes: indices of the genes to use, in their order.
        place: px to stay within; its corner lies on a bin.
        patch: side of the patches that a window consists of, px.
        windows: how many, if there are as many.
        seed: of the choice.

    Raises:
        InputError: no window of the place has transcripts.
    """
    pairs = []
    side = min(TRAINING_SIDE, *place.shape) // patch * patch
    for z, window in _shuffled_windows(atlas.slices, place, side, seed):
        counts = _gene_window(atlas, z, window)[genes]
        if counts.any():
            pairs.append(Pair(counts, image.read(z, window)))
        if len(pairs) == windows:
            break
    if not pairs:
        raise InputError(
            f"{atlas.path} has no window of {max(side, patch)} px with transcripts in the columns "
            f"{place.x0}:{place.x1} to learn the baselines from: give a training atlas, or no baselines"
        )
    return pairs


def fitted(names: Sequence[str], pairs: Sequence[Pair], patch: int) -> list[Baseline]:
    """Baselines by name, fitted.

    Args:
        names: of "mean", "ridge", "nearest".
        pairs: to learn from.
        patch: side of the patches of "nearest", px.

    Raises:
        InputError: there is none of a name.
    """
    kinds: dict[str, Baseline] = {
        "mean": MeanBaseline(), "ridge": RidgeBaseline(), "nearest": NearestBaseline(patch)
    }  # fmt: skip
    if unknown := sorted(set(names) - set(kinds)):
        raise InputError(f"there is no baseline {unknown[0]!r}; choose of {', '.join(NAMES)}")
    chosen = [kinds[name] for name in dict.fromkeys(names)]
    for baseline in chosen:
        baseline.fit(pairs)
    return chosen


def shared_genes(atlas: Atlas, train: Atlas) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the genes that two atlases share, in each, in the first one's order.

    Raises:
        InputError: there are none, or the atlases' pixels differ.
    """
    if abs(train.pixel_size / atlas.pixel_size - 1) > PIXEL_SIZE_TOLERANCE:
        raise InputError(
            f"{train.path} has pixels of {train.pixel_size:g} um and {atlas.path} of {atlas.pixel_size:g} um: train "
            "the baselines on an atlas of the same pixel size"
        )
    there = {gene: index for index, gene in enumerate(train.genes)}
    shared = [(index, there[gene]) for index, gene in enumerate(atlas.genes) if gene in there]
    if not shared:
        raise InputError(f"{train.path} and {atlas.path} share no gene: train the baselines on an atlas that does")
    first, second = np.array(shared, dtype=np.int64).T
    return first, second


def _shuffled_windows(slices: int, place: Rectangle, side: int, seed: int) -> Iterator[tuple[int, Rectangle]]:
    """Whole windows of a place in all slices, in random order."""
    if not side:
        return
    rows, columns = (range(start, end - side + 1, side) for start, end in (place[:2], place[2:]))
    corners = [(y, x) for y in rows for x in columns]
    for number in np.random.default_rng(seed).permutation(len(corners) * slices).tolist():
        z, corner = divmod(number, len(corners))
        y, x = corners[corner]
        yield z, Rectangle(y, y + side, x, x + side)


def _gene_window(atlas: Atlas, z: int, place: Rectangle) -> Counts:
    """Counts (G, h + 2, w + 2) of a slice, one bin further on each side."""
    margin = _REACH * BIN_SIZE
    return atlas.gene_window(z, z + 1, place.y0 - margin, place.y1 + margin, place.x0 - margin, place.x1 + margin)[:, 0]


def _features(genes: Counts) -> npt.NDArray[np.float32]:
    """(bins, 9 G + 1): each bin and its neighbours, and a constant."""
    roots = np.sqrt(genes, dtype=np.float32)
    near = np.lib.stride_tricks.sliding_window_view(roots, (2 * _REACH + 1, 2 * _REACH + 1), axis=(1, 2))
    bins = near.transpose(1, 2, 0, 3, 4).reshape(near.shape[1] * near.shape[2], -1)
    return np.concatenate([bins, np.ones((len(bins), 1), dtype=np.float32)], axis=1)


def _normal_equations(pairs: Sequence[Pair]) -> NormalEquations:
    total = None
    for pair in pairs:
        x = _features(pair.genes)
        stains, h, w = pair.pixels.shape
        squares = pair.pixels.reshape(stains, h // BIN_SIZE, BIN_SIZE, w // BIN_SIZE, BIN_SIZE)
        y = squares.transpose(1, 3, 0, 2, 4).reshape(len(x), -1).astype(np.float32)
        part = NormalEquations(
            (x.T @ x).astype(np.float64), (x.T @ y).astype(np.float64), float(np.square(y, dtype=np.float64).sum())
        )
        total = part if total is None else total.joined(part)
    if total is None:
        raise InputError("there are no windows to learn from")
    return total


def _pixel_shape(genes: Counts) -> tuple[int, int]:
    return (genes.shape[1] - 2 * _REACH) * BIN_SIZE, (genes.shape[2] - 2 * _REACH) * BIN_SIZE


def _as_grey(values: npt.NDArray[Any]) -> Pixels:
    return np.asarray(np.rint(values).clip(0, 255), dtype=np.uint8)
