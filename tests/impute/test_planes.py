import numpy as np
import pytest

from teramind.errors import InputError
from teramind.impute.planes import Plane, parse_plane, plane_basis
from teramind.impute.regions import Disc, Mask, Polygon

SQUARE = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
NOTCHED = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (1.0, 0.5), (0.0, 2.0)]


def test_named_planes_have_the_field_s_coordinates():
    positions = np.random.default_rng(0).random((7, 3))
    np.testing.assert_array_equal(Plane.coronal(3.0).flatten(positions), positions[:, :2])
    np.testing.assert_array_equal(Plane.sagittal(3.0).flatten(positions), positions[:, 1:])


@pytest.mark.parametrize("normal", [(0, 0, 1), (1, 0, 0), (0, 2, 0), (-1, 1, 3), (0.99, 0.01, 0), (1e-12, 0, -1)])
def test_a_plane_is_the_same_from_any_point_and_either_side(normal):
    generator = np.random.default_rng(1)
    plane = Plane((1.0, 2.0, 3.0), normal)
    other = Plane(tuple(plane.lift(generator.normal(size=(1, 2)))[0]), tuple(-5 * np.asarray(normal)))
    assert other.normal == pytest.approx(plane.normal)
    assert other.offset == pytest.approx(plane.offset, abs=1e-9)
    positions = generator.normal(size=(9, 3))
    np.testing.assert_allclose(other.flatten(positions), plane.flatten(positions))
    restored = plane.lift(plane.flatten(positions), plane.offsets(positions))
    np.testing.assert_allclose(restored, positions, atol=1e-12)
    np.testing.assert_allclose(plane.offsets(plane.project(positions)), 0, atol=1e-12)


def test_bases_are_right_handed():
    normals = np.random.default_rng(2).normal(size=(101, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    frames = np.concatenate([plane_basis(normals), normals[:, None]], axis=1)
    np.testing.assert_allclose(frames @ frames.transpose(0, 2, 1), np.broadcast_to(np.eye(3), frames.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(frames), 1)


@pytest.mark.parametrize(
    ("text", "plane"),
    [
        ("coronal:5.5", Plane.coronal(5.5)),
        ("sagittal:-1", Plane.sagittal(-1.0)),
        ("1,2,3,0,0,-2", Plane((1.0, 2.0, 3.0), (0.0, 0.0, 1.0))),
    ],
)
def test_planes_as_text(text, plane):
    assert parse_plane(text) == plane


@pytest.mark.parametrize("text", ["axial:3", "coronal:x", "1,2,3", "1,2,3,0,0,0", "coronal:nan", "1,2,3,0,0,inf", ""])
def test_no_plane(text):
    with pytest.raises(InputError):
        parse_plane(text)


@pytest.mark.parametrize(
    ("region", "area"),
    [
        (Disc((0.5, -0.25), 0.75), np.pi * 0.75**2),
        (Polygon(SQUARE), 1.0),
        (Polygon(NOTCHED), 2.5),
        (Mask(np.array([[True, False, True], [True, True, True]]), (-0.5, 0.25), 0.5), 1.25),
    ],
)
def test_area_bounds_and_contents_agree(region, area):
    generator = np.random.default_rng(3)
    low, high = region.bounds
    low, high = low - 0.5, high + 0.5
    points = low + generator.random((40_000, 2)) * (high - low)
    inside = region.contains(points)
    assert region.area == pytest.approx(area)
    assert inside.mean() * np.prod(high - low) == pytest.approx(area, rel=0.03)
    assert (points[inside] >= region.bounds[0]).all()
    assert (points[inside] <= region.bounds[1]).all()
    margin = 0.5 if isinstance(region, Mask) else 0.2  # a mask's pixels are 0.5 mm
    grown = region.contains(points, margin)
    assert (grown | ~inside).all()
    assert grown.sum() > inside.sum()
    from scipy.spatial import cKDTree

    distance = cKDTree(points[inside]).query(points)[0]
    assert (distance[grown] < margin + 0.25).all()  # samples lie about 0.03 mm apart, and pixels have corners
    if not isinstance(region, Mask):
        assert (distance[~grown] > 0.15).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Disc((0.0, 0.0), 0.0),
        lambda: Disc((0.0, float("nan")), 1.0),
        lambda: Polygon([(0.0, 0.0), (1.0, 1.0)]),
        lambda: Polygon([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]),
        lambda: Mask(np.zeros((3, 3), bool), (0.0, 0.0), 0.1),
        lambda: Mask(np.ones((3, 3), bool), (0.0, 0.0), 0.0),
    ],
)
def test_an_empty_hole_is_refused(make):
    with pytest.raises(InputError):
        make()
