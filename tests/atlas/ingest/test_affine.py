from __future__ import annotations

import numpy as np
import pytest

from teramind.atlas.affine import Affine, read_affine
from teramind.errors import InputError

TURNED = np.array([[9.1, -1.7, -125.5], [1.6, 9.3, 121.6], [0, 0, 1]])


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t"])
def test_reads_numbers_parted_by_whitespace_or_commas(tmp_path, separator):
    path = tmp_path / "affine.csv"
    path.write_text("# a comment\n" + "\n".join(separator.join(map(repr, row)) for row in TURNED.tolist()) + "\n\n")
    assert np.array_equal(read_affine(path).matrix, TURNED)


def test_of_a_4x4_matrix_the_plane_z_0_counts(tmp_path):
    path = tmp_path / "affine.txt"
    path.write_text("2 3 99 10\n-3 2 77 20\n5 6 7 8\n0 0 0 1\n")
    x, y = read_affine(path).apply(np.array([1.0]), np.array([2.0]))
    assert (x[0], y[0]) == (2 + 6 + 10, -3 + 4 + 20)


def test_inverse_takes_points_back():
    affine = Affine(TURNED)
    x, y = np.random.default_rng(0).uniform(-1e4, 1e4, (2, 101))
    back = affine.inverse().apply(*affine.apply(x, y))
    # 1e4 um with 53 bits, a condition number below 2
    np.testing.assert_allclose(back, (x, y), atol=1e-9)


def test_the_right_factor_acts_first():
    first, second = Affine(TURNED), Affine.translation(3, -5)
    x, y = np.array([1.0, 2.0]), np.array([-7.0, 11.0])
    np.testing.assert_allclose((second @ first).apply(x, y), second.apply(*first.apply(x, y)))


def test_bounds_hold_every_corner_of_a_turned_box():
    assert Affine(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])).bounds(0, 2, 0, 5) == (0, 5, -2, 0)


def test_pixel_size_is_the_side_of_a_pixel_in_microns():
    assert Affine(np.diag([9.259590148925781, 9.259541511535645, 1])).pixel_size() == pytest.approx(0.1079964, abs=1e-7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 0\n2 4 0\n0 0 1\n", "not invertible"),
        ("0 0 0\n0 0 0\n0 0 1\n", "not invertible"),
        ("1 0 0\n0 nan 0\n0 0 1\n", "not finite"),
        ("1 0 0\n0 1 0\n0 0.1 1\n", "0 0 1"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n1 0 0 1\n", "0 0 0 1"),
        ("1 0 0\n0 1 0\n", "3x3 or 4x4"),
        ("1 0\n0 1\n", "3x3 or 4x4"),
        ("a,b,c\n1,0,0\n0,1,0\n0,0,1\n", "3x3 or 4x4"),
        ("1 0 x\n0 1 0\n0 0 1\n", "not a matrix of numbers"),
        ("", "3x3 or 4x4"),
    ],
)
def test_what_is_no_affine_is_refused_with_the_file_named(tmp_path, text, words):
    path = tmp_path / "affine.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_affine(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_affine(tmp_path / "nowhere.txt")
