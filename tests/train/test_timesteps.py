"""Which timesteps a training sees how often."""

import numpy as np
import pytest
from scipy.stats import norm

from teramind.diffusion.schedule import alphas_cumprod
from teramind.errors import InputError
from teramind.train.options import Options
from teramind.train.timesteps import timestep_quantile

QUANTILES = (np.arange(40_000) + 0.5) / 40_000


def test_uniform_is_every_timestep_equally_often():
    drawn = [timestep_quantile("uniform")(quantile) for quantile in QUANTILES]
    assert np.array_equal(np.bincount(drawn), np.full(1000, 40))
    assert timestep_quantile("uniform")(np.nextafter(1.0, 0.0)) == 999


@pytest.mark.parametrize(("mean", "spread"), [(-1.2, 1.2), (0.5, 0.3)])
def test_log_normal_is_normal_in_the_logarithm_of_the_noise_level(mean, spread):
    draw = timestep_quantile("log-normal", mean, spread)
    drawn = np.array([draw(quantile) for quantile in QUANTILES])
    assert (np.diff(drawn) >= 0).all()
    abar = alphas_cumprod()
    levels = np.log((1 - abar) / abar) / 2
    # A timestep stands for all noise levels nearer to it than to its neighbours, which lie furthest apart at low noise.
    assert levels[drawn].mean() == pytest.approx(mean, abs=0.01)
    assert levels[drawn].std() == pytest.approx(spread, rel=0.02)
    for t in (20, 100, 400):
        border = (levels[t] + levels[t + 1]) / 2
        assert (drawn <= t).mean() == pytest.approx(norm.cdf(border, mean, spread), abs=1e-3)


def test_the_ends_are_timesteps_too():
    draw = timestep_quantile("log-normal", 0.0, 50.0)
    assert (draw(0.0), draw(1.0)) == (0, 999)


def test_another_name_is_refused():
    with pytest.raises(InputError, match="log-normal"):
        timestep_quantile("cosine")
    with pytest.raises(InputError, match="timesteps is 'cosine'"):
        Options(steps=1, timesteps="cosine")
    with pytest.raises(InputError, match="noise_spread is 0"):
        Options(steps=1, noise_spread=0.0)
