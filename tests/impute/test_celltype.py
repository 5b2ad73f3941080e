"""Types: probabilities that are honest about cells never seen, drawn cell by cell."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from teramind.errors import InputError
from teramind.impute.cells import Cells, join_cells
from teramind.impute.celltype import TypeConfig, TypeModel, train_types
from teramind.impute.metrics import soft_scores
from teramind.impute.training import TrainingOptions

OPTIONS = TrainingOptions(steps=250, batch=512, learning_rate=5e-3)
SMALL = TypeConfig(width=48, depth=1, octaves=4)


@pytest.fixture(scope="module")
def model(measured):
    return train_types(measured, OPTIONS, config=SMALL)


def truth_nll(brain, cells):
    """What the brain's own mixture says of the types: the best there is."""
    mixture = brain.region_weights(cells.positions) @ brain.mixture
    mixture /= mixture.sum(axis=1, keepdims=True)
    return -np.log(mixture[np.arange(len(cells)), np.searchsorted(brain.types, cells.types)]).mean()


def test_likely_on_a_slice_never_shown(brain, model, held_out):
    truth, _ = held_out
    best, ours = truth_nll(brain, truth), model.nll(truth)
    frequency = model.training["frequency_nll"]
    assert best < ours < best + 0.4 * (frequency - best)
    assert model.training["held_out_nll"] < frequency


def test_probabilities_are_what_they_say(model, held_out):
    """Of the types given a probability of p, a fraction of p is true; 300 cells of the last bin err by 0.03 alone."""
    truth, _ = held_out
    probability = model.log_probabilities(truth.positions).exp().numpy()
    right = model.encode(truth.types)[:, None] == np.arange(len(model.names))
    for low, high in ((0.02, 0.2), (0.2, 0.5), (0.5, 1.0)):
        chosen = (probability > low) & (probability <= high)
        assert right[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.1)


def test_a_model_that_is_too_sure_is_cooled(measured):
    """Trained on few cells for long."""
    few = measured[::9]
    sure = train_types(few, replace(OPTIONS, steps=300, learning_rate=1e-2), config=replace(SMALL, octaves=6))
    assert sure.temperature > 1.15


def test_draws_follow_the_probabilities(model, middle_of_brain):
    place = np.repeat(middle_of_brain[None] + [0.1, 0.2, 0.3], 20_001, axis=0)
    drawn = model.sample(place, torch.Generator().manual_seed(0))
    expected = model.log_probabilities(place[:1]).exp()[0].numpy()
    np.testing.assert_allclose([(drawn == name).mean() for name in model.names], expected, atol=0.012)
    again = model.sample(place, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn, again)


def test_neighbours_share_a_type_as_often_as_chance_has_it(model, held_out):
    """And with even draws less often."""
    truth, plane = held_out
    pairs = cKDTree(plane.flatten(truth.positions)).query(plane.flatten(truth.positions), [2])[1][:, 0]
    probability = model.log_probabilities(truth.positions).exp().double().numpy()
    expected = (probability * probability[pairs]).sum(1).mean()
    shared = {}
    for draws in ("independent", "even"):
        drawn = [model.sample(truth.positions, torch.Generator().manual_seed(seed), draws=draws) for seed in range(8)]
        shared[draws] = np.mean([types == types[pairs] for types in drawn])
    assert shared["independent"] == pytest.approx(expected, abs=0.015)
    assert shared["even"] < expected - 0.03
    by_default = model.sample(truth.positions, torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(
        by_default, model.sample(truth.positions, torch.Generator().manual_seed(7), draws="independent")
    )
    with pytest.raises(InputError, match="'odd'"):
        model.sample(truth.positions, torch.Generator(), draws="odd")


def test_even_draws_are_even_among_neighbours(model, held_out):
    """The types around a place are mixed as the probabilities say: closer than independent draws would be."""
    truth, plane = held_out
    flat, expected = plane.flatten(truth.positions), model.log_probabilities(truth.positions).exp().double().numpy()
    squares = np.unique(np.floor(flat / 0.2), axis=0, return_inverse=True)[1].ravel()
    member = squares == np.arange(squares.max() + 1)[:, None]
    errors = []
    for seed in range(5):
        codes = model.encode(model.sample(truth.positions, torch.Generator().manual_seed(seed), draws="even"))
        errors.append(np.square(member @ (np.eye(len(model.names))[codes] - expected)).sum())
    independent = (expected * (1 - expected)).sum()  # what the errors of independent draws add up to
    assert np.mean(errors) < 0.6 * independent


def test_a_low_temperature_favours_likely_types(model, held_out):
    truth, _ = held_out
    likeliest = model.log_probabilities(truth.positions).argmax(1).numpy()
    shares = []
    for temperature in (1.0, 0.5, 0.01):
        drawn = model.sample(truth.positions, torch.Generator().manual_seed(0), temperature=temperature)
        shares.append((model.encode(drawn) == likeliest).mean())
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.98


def test_between_slices_only_slow_waves_are_seen(model, measured, slices):
    """Seven slices, one left out; together with a sagittal one each direction is seen in full."""
    assert model.octaves == (4, 4, 2)
    turned = replace(slices[0], positions=slices[0].positions[:, [2, 1, 0]], sections=np.full(len(slices[0]), "turned"))
    few = replace(OPTIONS, steps=1)
    assert train_types(join_cells([measured, turned]), few, config=SMALL).octaves == (4, 4, 4)
    assert train_types(slices[2], few, config=SMALL).octaves == (4, 4, 1)


def test_composition_beats_the_majority_vote(model, measured, held_out):
    from teramind.impute.baseline import vote_types

    truth, plane = held_out
    flat = plane.flatten(truth.positions)
    drawn = model.sample(truth.positions, torch.Generator().manual_seed(1))
    voted = vote_types(measured, truth.positions)
    scores = [
        soft_scores(Cells(flat, truth.types), Cells(flat, types), radii=[0.12], metrics=["composition"])[0].value
        for types in (drawn, voted)
    ]
    assert scores[0] > scores[1]


def test_only_allowed_types_are_drawn(model, held_out):
    truth, _ = held_out
    drawn = model.sample(truth.positions[:101], torch.Generator().manual_seed(2), allowed={"type01", "type04"})
    assert set(drawn) == {"type01", "type04"}
    with pytest.raises(InputError, match="'glia'"):
        model.sample(truth.positions, torch.Generator(), allowed={"glia"})
    assert len(model.sample(truth.positions[:0], torch.Generator())) == 0


def test_fine_tuning_starts_where_it_was(model, measured):
    """Half of the brain changes its types; the model learns that, and the one it started from stays as it was."""
    changed = np.where(measured.positions[:, 0] > 2, "type05", measured.types)
    target = replace(measured, types=changed)
    before = model.nll(target)
    tuned = train_types(target, replace(OPTIONS, steps=80), start=model)
    assert tuned.nll(target) < before - 0.3
    assert model.nll(target) == before
    with pytest.raises(InputError, match=r"'glia' \(1 such types, 6 known"):
        train_types(replace(measured, types=np.where(changed == "type05", "glia", changed)), OPTIONS, start=model)


def test_cells_without_a_type_teach_nothing(measured):
    hidden = replace(measured, types=np.where(measured.types == "type02", "", measured.types))
    assert train_types(hidden, replace(OPTIONS, steps=2), config=SMALL).names == tuple(
        np.unique(measured.types)[[0, 1, 3, 4, 5]]
    )
    with pytest.raises(InputError, match="two kinds"):
        train_types(replace(measured, types=np.full(len(measured), "")), OPTIONS)


def test_a_saved_model_is_the_same(tmp_path, model, held_out):
    path = tmp_path / "types.safetensors"
    model.save(path)
    again = TypeModel.load(path)
    torch.testing.assert_close(
        again.log_probabilities(held_out[0].positions), model.log_probabilities(held_out[0].positions), rtol=0, atol=0
    )
    assert again.training == model.training
