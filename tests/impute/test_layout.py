"""Scores of positions: the reference's numbers, and what each score must and must not notice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from teramind.errors import InputError
from teramind.impute.cells import Cells, join_cells
from teramind.impute.evaluation import cells_beside, compare
from teramind.impute.kde import log_density, log_density_gradient
from teramind.impute.layout import grid_densities, grid_difference, grid_divergence, layout_scores, neighbour_types
from teramind.impute.metrics import soft_scores
from teramind.impute.nulls import null_predictions
from teramind.impute.planes import Plane


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "data" / "mimyr_metrics.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def sides(reference):
    """The cells that the reference's layout scores are of."""
    return [
        Cells(reference[f"{side}_pos3"][first:, :2], reference[f"{side}_type"][first:].astype(str))
        for side, first in (("gt", 5), ("pred", 3))
    ]


def test_the_reference_s_neighbour_types(reference, sides):
    assert neighbour_types(*sides, mode="reference") == pytest.approx(reference["delaunay"][0], abs=1e-12)


@pytest.mark.parametrize("kind", ["radius", "nearest"])
def test_the_reference_s_grid_scores(reference, sides, kind):
    positions = [cells.positions for cells in sides]
    grid = int(reference["grid_size"][0])
    sizes = reference["grid_radii"] if kind == "radius" else reference["knn"]
    for index, size in enumerate(sizes):
        width = {"radius": float(size)} if kind == "radius" else {"neighbours": int(size)}
        options = {**width, "grid": grid, "mode": "reference"}
        letter = kind[0].replace("n", "k")
        assert grid_difference(*positions, **options) == pytest.approx(reference[f"grid_l1_{letter}"][index], abs=1e-12)
        assert grid_divergence(*positions, **options) == pytest.approx(reference[f"grid_kl_{letter}"][index], abs=1e-12)
        if kind == "radius":
            p, q, _ = grid_densities(*positions, **width, grid=grid)
            np.testing.assert_allclose(np.abs(p - q), reference["grid_l1_list_r"][index], atol=1e-12)


def test_the_reference_s_kernel_density(reference):
    """Where the reference underflows to zero ours goes on."""
    points, cells = (torch.from_numpy(reference[f"aux_kde_{name}"]) for name in ("points", "data"))
    bandwidth = float(reference["aux_kde_bandwidth"][0])
    density = log_density(points, cells, bandwidth).exp().numpy()
    np.testing.assert_allclose(density, reference["aux_kde_f"], rtol=1e-6)
    gradient = log_density_gradient(points, cells, bandwidth).numpy()
    known = reference["aux_kde_f"] > 1e-5  # the reference adds 1e-12 to what it divides by
    assert known.sum() > 5
    np.testing.assert_allclose(gradient[known], reference["aux_kde_grad_log"][known], rtol=1e-6, atol=1e-6)
    assert (reference["aux_kde_grad_log"][-2:] == 0).all()
    assert (np.linalg.norm(gradient[-2:], axis=1) > 0).all()
    assert np.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_density():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(37, 2, generator=generator, dtype=torch.float64)
    points = torch.randn(11, 2, generator=generator, dtype=torch.float64) * 3
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    rise = [log_density(points + way, cells, 0.3) - log_density(points - way, cells, 0.3) for way in step]
    torch.testing.assert_close(log_density_gradient(points, cells, 0.3), torch.stack(rise, 1) / 2e-5, rtol=1e-6, atol=0)


def lattice(generator, n, spacing=0.02, jitter=0.002):
    side = int(np.ceil(np.sqrt(n)))
    nodes = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n] * spacing
    return nodes + generator.normal(0, jitter, (n, 2))


def test_a_copy_is_told_from_a_likely_layout():
    generator = np.random.default_rng(0)
    given, truth = lattice(generator, 961), lattice(generator, 961)
    copied = layout_scores(truth, given, given)
    redrawn = layout_scores(truth, lattice(generator, 961), given)
    assert copied.copies == 1
    assert redrawn.copies < 0.2
    assert redrawn.copies == pytest.approx(redrawn.chance_copies, abs=0.04)
    assert copied.chance_copies == redrawn.chance_copies
    random = layout_scores(truth, generator.random((961, 2)) * 0.6, given)
    assert random.spacing_error > 4 * redrawn.spacing_error
    assert random.log_likelihood == pytest.approx(np.log(1 / 0.36), abs=0.35)  # the kernel reaches over the edges


def test_copies_are_those_of_the_slices_beside_the_plane(brain, slices, held_out):
    """Of an independent draw hardly any, however many slices there are; of the nearest slice all of its own."""
    truth, plane = held_out
    many = join_cells([*slices[:3], *slices[4:], *(replace(part, sections=np.full(len(part), f"more {index}"))
        for index, part in enumerate(brain.cut(Plane.coronal(ap), seed=50 + round(90 * ap))
            for ap in np.linspace(3.1, 3.5, 30)))])  # fmt: skip
    anew, copy = brain.cut(plane, seed=9), slices[2]
    scores = compare(truth, {"anew": anew, "copy": copy}, plane, given=many, radii=[0.1]).layout
    assert scores["anew"].copies < 0.02
    assert scores["anew"].copies == pytest.approx(scores["anew"].chance_copies, abs=0.008)
    assert scores["copy"].copies == 1
    assert scores["copy"].chance_copies < 0.03
    across = cells_beside(many, Plane.sagittal(2.0))
    assert np.abs(across.positions[:, 0] - 2.0).max() < 0.05
    assert len(cells_beside(replace(many, sections=None), plane)) == 0


def test_half_of_the_cells_elsewhere_is_half_of_the_density():
    generator = np.random.default_rng(1)
    truth = generator.random((4000, 2))
    moved = np.concatenate([truth[:2000], truth[2000:] + np.array([3.0, 0])])
    assert grid_difference(truth, moved, radius=0.15) == pytest.approx(0.5, abs=0.03)
    assert grid_divergence(truth, truth, radius=0.15) == 0
    assert grid_divergence(truth, moved, radius=0.15) > 0


def test_neighbouring_types_do_not_depend_on_the_number_of_cells():
    """A checkerboard of two types at two densities, against types at random."""
    generator = np.random.default_rng(2)

    def board(n, mixed):
        positions = generator.random((n, 2))
        own = (np.floor(positions * 4).sum(axis=1) % 2).astype(int)
        return Cells(positions, np.where(mixed, generator.integers(0, 2, n), own).astype(str))

    truth = board(4000, mixed=False)
    assert neighbour_types(truth, board(2000, mixed=False)) < 0.06
    assert neighbour_types(truth, board(4000, mixed=True)) > 0.3


def test_too_few_cells_are_named():
    with pytest.raises(InputError, match="1 true"):
        layout_scores(np.zeros((1, 2)), np.ones((3, 2)), np.ones((1, 2)))
    line = Cells(np.stack([np.arange(5.0), np.arange(5.0)], axis=1), np.array(["a"] * 5))
    with pytest.raises(InputError, match="line"):
        neighbour_types(line, line)


def test_nulls_know_the_positions_and_nothing_else():
    generator = np.random.default_rng(3)
    types = generator.integers(0, 3, 501)
    counts = generator.poisson(np.array([[4, 0, 1], [0, 4, 1], [1, 1, 3]])[types])
    truth = Cells(generator.random((501, 2)) * 0.5, types.astype(str), csr_array(counts.astype(float)), ("a", "b", "c"))
    prediction = truth[generator.permutation(501)[:400]]
    nulls = null_predictions(truth, prediction)
    scores = {
        name: {score.metric: score.value for score in soft_scores(truth, null, radii=[0.05])}
        for name, null in nulls.items()
    }
    np.testing.assert_array_equal(nulls["type means"].types, truth.types)
    assert nulls["type means"].counts.sum() == pytest.approx(counts.sum())
    for name in ("shuffled rows", "mean profile"):
        np.testing.assert_array_equal(nulls[name].positions, prediction.positions)
    assert sorted(nulls["shuffled rows"].counts.sum(axis=1)) == sorted(prediction.counts.sum(axis=1))
    np.testing.assert_allclose(nulls["mean profile"].counts.toarray(), counts.mean(axis=0)[None].repeat(400, 0))
    assert scores["type means"]["spearman"] > 0.6
    assert abs(scores["shuffled rows"]["spearman"]) < 0.2
    assert scores["mean profile"]["f1"] > 0.9  # which is why F1 alone shows nothing
    assert scores["type means"]["composition"] == pytest.approx(1)
