"""Slices added to a copy of an atlas."""

import numpy as np
import pytest

from teramind import Atlas
from teramind.atlas.insert import NewSlice, with_slices
from teramind.atlas.phantom import Phantom
from teramind.atlas.phantom.build import build_phantom
from teramind.errors import InputError


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Two slices, 100 um apart, 1,100 x 90 px: two strips, neither side a multiple of a bin."""
    phantom = Phantom(seed=3, size=(1100, 90), slices=2, pixel_size=0.4, z_step=100.0)
    return build_phantom(phantom, tmp_path_factory.mktemp("insert") / "measured.zarr")


def points(n, genes, seed=0):
    generator = np.random.default_rng(seed)
    return generator.uniform(0, 90, n), generator.uniform(0, 1100, n), generator.integers(0, genes, n)


def test_old_slices_stay_and_new_ones_lie_in_order(atlas, tmp_path):
    before = atlas.fingerprint
    x, y, gene = points(5003, len(atlas.genes))
    x[:3] = [-0.1, 90.0, 200.0]  # outside
    slices = [
        NewSlice(150.0, x, y, gene),
        NewSlice(40.0, x[:7], y[:7], gene[:7]),
        NewSlice(60.0, x[:0], y[:0], gene[:0]),
    ]
    made = with_slices(atlas, tmp_path / "denser.zarr", slices, provenance={"why": "a test"})
    made = Atlas.open(made.path)
    assert made.slice_z == [0.0, 40.0, 60.0, 100.0, 150.0]
    assert made.shape == (5, 1100, 90)
    assert not made.has_images
    window = (0, 1104, 0, 96)
    for new, old in ((0, 0), (3, 1)):
        np.testing.assert_array_equal(made.gene_window(new, new + 1, *window), atlas.gene_window(old, old + 1, *window))
        labels = made.region_window(new, new + 1, *window)
        np.testing.assert_array_equal(labels, atlas.region_window(old, old + 1, *window))
    assert not made.region_window(1, 3, *window).any()
    added = made.gene_window(4, 5, *window)
    np.testing.assert_array_equal(added.sum(axis=(1, 2, 3)), np.bincount(gene[3:], minlength=len(atlas.genes)))
    assert made.gene_window(1, 2, *window).sum() == 4
    assert made.gene_window(2, 3, *window).sum() == 0
    assert made.provenance["added_slices"] == [1, 2, 4]
    assert made.provenance["atlas"]["fingerprint"] == before == Atlas.open(atlas.path).fingerprint
    assert made.provenance["why"] == "a test"


def test_strips_are_what_was_written(atlas):
    strips = [atlas.strip_counts(1, strip) for strip in (0, 1)]
    together = np.concatenate([strip.toarray() for strip in strips])
    whole = atlas.gene_window(1, 2, 0, 1104, 0, 96)[:, 0]
    np.testing.assert_array_equal(together.T.reshape(whole.shape), whole)
    assert all(strip.dtype == np.uint16 and strip.has_canonical_format for strip in strips)
    with pytest.raises(InputError, match="no strip 2 of 2"):
        atlas.strip_counts(1, 2)


@pytest.mark.parametrize(("z", "words"), [(100.0, "z = 100 and 100"), (100.4, "z = 100 and 100.4"), (np.nan, "nan")])
def test_no_two_slices_at_a_place(atlas, tmp_path, z, words):
    empty = np.zeros(0)
    with pytest.raises(InputError, match=words):
        with_slices(atlas, tmp_path / "never.zarr", [NewSlice(z, empty, empty, empty.astype(int))])
    assert not list(tmp_path.iterdir())


def test_never_in_place(atlas):
    before = atlas.fingerprint
    with pytest.raises(InputError, match="is the atlas itself"):
        with_slices(atlas, atlas.path / ".." / atlas.path.name, [], overwrite=True)
    assert Atlas.open(atlas.path).fingerprint == before
