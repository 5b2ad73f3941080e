import numpy as np
import pytest

from teramind.engine.plan import Rectangle
from teramind.errors import InputError
from teramind.evaluate.baselines import (
    BaselineImage,
    MeanBaseline,
    NearestBaseline,
    Pair,
    RidgeBaseline,
    fitted,
    shared_genes,
    training_pairs,
)
from teramind.evaluate.sources import AtlasImage

GENES = 5


def linear_pairs(count, side=4, seed=0, noise=2.0):
    """Pixels that are a linear function of the roots of a bin's and its neighbours' counts."""
    pattern = np.random.default_rng(99).normal(0, 8, (2, GENES, 16, 16))
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        genes = rng.poisson(2.0, (GENES, side + 2, side + 2)).astype(np.uint16)
        roots = np.sqrt(genes)
        own, right = roots[:, 1:-1, 1:-1], roots[:, 1:-1, 2:]
        squares = np.einsum("sgij,ghw->shiwj", pattern, own) + np.einsum("sgij,ghw->shiwj", pattern[::-1], right)
        pixels = 120 + squares.reshape(2, 16 * side, 16 * side) + rng.normal(0, noise, (2, 16 * side, 16 * side))
        pairs.append(Pair(genes, pixels.clip(0, 255).astype(np.uint8)))
    return pairs


def error(baseline, pairs):
    return np.mean([np.square(baseline.predict(pair.genes) - pair.pixels.astype(float)).mean() for pair in pairs])


def test_ridge_finds_a_linear_relation_to_a_bin_and_its_neighbour():
    train, test = linear_pairs(40), linear_pairs(5, seed=1)
    mean, ridge = MeanBaseline(), RidgeBaseline()
    mean.fit(train)
    ridge.fit(train)
    assert error(ridge, test) < 8 < error(mean, test) / 20


def test_ridge_chooses_a_strong_penalty_where_there_is_nothing_to_learn():
    rng = np.random.default_rng(0)
    pairs = [Pair(pair.genes, rng.integers(90, 110, pair.pixels.shape, np.uint8)) for pair in linear_pairs(6)]
    ridge = RidgeBaseline()
    ridge.fit(pairs)
    assert ridge.penalty == max(RidgeBaseline.penalties)
    with pytest.raises(InputError, match="two windows"):
        ridge.fit(pairs[:1])


def test_the_mean_is_one_grey_a_stain():
    baseline = MeanBaseline()
    pairs = linear_pairs(3, side=2)
    pairs[0].pixels[1] //= 2
    baseline.fit(pairs)
    predicted = baseline.predict(pairs[1].genes)
    assert predicted.shape == (2, 32, 32)
    expected = np.mean([pair.pixels.mean(axis=(1, 2)) for pair in pairs], axis=0)
    np.testing.assert_array_equal(predicted, np.broadcast_to(np.rint(expected)[:, None, None], (2, 32, 32)))


@pytest.mark.parametrize("patch", [32, 64])
def test_the_nearest_patch_of_the_training_set_is_itself(patch):
    pairs = linear_pairs(4, side=8)
    baseline = NearestBaseline(patch)
    baseline.fit(pairs)
    np.testing.assert_array_equal(baseline.predict(pairs[2].genes), pairs[2].pixels)


def test_the_nearest_patch_is_known_by_its_quarters():
    """Two patches with the same transcripts, at other places in them."""
    genes = np.zeros((1, 4, 4), np.uint16)
    genes[0, 1, 1] = 9
    pairs = [
        Pair(turned, np.full((1, 32, 32), grey, np.uint8)) for grey, turned in ((10, genes), (200, genes[:, ::-1]))
    ]
    baseline = NearestBaseline(32)
    baseline.fit(pairs)
    near = genes.copy()
    near[0, 1, 1] = 7
    assert (baseline.predict(near) == 10).all()
    assert (baseline.predict(near[:, ::-1]) == 200).all()
    with pytest.raises(InputError, match="48 px"):
        NearestBaseline(48)


def test_patches_to_choose_from_are_limited():
    baseline = NearestBaseline(32, limit=5)
    baseline.fit(linear_pairs(4, side=8))
    assert len(baseline._pixels) == 5


class Columns:
    """In place of a baseline: predicts a number of its own plus the first gene."""

    name, grid = "columns", 64

    def __init__(self, number):
        self.number = number

    def predict(self, genes):
        inner = genes[:1, 1:-1, 1:-1] + self.number
        return inner.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)


@pytest.mark.parametrize("place", [Rectangle(0, 336, 0, 400), Rectangle(70, 91, 150, 333), Rectangle(3, 5, 300, 310)])
def test_halves_come_from_their_own_model_wherever_the_window_lies(atlas, place):
    image = BaselineImage([((192, 400), Columns(100)), ((0, 192), Columns(0))], atlas, np.array([2]))
    pixels = image.read(1, place)
    genes = atlas.gene_window(1, 2, 0, 336, 0, 400)[2, 0].repeat(16, axis=0).repeat(16, axis=1)
    whole = genes + np.where(np.arange(400) < 192, 0, 100)
    np.testing.assert_array_equal(pixels[0], whole[place.y0 : place.y1, place.x0 : place.x1])


def test_training_windows_stay_in_their_place_and_hold_what_the_atlas_holds(atlas, truth):
    image, genes = AtlasImage(atlas, ["DAPI", "PolyT"]), np.array([3, 0])
    options = {"place": Rectangle(0, 336, 0, 192), "patch": 64, "seed": 1}
    pairs = training_pairs(atlas, image, genes, windows=99, **options)
    assert len(pairs) == 2  # one of 192 px a slice
    for pair in pairs:
        assert pair.pixels.shape == (2, 192, 192)
        z = next(z for z in range(2) if (truth[:, z, :192, :192] == pair.pixels).all())
        np.testing.assert_array_equal(pair.genes, atlas.gene_window(z, z + 1, -16, 208, -16, 208)[genes, 0])
    assert len(training_pairs(atlas, image, genes, windows=1, **options)) == 1
    with pytest.raises(InputError, match="no window of 64 px"):
        training_pairs(atlas, image, genes, windows=9, **(options | {"place": Rectangle(0, 336, 0, 48)}))


def test_baselines_are_asked_for_by_name():
    pairs = linear_pairs(4)
    assert [baseline.name for baseline in fitted(["nearest", "mean"], pairs, 32)] == ["nearest patch", "mean image"]
    with pytest.raises(InputError, match="no baseline 'forest'"):
        fitted(["mean", "forest"], pairs, 32)


def test_genes_are_matched_by_name(atlas, scenes, truth, tissue, tmp_path):
    names = ["gene 3", "other", "gene 0", "more", "yet more", "gene 5"]
    other = tissue.write_atlas(tmp_path / "other.zarr", scenes, truth, genes=names)
    first, second = shared_genes(atlas, other)
    assert (
        [atlas.genes[index] for index in first] == [names[index] for index in second] == ["gene 0", "gene 3", "gene 5"]
    )
    unlike = tissue.write_atlas(tmp_path / "unlike.zarr", scenes, truth, genes=[f"x{number}" for number in range(6)])
    with pytest.raises(InputError, match="share no gene"):
        shared_genes(atlas, unlike)
    coarse = tissue.write_atlas(tmp_path / "coarse.zarr", scenes, truth, pixel_size=0.5)
    with pytest.raises(InputError, match=r"pixels of 0\.5 um"):
        shared_genes(atlas, coarse)
