"""Scores against a truth that is made up."""

import math

import numpy as np
import pytest

from teramind import InputError
from teramind.interaction.truth import auroc, score_map, score_removal


def test_auroc_counts_pairs():
    score = np.array([[0.1, 0.4], [0.35, 0.8], [0.4, 0.4]])
    truth = np.array([[0, 1], [1, 1], [0, 0]])
    pairs = [(a, b) for a in score[truth == 1] for b in score[truth == 0]]
    assert auroc(score, truth) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert auroc(-score, truth) == pytest.approx(1 - auroc(score, truth))
    assert math.isnan(auroc(score, np.zeros_like(truth)))
    with pytest.raises(InputError, match="cannot be judged"):
        auroc(score, truth[:2])


def test_a_map_that_knows_more_than_expression():
    """The genes are read together everywhere, and interact in the upper half alone."""
    generator = np.random.default_rng(0)
    truth = np.zeros((60, 50), bool)
    truth[:30] = True
    expression = generator.poisson(2.0, (2, 60, 50))
    attention = expression.sum(axis=0) * np.where(truth, 3, 1)
    score = score_map(attention, expression, truth)
    assert score.attention > 0.85
    assert abs(score.coexpression - 0.5) < 0.05
    assert abs(score.expression - 0.5) < 0.05
    assert score.gain == score.attention - max(score.coexpression, score.expression)
    assert (score.places, score.positives) == (3000, 1500)


def test_uniform_attention_gains_nothing_over_expression():
    generator = np.random.default_rng(1)
    expression = generator.poisson(0.5, (2, 60, 50))
    truth = (expression > 0).all(axis=0)
    score = score_map(2 * expression.sum(axis=0) / 229, expression, truth)
    assert score.coexpression == 1
    assert score.attention == score.expression < 1
    assert score.gain < 0


def test_removed_cells_are_judged_by_their_type():
    cells = np.array([[10, 10], [10, 30], [10, 50], [40, 10], [40, 30], [40, 50.0]])
    is_type = np.array([True, True, True, False, False, False])
    nuclei = np.concatenate(
        [cells[[0, 1, 3, 4, 5]] + 0.5, [[90, 90]]]
    )  # one of the type was never seen; one is no cell
    lost = np.array([True, False, True, False, False, True])
    score = score_removal(nuclei, lost, cells, is_type, radius=2.0)
    assert score.precision == pytest.approx(1 / 3)
    assert score.recall == pytest.approx(1 / 2)
    assert (score.nuclei, score.lost, score.of_type, score.other, score.other_lost) == (6, 3, 2, 3, 1)
    assert score.known_precision == pytest.approx(1 / 2)
    assert score.chance_known_precision == pytest.approx(2 / 5)
    assert score.chance_precision == pytest.approx(2 / 6)
    assert score.chance_recall == pytest.approx(3 / 6)
    none = score_removal(nuclei, np.zeros(6, bool), cells, is_type, radius=2.0)
    assert math.isnan(none.precision)
    assert none.recall == 0
