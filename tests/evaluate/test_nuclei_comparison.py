import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from teramind.errors import InputError
from teramind.evaluate.nuclei import Matches, Nuclei, NucleiSums, area_distance, match_by_overlap, match_nuclei


def table(places, area=30.0, intensity=100.0):
    places = np.asarray(places, dtype=float).reshape(-1, 2)
    return Nuclei(places[:, 0], places[:, 1], np.full(len(places), area), np.full(len(places), intensity))


@pytest.mark.parametrize("density", [5, 60, 300])
def test_pairs_are_as_many_as_possible_and_then_the_closest(density):
    rng = np.random.default_rng(density)
    truth, found, radius = rng.uniform(0, 30, (density, 2)), rng.uniform(0, 30, (density + 7, 2)), 3.0
    matches = match_nuclei(truth, found, radius)
    distance = np.linalg.norm(truth[:, None] - found, axis=2)
    cost = np.where(distance <= radius, distance - 1e4, 0)  # the whole problem at once
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns] < 0
    assert len(matches.truth) == best.sum()
    ours = distance[matches.truth, matches.found]
    assert ours.max(initial=0) <= radius
    assert ours.sum() == pytest.approx(distance[rows, columns][best].sum())
    assert len(set(matches.truth.tolist())) == len(set(matches.found.tolist())) == len(matches.truth)


def test_identity_displacement_and_nothing():
    places = np.stack(np.meshgrid(np.arange(0, 100, 12.0), np.arange(0, 100, 12.0)), axis=-1).reshape(-1, 2)
    assert match_nuclei(places, places, 3.0).f1 == 1
    assert match_nuclei(places, places + np.array([0, 2.9]), 3.0).f1 == 1
    assert match_nuclei(places, places + np.array([0, 3.1]), 3.0).f1 == 0
    assert match_nuclei(places, places[::2], 3.0).f1 == pytest.approx(2 * 41 / (81 + 41))
    assert match_nuclei(places, places[:0], 3.0).f1 == 0
    assert np.isnan(match_nuclei(places[:0], places[:0], 3.0).f1)
    with pytest.raises(InputError, match="within 0 um"):
        match_nuclei(places, places, 0)


def test_overlap_pairs_labels():
    truth, found = np.zeros((2, 20, 30), np.int32)
    truth[2:8, 2:8], truth[2:8, 12:18], truth[12:18, 2:8] = 5, 2, 9
    found[2:8, 4:10] = 1  # IoU 24 / 48
    found[3:8, 12:18] = 7  # 30 / 36
    found[12:18, 5:12] = 3  # 18 / 60
    matches = match_by_overlap(truth, found)
    pairs = dict(
        zip(np.array([2, 5, 9])[matches.truth].tolist(), np.array([1, 3, 7])[matches.found].tolist(), strict=True)
    )
    assert pairs == {5: 1, 2: 7}
    assert matches.f1 == pytest.approx(2 / 3)
    assert match_by_overlap(truth, truth, 1.0).f1 == 1
    assert match_by_overlap(truth, np.zeros_like(truth)).f1 == 0
    with pytest.raises(InputError, match=r"0\.4"):
        match_by_overlap(truth, found, 0.4)


def test_sizes_have_a_known_distance():
    rng = np.random.default_rng(0)
    areas = rng.uniform(10, 50, 200)
    assert area_distance(areas, areas + 7) == pytest.approx(7)
    assert np.isnan(area_distance(areas, areas[:0]))


def filled():
    """Two slices with two regions, areas in whole pixels of 0.25 um^2."""
    rng = np.random.default_rng(1)
    sums, tables = NucleiSums(0.25), []
    for z in (3, 4):
        truth = Nuclei(*rng.uniform(0, 50, (2, 80)), rng.integers(20, 200, 80) * 0.25, rng.uniform(50, 200, 80))
        found = truth.select(np.arange(60))
        found = Nuclei(found.y, found.x + 1, found.area + 5, 0.5 * found.intensity + 10)
        pairs = np.arange(60)
        regions = (np.arange(80) % 2 + 1, np.arange(60) % 2 + 1)
        sums.update(z, truth, found, Matches(pairs, pairs, 80, 60), regions)
        tables.append((truth, found))
    return sums, tables


def test_sums_of_slices_are_figures_of_the_whole():
    sums, tables = filled()
    truth, found = (Nuclei.joined(part) for part in zip(*tables, strict=True))
    assert (sums.true_count, sums.count) == (160, 120)
    assert sums.f1 == pytest.approx(240 / 280)
    assert (sums.precision, sums.recall) == (1, 0.75)
    assert sums.area_distance == pytest.approx(wasserstein_distance(truth.area, found.area))
    assert sums.median_area(0) == pytest.approx(np.median(truth.area), abs=0.25)
    assert sums.median_area() == pytest.approx(np.median(found.area), abs=0.25)
    assert sums.intensities["correlation"] == pytest.approx(1)
    assert sums.intensities["found"] == pytest.approx(found.intensity.mean())
    edges = np.linspace(0, 60, 13)
    np.testing.assert_allclose(sums.area_shares(1, edges), np.histogram(found.area, edges)[0] / 120)


def test_slices_and_regions_have_their_own_figures():
    sums, tables = filled()
    assert sums.slice_figures()[4] == {"true_nuclei": 80, "nuclei": 60, "f1": pytest.approx(120 / 140)}
    regions = sums.region_figures()
    assert set(regions) == {1, 2}
    assert regions[1]["true_nuclei"] == 80
    assert regions[1]["nuclei"] == 60
    assert regions[1]["f1"] == pytest.approx(120 / 140)
    truth, found = (np.concatenate([pair[which].area[::2] for pair in tables]) for which in (0, 1))
    assert regions[1]["area_distance"] == pytest.approx(wasserstein_distance(truth, found))


def test_a_region_without_found_nuclei_is_one_without_f1_but_zero():
    sums = NucleiSums(1.0)
    none = Matches(*np.zeros((2, 0), int), 2, 0)
    sums.update(0, table([[1, 1], [9, 9]]), table([]), none, (np.array([4, 4]), np.zeros(0, int)))
    assert sums.f1 == 0
    figures = sums.region_figures()[4]
    assert figures["nuclei"] == 0
    assert figures["f1"] == 0
    assert np.isnan(figures["area_distance"])
    assert np.isnan(sums.intensities["correlation"])
