"""Positions: schedule, examples, density, and cells on planes and in holes that no one measured."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom_brain import PhantomBrain
from synthetic_brain import CENTRE, HALF_AXES, Brain, coronal_series

from teramind.errors import ComputationError, InputError
from teramind.impute.cells import join_cells
from teramind.impute.density import TissueDensity
from teramind.impute.diffusion import TIMESTEPS, Schedule, add_noise, alphas_cumprod, betas
from teramind.impute.holes import examine_hole
from teramind.impute.interpolation import BetweenSlices
from teramind.impute.layout import layout_scores
from teramind.impute.location import LocationConfig, LocationModel, PlaneExamples, train_locations
from teramind.impute.placement import PlacementOptions, find_neighbours, place_cells, spaced
from teramind.impute.planes import Plane
from teramind.impute.regions import Disc, Mask, Polygon
from teramind.impute.sections import find_sections
from teramind.impute.training import TrainingOptions

OBLIQUE = Plane((2.0, 2.0, 4.0), (1.0, 0.5, 0.7))


def test_the_reference_s_schedule():
    with np.load(Path(__file__).parents[1] / "data" / "mimyr_metrics.npz") as arrays:
        np.testing.assert_allclose(betas(), arrays["aux_ddpm_beta"], atol=1e-7)
        np.testing.assert_allclose(alphas_cumprod(), arrays["aux_ddpm_abar"], atol=1e-7)


@pytest.mark.parametrize("steps", [1, 13, 70])
def test_an_exact_denoiser_gives_the_distribution_it_knows(steps):
    """For normal data of standard deviation 0.3 the best guess of the clean value is known."""
    schedule, generator = Schedule(steps), torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    for i, abar in enumerate(schedule.abar):
        eps = x * np.sqrt(1 - abar) / (abar * 0.09 + 1 - abar)
        clean = schedule.clean(x, eps, i)
        x = schedule.step(x, clean, i, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    if steps == TIMESTEPS:
        assert x.std().item() == pytest.approx(0.3, rel=0.06)
    assert abs(x.mean().item()) < 0.02


def test_noise_is_added_as_the_schedule_says():
    clean, noise = torch.ones(3, 2), torch.full((3, 2), 2.0)
    abar = alphas_cumprod()[[0, 30, 69]]
    expected = np.sqrt(abar) + 2 * np.sqrt(1 - abar)
    np.testing.assert_allclose(add_noise(clean, torch.tensor([0, 30, 69]), noise)[:, 1], expected, rtol=1e-6)


def test_the_space_between_slices_is_filled_as_densely_as_they_are(slices):
    """Slices at 0, 0.2 and 0.8 mm: 100 cells in each, so 100 in any 0.01 mm wherever the tissue is."""
    flat = np.random.default_rng(0).random((300, 2))
    heights = np.repeat([0.0, 0.2, 0.8], 100)
    names = np.repeat(["a", "b", "c"], 100)
    cells = replace(slices[0][:300], positions=np.c_[flat, heights], sections=names)
    between = BetweenSlices(cells.positions, find_sections(cells))
    rows, moved = between.draw(np.random.default_rng(1).random((120_000, 3)))
    np.testing.assert_array_equal(moved[:, :2], flat[rows])
    counts, _ = np.histogram(moved[:, 2], np.arange(-0.1, 1.11, 0.1))
    assert counts.min() > 0.95 * counts.max()
    near_b = (moved[:, 2] > 0.29) & (moved[:, 2] < 0.31)  # a sixth of the way from b to c
    assert (names[rows[near_b]] == "b").mean() == pytest.approx(5 / 6, abs=0.03)


def test_examples_lie_in_their_planes(measured, middle_of_brain):
    draw = PlaneExamples(BetweenSlices(measured.positions, find_sections(measured)), middle_of_brain, 0.65)
    flat, plane = draw(501, torch.Generator().manual_seed(0))
    for x, condition in zip(flat.double().numpy()[:40], plane.double().numpy()[:40], strict=True):
        through = Plane(tuple(condition[3] * condition[:3]), tuple(condition[:3]))
        np.testing.assert_allclose(through.normal, condition[:3], atol=1e-6)
        position = through.lift(x[None])[0] * 0.65 + middle_of_brain
        assert (np.abs(position - measured.positions).max(axis=1)).min() < 0.3  # near measured cells
    assert 0.4 < (plane[:, 2] == 1).float().mean() < 0.6


@pytest.mark.parametrize("plane", [Plane.coronal(3.71), Plane.sagittal(2.1), OBLIQUE])
def test_the_number_of_cells_is_known_without_the_truth(brain, density, plane):
    """Within what Poisson draws and the brain's ends, where nothing was measured, leave open."""
    assert density.expected_cells(plane, 0.01) == pytest.approx(len(brain.cut(plane, seed=5)), rel=0.15)
    assert density.expected_cells(plane, 0.03) == pytest.approx(3 * density.expected_cells(plane, 0.01))


def with_hole(cells, plane, region):
    return cells[~region.contains(plane.flatten(cells.positions))]


@pytest.mark.parametrize(
    "region",
    [
        Disc((2.0, 2.0), 0.21),
        Polygon([(1.7, 1.8), (2.3, 1.8), (2.3, 2.3), (2.0, 2.0), (1.7, 2.3)]),
        Mask(np.kron([[True, False], [True, True]], np.ones((17, 17))).astype(bool), (1.8, 1.8), 0.01),
    ],
)
def test_a_hole_of_any_shape_is_filled(slices, held_out, location_model, region):
    """The slice with the hole is among the measured ones, and the model has learned that it is empty there."""
    truth, plane = held_out
    broken = join_cells([*slices[:3], with_hole(truth, plane, region), *slices[4:]])
    options = TrainingOptions(steps=150, batch=512, learning_rate=2e-3)
    model = train_locations(broken, options, start=location_model)
    placement = place_cells(model, broken, TissueDensity(broken, 0.01), plane, PlacementOptions(steps=20), region)
    flat = plane.flatten(placement.positions)
    assert region.contains(flat).all()
    assert np.abs(plane.offsets(placement.positions)).max() <= 0.005
    assert len(flat) == pytest.approx(region.contains(plane.flatten(truth.positions)).sum(), rel=0.2)
    assert placement.fallback == 0
    assert len(np.unique(flat, axis=0)) == len(flat)
    middle = (region.bounds[0] + region.bounds[1]) / 2
    assert 0.2 < (flat > middle).mean(axis=0).min() < (flat > middle).mean(axis=0).max() < 0.8  # all over the hole


def broken_series(slices, index, region):
    """All slices, one of them with a hole; the plane; and which of its true cells lie in the hole."""
    plane = Plane.coronal(float(slices[index].positions[:, 2].mean()))
    inside = region.contains(plane.flatten(slices[index].positions))
    parts = [part[~inside] if number == index else part for number, part in enumerate(slices)]
    return join_cells(parts), plane, slices[index][inside]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("centre", [(2.0, 2.0), (1.7, 2.1), (2.3, 1.9)])
def test_a_hole_asks_for_as_many_cells_as_were_there(seed, centre):
    slices = coronal_series(Brain.make(genes=4, types=6, density=2800.0, seed=seed), 7, seed=seed)
    measured, plane, truth = broken_series(slices, 3, Disc(centre, 0.21))
    hole = examine_hole(TissueDensity(measured, 0.01), plane, Disc(centre, 0.21))
    assert 0.01 * hole.cells_per_mm == pytest.approx(len(truth), rel=0.15)
    assert hole.intact.tolist() == [True, True, True, False, True, True, True]
    assert hole.ignored == 0


@pytest.mark.parametrize("seed", [21, 22])
def test_the_neighbours_see_what_the_ring_does_not(seed):
    """Nuclei of dense tissue, of which the ring around the hole has little: 876 cells and 649."""
    slices = PhantomBrain(seed).coronal_series(12)
    centre = np.median(slices[5].positions[:, :2], axis=0)
    region = Disc((float(centre[0]), float(centre[1])), 0.15)
    kept = [part for index, part in enumerate(slices) if index not in (3, 6, 9)]
    measured, plane, truth = broken_series(kept, 4, region)
    hole = examine_hole(TissueDensity(measured, 0.01), plane, region)
    assert 0.01 * hole.cells_per_mm == pytest.approx(len(truth), rel=0.17)


def test_a_slice_caught_half_as_well_as_the_others_is_filled_half_as_densely():
    slices = coronal_series(Brain.make(genes=4, types=6, density=2800.0), 7)
    slices[3] = slices[3][::2]
    measured, plane, truth = broken_series(slices, 3, Disc((2.0, 2.0), 0.21))
    hole = examine_hole(TissueDensity(measured, 0.01), plane, Disc((2.0, 2.0), 0.21))
    assert 0.01 * hole.cells_per_mm == pytest.approx(len(truth), rel=0.2)


@pytest.mark.parametrize("centre", [(2.75, 2.0), (1.4, 1.6), (2.0, 2.6)])
def test_a_hole_over_the_edge_is_filled_within_the_tissue(location_model, centre):
    """A third to two thirds of the disc lie outside of the brain, of which the model knows little."""
    brain, region = Brain.make(genes=4, types=6, density=2800.0), Disc(centre, 0.2)
    measured, plane, truth = broken_series(coronal_series(brain, 7), 3, region)
    density = TissueDensity(measured, 0.01)
    placement = place_cells(location_model, measured, density, plane, PlacementOptions(steps=15), region)
    assert len(placement.positions) == pytest.approx(len(truth), rel=0.2)
    beyond = np.linalg.norm((placement.positions - CENTRE) / (HALF_AXES + 0.01), axis=1) > 1
    assert beyond.sum() <= 0.02 * len(truth)
    assert examine_hole(density, plane, region).target.area < 0.8 * region.area


def test_a_hole_in_the_only_slice_is_as_dense_as_around_it():
    brain = Brain.make(genes=4, types=6, density=2800.0)
    slices = coronal_series(brain, 7)
    for centre, error in (((2.0, 2.0), 0.15), ((2.75, 2.0), 0.35)):
        measured, plane, truth = broken_series([slices[3]], 0, Disc(centre, 0.2))
        hole = examine_hole(TissueDensity(measured, 0.01), plane, Disc(centre, 0.2))
        assert not hole.intact.any()
        assert 0.01 * hole.cells_per_mm == pytest.approx(len(truth), rel=error)


def test_cells_that_lie_in_the_hole_are_not_looked_at(slices, held_out, location_model, caplog):
    """Ten times too many in a slice whose hole is to be filled: they guide nothing, and do not add to the number."""
    truth, plane = held_out
    region = Disc((2.0, 2.0), 0.21)
    inside = region.contains(plane.flatten(truth.positions))
    planted = truth[np.concatenate([np.flatnonzero(~inside), np.repeat(np.flatnonzero(inside), 10)])]
    placed = []
    for own in (truth[~inside], planted):
        caplog.clear()
        measured = join_cells([*slices[:3], own, *slices[4:]])
        density = TissueDensity(measured, 0.01)
        placed.append(place_cells(location_model, measured, density, plane, PlacementOptions(steps=10), region))
        neighbours = find_neighbours(measured, density, plane, examine_hole(density, plane, region).intact)
        assert min(abs(neighbour.offset) for neighbour in neighbours) > 0.1
        assert ("measured cells lie in the hole" in caplog.text) == (own is planted)
    assert len(placed[1].positions) == pytest.approx(len(placed[0].positions), rel=0.03)


def test_a_whole_slice_looks_like_the_truth(brain, measured, density, held_out, location_model):
    truth, plane = held_out
    placement = place_cells(location_model, measured, density, plane, PlacementOptions())
    given = np.concatenate([neighbour.points for neighbour in find_neighbours(measured, density, plane)])
    flat, true = plane.flatten(placement.positions), plane.flatten(truth.positions)
    scores = layout_scores(true, flat, given)
    twin = layout_scores(true, plane.flatten(brain.cut(plane, seed=9).positions), given)
    assert scores.count_ratio == pytest.approx(1, abs=0.08)
    assert scores.density_error < twin.density_error + 0.05
    assert scores.copies < twin.copies + 0.02
    assert scores.log_likelihood > twin.log_likelihood - 0.1
    assert scores.spacing == pytest.approx(scores.true_spacing, rel=0.12)


def test_guidance_moves_cells_towards_the_neighbours_and_copies_none(measured, density, held_out):
    """A model that has learned nothing but a cloud."""
    _, plane = held_out
    options = TrainingOptions(steps=60, batch=256, learning_rate=4e-3)
    model = train_locations(measured, options, config=LocationConfig(width=24, depth=1, octaves=1))
    neighbours = find_neighbours(measured, density, plane)
    assert len(neighbours) == 2
    assert sum(neighbour.weight for neighbour in neighbours) == pytest.approx(1)
    given = np.concatenate([neighbour.points for neighbour in neighbours])
    scores = []
    for guidance in (0.0, 1.0):
        placement = place_cells(model, measured, density, plane, PlacementOptions(guidance=guidance))
        scores.append(layout_scores(given, plane.flatten(placement.positions), given))
    assert scores[1].density_error < 0.8 * scores[0].density_error
    assert scores[1].log_likelihood > scores[0].log_likelihood + 0.02
    assert scores[1].copies < 0.05


def test_thick_slabs_spacing_and_seeds(measured, density, held_out, location_model):
    _, plane = held_out
    options = PlacementOptions(steps=5, guidance=0, thickness=0.04, spacing=0.006, seed=3)
    first, again = (place_cells(location_model, measured, density, plane, options).positions for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = place_cells(location_model, measured, density, plane, replace(options, seed=4)).positions
    assert (other[:50] != first[:50]).all()
    away = plane.offsets(first)
    assert away.std() == pytest.approx(0.04 / np.sqrt(12), rel=0.1)
    assert len(spaced(first, 0.006)) == len(first)


def test_spacing_keeps_the_earlier_of_two():
    line = np.array([[0.0, 0, 0], [0.5, 0, 0], [0.9, 0, 0], [5, 0, 0]])
    np.testing.assert_array_equal(spaced(line, 0.6), line[[0, 2, 3]])


def test_where_the_model_gives_nothing_cells_come_from_the_neighbours(
    measured, density, held_out, location_model, caplog
):
    """A model whose samples all lie far away."""
    _, plane = held_out
    lost = LocationModel(location_model.net, location_model.config, location_model.centre + 50, location_model.scale)
    region = Disc((2.0, 2.0), 0.2)
    placement = place_cells(lost, measured, density, plane, PlacementOptions(steps=2, guidance=0), region)
    assert placement.fallback == len(placement.positions) > 20
    assert region.contains(plane.flatten(placement.positions)).all()
    assert "drawn around measured ones" in caplog.text


@pytest.mark.parametrize(("spacing", "most"), [(0.012, 1.0), (0.05, 0.6)])
def test_cells_drawn_around_measured_ones_keep_their_distance(
    measured, density, held_out, location_model, caplog, spacing, most
):
    _, plane = held_out
    lost = LocationModel(location_model.net, location_model.config, location_model.centre + 50, location_model.scale)
    options = PlacementOptions(steps=2, guidance=0, spacing=spacing)
    region = Disc((2.0, 2.0), 0.2)
    placement = place_cells(lost, measured, density, plane, options, region)
    wanted = round(0.01 * examine_hole(density, plane, region).cells_per_mm)
    assert 20 < len(placement.positions) <= most * wanted
    assert len(spaced(placement.positions, spacing)) == placement.fallback == len(placement.positions)
    assert ("leaves room for" in caplog.text) == (len(placement.positions) < wanted)
    if most == 1:
        assert len(placement.positions) == wanted


def test_tissue_that_is_not_there(measured, density, location_model):
    def place(plane, region=None, **options):
        place_cells(location_model, measured, density, plane, PlacementOptions(**options), region)

    with pytest.raises(InputError, match="plane lies outside the tissue"):
        place(Plane.coronal(9.0))
    with pytest.raises(InputError, match="no tissue around the hole"):
        place(Plane.coronal(4.0), Disc((7.0, 7.0), 0.1))
    with pytest.raises(InputError, match="holds no cell"):
        place(Plane.coronal(4.0), Disc((2.0, 2.0), 0.003))
    for name in ("thickness", "bandwidth", "guidance", "spacing"):
        with pytest.raises(InputError, match=name):
            PlacementOptions(**{name: -1.0})


def test_a_network_of_nan_is_said_to_be_one(measured, density, held_out, location_model):
    broken = copy.deepcopy(location_model)
    torch.nn.init.constant_(broken.net.layers[0].weight, float("nan"))
    with pytest.raises(ComputationError, match="not numbers"):
        place_cells(broken, measured, density, held_out[1], PlacementOptions(steps=2))


def test_a_saved_model_places_the_same_cells(tmp_path, measured, density, held_out, location_model):
    path = tmp_path / "locations.safetensors"
    location_model.save(path)
    again = LocationModel.load(path)
    options = PlacementOptions(steps=4, guidance=0)
    positions = [
        place_cells(model, measured, density, held_out[1], options).positions for model in (location_model, again)
    ]
    np.testing.assert_array_equal(*positions)
    assert again.training["steps"] == 300
