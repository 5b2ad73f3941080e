"""Soft scores: the reference's numbers, and the properties that the paper's have."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import rankdata, spearmanr

from teramind.errors import InputError
from teramind.impute.cells import Cells
from teramind.impute.metrics import METRICS, soft_scores
from teramind.impute.ranks import correlate_rows, rank_rows

EXACT = 1e-12  # float64 sums of multiples of 1/64 are exact in any order; only the last steps round
SINGLE = 1e-6  # the reference counts types in float32


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "data" / "mimyr_metrics.npz") as arrays:
        return dict(arrays)


def cells_of(arrays, side, dimensions):
    genes = tuple(f"g{number}" for number in arrays[f"{side}_gene_id"])
    types = arrays[f"{side}_type"].astype(str)
    return Cells(arrays[f"{side}_pos3"][:, :dimensions], types, csr_array(arrays[f"{side}_X"]), genes)


@pytest.fixture(params=[2, 3])
def scored(request, reference):
    """Scores by metric and size with the reference's rules."""
    sides = [cells_of(reference, side, request.param) for side in ("gt", "pred")]

    def run(**options):
        scores = soft_scores(*sides, metrics=METRICS, mode="reference", **options)
        return {(score.metric, score.size): score for score in scores}

    return run, f"{request.param}d", reference


@pytest.mark.parametrize("metric", ["spearman", "pearson", "f1", "precision", "recall", "composition"])
@pytest.mark.parametrize("neighbourhood", ["radius", "nearest"])
def test_the_reference_s_numbers(scored, metric, neighbourhood):
    run, suffix, expected = scored
    if neighbourhood == "radius":
        sizes, letter = expected["radii"], "r"
        scores = run(radii=sizes)
    else:
        sizes, letter = expected["knn"], "k"
        scores = run(neighbours=int(sizes[0]))
    column = {"f1": 0, "precision": 1, "recall": 2}.get(metric)
    name = {"spearman": "spear", "pearson": "pear", "composition": "acc"}.get(metric, "f1")
    values = np.atleast_2d(expected[f"{name}_{letter}_{suffix}"].reshape(len(sizes), -1))
    tolerance = SINGLE if metric == "composition" else EXACT
    for index, size in enumerate(sizes):
        score = scores[metric, float(size)]
        np.testing.assert_allclose(score.value, values[index, column or 0], atol=tolerance, rtol=0)
        if metric not in ("precision", "recall"):
            per_spot = np.atleast_2d(expected[f"{name}_list_{letter}_{suffix}"])[index]
            np.testing.assert_allclose(score.per_spot, per_spot, atol=tolerance, rtol=0)


def test_the_reference_s_gene_set_and_filters(scored):
    run, suffix, expected = scored
    everything = run(radii=expected["radii"])
    chosen = run(radii=expected["radii"], genes=[f"g{number}" for number in expected["gene_set_id"]])
    for scores, ending in ((everything, ""), (chosen, "_gs")):
        for metric, name in (("spearman", "corr"), ("f1", "f1")):
            names = tuple(f"g{number}" for number in expected[f"genes_{name}{ending}"])
            assert scores[metric, 0.03].genes == names
    for index, radius in enumerate(expected["radii"]):
        assert chosen["spearman", radius].value == pytest.approx(expected[f"spear_gs_r_{suffix}"][index], abs=EXACT)
        values = [chosen[metric, radius].value for metric in ("f1", "precision", "recall")]
        np.testing.assert_allclose(values, expected[f"f1_gs_r_{suffix}"][index], atol=EXACT)


def random_cells(generator, n=211, genes=17, kinds=5, dimensions=2, side=0.5):
    counts = generator.poisson(0.4, (n, genes)).astype(float)
    types = generator.integers(0, kinds, n).astype(str)
    names = tuple(f"g{index}" for index in range(genes))
    return Cells(generator.random((n, dimensions)) * side, types, csr_array(counts), names)


def values_of(truth, prediction, **options):
    scores = soft_scores(truth, prediction, radii=(0.05, 0.11), metrics=METRICS, **options)
    return np.array([score.value for score in scores])


def test_a_prediction_that_is_the_truth_scores_one():
    truth = random_cells(np.random.default_rng(0))
    np.testing.assert_allclose(values_of(truth, truth), 1, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_order_and_rigid_motion_change_nothing(dimensions):
    generator = np.random.default_rng(1)
    truth, prediction = (random_cells(generator, dimensions=dimensions) for _ in range(2))
    expected = values_of(truth, prediction)
    rotation, _ = np.linalg.qr(generator.standard_normal((dimensions, dimensions)))
    moved = []
    for cells in (truth, prediction):
        shuffled = cells[generator.permutation(len(cells))].with_genes(generator.permutation(cells.genes).tolist())
        moved.append(Cells(shuffled.positions @ rotation + 3.1, shuffled.types, shuffled.counts, shuffled.genes))
    np.testing.assert_allclose(values_of(*moved), expected, atol=1e-9)


def test_a_spot_at_a_time_with_scipy():
    generator = np.random.default_rng(2)
    truth, prediction = random_cells(generator), random_cells(generator, n=190)
    [score] = soft_scores(truth, prediction, radii=[0.08], metrics=["spearman"], threads=2)
    for spot in range(0, len(truth), 7):
        sums = [
            cells.counts.toarray()[np.linalg.norm(cells.positions - truth.positions[spot], axis=1) <= 0.08].sum(axis=0)
            for cells in (truth, prediction)
        ]
        assert score.per_spot[spot] == pytest.approx(spearmanr(*sums).statistic, abs=1e-12)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_counts_score_as_what_is_proportional_to_them(mode):
    """Whole numbers are summed in float32, others in float64."""
    generator = np.random.default_rng(6)
    truth, prediction = random_cells(generator), random_cells(generator)
    halves = [Cells(side.positions, side.types, side.counts / 2, side.genes) for side in (truth, prediction)]
    np.testing.assert_allclose(values_of(truth, prediction, mode=mode), values_of(*halves, mode=mode), atol=1e-12)


def test_where_nothing_is_predicted_the_score_is_zero_and_where_nothing_is_true_it_is_skipped():
    truth = Cells(
        np.array([[0.0, 0], [1, 0], [2, 0]]), np.array(["a"] * 3), csr_array([[3.0, 1], [0, 0], [2, 1]]), ("x", "y")
    )
    prediction = truth[[1, 2]]
    scores = {score.metric: score for score in soft_scores(truth, prediction, radii=[0.1], metrics=METRICS)}
    np.testing.assert_array_equal(scores["spearman"].per_spot, [0, np.nan, 1])
    np.testing.assert_array_equal(scores["f1"].per_spot, [0, np.nan, 1])
    np.testing.assert_allclose(scores["composition"].per_spot, [0, 1, 1])
    assert scores["spearman"].undefined == 1
    assert scores["spearman"].value == 0.5


def test_the_nearest_predicted_cell_counts():
    generator = np.random.default_rng(3)
    truth = random_cells(generator)
    only = {"neighbours": 1, "metrics": ["composition"]}
    [score] = soft_scores(truth, truth, **only)
    from scipy.spatial import cKDTree

    other = cKDTree(truth.positions).query(truth.positions, 2)[1][:, 1]
    np.testing.assert_array_equal(score.per_spot, truth.types[other] == truth.types)


def test_sizes_cuts_threads_and_chosen_spots_agree():
    generator = np.random.default_rng(4)
    truth, prediction = random_cells(generator, n=701), random_cells(generator, n=650)
    both = soft_scores(truth, prediction, radii=(0.04, 0.1), metrics=METRICS, threads=1)
    one = soft_scores(truth, prediction, radii=[0.1], metrics=METRICS, threads=2)
    few = soft_scores(truth, prediction, radii=[0.1], metrics=METRICS, spots=np.arange(5, 60, 3))
    for left, right, some in zip([score for score in both if score.size == 0.1], one, few, strict=True):
        np.testing.assert_allclose(left.per_spot, right.per_spot, atol=1e-12)
        np.testing.assert_allclose(some.per_spot, right.per_spot[5:60:3], atol=1e-12)


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (3, 1), (7, 31), (2, 400)])
def test_ranks(rows, n):
    values = np.random.default_rng(n).integers(0, 9, (rows, n)).astype(float)
    np.testing.assert_array_equal(rank_rows(values), rankdata(values, axis=1).reshape(rows, n))


def test_a_constant_row_has_no_correlation():
    assert np.isnan(correlate_rows(np.full((1, 41), 0.1), np.arange(41.0)[None]))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["kendall"]}, "kendall"),
        ({"mode": "ours"}, "ours"),
        ({"radii": [0.0]}, "0.0"),
        ({"radii": []}, "radii"),
        ({"neighbours": 500}, "500"),
        ({"genes": ["nothing"]}, "share no gene"),
    ],
)
def test_what_cannot_be_scored_is_said(change, words):
    truth = random_cells(np.random.default_rng(5))
    with pytest.raises(InputError, match=words):
        soft_scores(truth, truth, **change)
    with pytest.raises(InputError, match="none"):
        soft_scores(truth, truth[[]])
    with pytest.raises(InputError, match="types"):
        soft_scores(truth, Cells(truth.positions, counts=truth.counts, genes=truth.genes))
