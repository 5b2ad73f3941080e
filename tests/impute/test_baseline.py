import numpy as np
import pytest
from scipy.sparse import csr_array

from teramind.errors import InputError
from teramind.impute import baseline
from teramind.impute.cells import Cells
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc


def slices(generator, n=101):
    """Three coronal slices; type and expression follow the first coordinate."""
    positions = np.concatenate([np.c_[generator.random((n, 2)), np.full(n, ap)] for ap in (1.0, 1.2, 1.4)])
    left = positions[:, 0] < 0.5
    counts = np.stack([np.where(left, 3.0, 0), np.where(left, 0, 2.0), np.arange(3.0 * n)], axis=1)
    sections = np.repeat(["s0", "s1", "s2"], n)
    return Cells(positions, np.where(left, "left", "right"), csr_array(counts), ("a", "b", "id"), sections)


@pytest.mark.parametrize("count", [None, 50, 101, 240])
def test_all_three_stages(count):
    reference = slices(np.random.default_rng(0))
    cells = baseline.predict(reference, Plane.coronal(1.26), count)
    assert len(cells) == (count or 101)
    np.testing.assert_allclose(cells.positions[:, 2], 1.26)
    own = cells.counts.toarray()[:, 2].astype(int)
    edge = np.abs(cells.positions[:, 0] - 0.5) < 0.2
    np.testing.assert_array_equal(cells.types[~edge], np.where(cells.positions[~edge, 0] < 0.5, "left", "right"))
    source = reference.positions[own]
    same_place = np.isclose(source, cells.positions, atol=1e-9)[:, :2].all(axis=1)
    assert (same_place & (reference.sections[own] == "s1"))[~edge].all()
    if count == 50:
        assert len(np.unique(cells.positions, axis=0)) == 50
    again = baseline.predict(reference, Plane.coronal(1.26), count)
    np.testing.assert_array_equal(again.positions, cells.positions)


def test_the_slice_is_closest_along_the_plane_s_own_normal():
    reference = slices(np.random.default_rng(1))
    turned = Cells(
        reference.positions[:, [2, 1, 0]], reference.types, reference.counts, reference.genes, reference.sections
    )
    moved = baseline.closest_slice(turned, Plane.sagittal(1.38))
    np.testing.assert_allclose(moved[:, 1:], turned.positions[turned.sections == "s2"][:, 1:])


def test_ties_go_to_the_first_name_and_unlabelled_cells_do_not_vote():
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0]])
    reference = Cells(positions, np.array(["b", "a", "b", "a", ""]))
    assert baseline.vote_types(reference, np.array([[0.5, 0.5, 0.0]])).tolist() == ["a"]


def test_a_type_without_reference_expresses_nothing():
    reference = slices(np.random.default_rng(2))
    counts = baseline.copy_expression(reference, np.zeros((3, 3)), np.array(["left", "unheard", "right"]))
    assert (counts.toarray().sum(axis=1) > 0).tolist() == [True, False, True]


def test_a_disc_is_filled_evenly():
    plane, disc = Plane.sagittal(2.0), Disc((1.0, 3.0), 0.3)
    flat = plane.flatten(baseline.uniform_disc(disc, plane, 4001))
    assert disc.contains(flat, margin=1e-9).all()
    assert Disc(disc.centre, 0.15).contains(flat).mean() == pytest.approx(0.25, abs=0.03)


def test_what_the_baseline_cannot_use():
    reference = slices(np.random.default_rng(3))
    with pytest.raises(InputError, match="section"):
        baseline.closest_slice(Cells(reference.positions), Plane.coronal(1.0))
    with pytest.raises(InputError, match="no reference cell has a type"):
        baseline.vote_types(Cells(reference.positions, np.full(303, "")), reference.positions)
