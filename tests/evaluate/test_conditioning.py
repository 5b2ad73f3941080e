import numpy as np
import pytest

from teramind.atlas.store import Atlas
from teramind.engine.frame import Window
from teramind.engine.plan import Rectangle
from teramind.engine.tissue import empty_tiles
from teramind.errors import InputError
from teramind.evaluate import shuffle_genes
from teramind.evaluate.conditioning import chance_matches
from teramind.evaluate.nuclei import Nuclei

WHOLE = (0, 2, 0, 336, 0, 400)


def blocks(counts, bins):
    """(genes, slices, rows, columns) cut into blocks, those at the far edges smaller, as a sorted list of bytes."""
    height, width = counts.shape[2:]
    cut = [counts[:, :, y : y + bins, x : x + bins] for y in range(0, height, bins) for x in range(0, width, bins)]
    return sorted((block.shape, block.tobytes()) for block in cut)


@pytest.mark.parametrize("block", [16, 64, 112])
def test_blocks_change_places_and_keep_what_they_hold(atlas, block):
    view = shuffle_genes(atlas, seed=3, block=block)
    assert isinstance(view, Atlas)
    before, after = atlas.gene_window(*WHOLE), view.gene_window(*WHOLE)
    assert blocks(before, block // 16) == blocks(after, block // 16)
    assert (before != after).any(axis=(0, 1)).mean() > 0.5
    place, gene, count = view.gene_entries(*WHOLE)  # what generation reads
    sparse = np.zeros_like(after)
    sparse.reshape(len(after), -1)[gene, place] = count
    np.testing.assert_array_equal(sparse, after)
    np.testing.assert_array_equal(view.image_window(*WHOLE), atlas.image_window(*WHOLE))
    np.testing.assert_array_equal(view.region_window(*WHOLE), atlas.region_window(*WHOLE))


@pytest.mark.parametrize("window", [(-1, 3, -32, 400, -16, 448), (1, 2, 48, 96, 16, 336), (0, 1, 320, 384, 0, 64)])
def test_windows_are_parts_of_the_whole(atlas, window):
    view = shuffle_genes(atlas, seed=0)
    z0, z1, *px = window
    y0, y1, x0, x1 = (bound // 16 for bound in px)
    padded = np.pad(view.gene_window(*WHOLE), ((0, 0), (2, 2), (4, 4), (4, 4)))
    expected = padded[:, z0 + 2 : z1 + 2, y0 + 4 : y1 + 4, x0 + 4 : x1 + 4]
    np.testing.assert_array_equal(view.gene_window(*window), expected)
    np.testing.assert_array_equal(view.count_window(*window), expected.sum(axis=0))


def test_a_seed_is_a_permutation_and_has_a_fingerprint(atlas):
    views = [shuffle_genes(atlas, seed) for seed in (1, 1, 2)]
    first, again, other = (view.gene_window(*WHOLE) for view in views)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    prints = {atlas.fingerprint, *(view.fingerprint for view in views), shuffle_genes(atlas, 1, 16).fingerprint}
    assert len(prints) == 4
    from_view = shuffle_genes(views[2], 1)
    np.testing.assert_array_equal(from_view.gene_window(*WHOLE), first)


def test_the_engine_takes_the_view_for_an_atlas(atlas):
    view = shuffle_genes(atlas, seed=0)
    options = {"tile": 64, "patch": 64, "steps": 1, "below": 1}
    skipped = empty_tiles(view, Rectangle(0, 384, 0, 448), [Window(0, 0)], 1, **options)
    assert skipped.shape == (1, 6, 7)


def test_what_cannot_be_shuffled_is_said(atlas):
    with pytest.raises(InputError, match="blocks of 24 px"):
        shuffle_genes(atlas, 0, block=24)
    with pytest.raises(InputError, match="nothing to shuffle"):
        shuffle_genes(atlas, 0, block=512)
    with pytest.raises(InputError, match="does not lie on bins"):
        shuffle_genes(atlas, 0).gene_window(0, 1, 0, 20, 0, 16)


def test_chance_is_the_share_of_the_plane_near_a_nucleus():
    """Few nuclei in a large plane: pairs are independent, each with the probability of a disc of the radius."""
    rng = np.random.default_rng(0)
    size, radius, count = (2000.0, 3000.0), 3.0, 4000
    places = rng.uniform(0, size, (count, 2))
    truth = Nuclei(places[:, 0], places[:, 1], *np.ones((2, count)))
    pairs = chance_matches(truth, size, radius, least_shift=50, seed=0, repeats=6)
    expected = count * (1 - np.exp(-count / np.prod(size) * np.pi * radius**2))
    # 75 of 4000; a pair less where two would share a partner.
    assert pairs.mean() == pytest.approx(expected, rel=0.15)
    assert len(set(pairs.tolist())) > 1


def test_a_lattice_moved_onto_itself_is_no_chance():
    """Shifts are random, so that a periodic pattern does not meet itself again."""
    places = np.stack(np.meshgrid(np.arange(0, 200, 20.0), np.arange(0, 200, 20.0)), axis=-1).reshape(-1, 2)
    truth = Nuclei(places[:, 0], places[:, 1], *np.ones((2, 100)))
    pairs = chance_matches(truth, (200.0, 200.0), 3.0, least_shift=50, seed=0, repeats=8)
    assert pairs.mean() < 50
