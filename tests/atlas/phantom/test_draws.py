"""Random numbers that belong to things."""

import numpy as np
import pytest

from teramind.atlas.phantom.draws import LARGEST_NORMAL, LARGEST_SEED, Draws, Purpose
from teramind.errors import InputError

IDS = np.arange(100_003) * 977 - 50_000


def test_numbers_belong_to_the_id_alone():
    draws = Draws(3, Purpose.CELLS, IDS)
    chosen = np.array([5, 99_999, 17])
    for part in (draws.take(chosen), Draws(3, Purpose.CELLS, IDS[chosen])):
        for k in (0, 1, 7):
            np.testing.assert_array_equal(part.uniform(k), draws.uniform(k)[chosen])
            np.testing.assert_array_equal(part.normal(k), draws.normal(k)[chosen])
    each = np.arange(len(chosen))
    assert [draws.take(chosen).uniform(each)[i] for i in range(3)] == [draws.uniform(i)[chosen[i]] for i in range(3)]


def test_seed_purpose_and_number_all_change_them():
    values = [
        Draws(seed, purpose, IDS[:1000]).uniform(k)
        for seed in (0, 1, LARGEST_SEED)
        for purpose in (Purpose.CELLS, Purpose.MORPHOLOGY)
        for k in (0, 1)
    ]
    correlations = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(correlations).max() < 0.15  # 4.7 standard errors


def test_moments():
    draws = Draws(11, Purpose.TRANSCRIPTS, IDS)
    uniform, normal = draws.uniform(2), draws.normal(3)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(np.histogram(uniform, 10, (0, 1))[0] / len(IDS) - 0.1).max() < 0.005
    assert abs(normal.mean()) < 0.015
    assert normal.std() == pytest.approx(1, abs=0.01)
    assert abs(normal).max() <= LARGEST_NORMAL


def test_a_seed_out_of_range_is_refused():
    for seed in (-1, LARGEST_SEED + 1, 0.5):
        with pytest.raises(InputError, match="seed"):
            Draws(seed, Purpose.CELLS, IDS)
