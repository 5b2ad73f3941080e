import numpy as np
import pytest
import torch

from teramind import DDIMSchedule, InputError


def test_fifteen_steps():
    schedule = DDIMSchedule(15)
    assert schedule.timesteps[:2].tolist() == [938, 871]
    assert schedule.timesteps[-1] == 0
    assert schedule.alphas_cumprod.dtype == np.float64
    assert (np.diff(schedule.alphas_cumprod) > 0).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 15, 20, 30, 50, 1000])
def test_exactly_the_steps_asked_for(steps):
    assert len(DDIMSchedule(steps).timesteps) == steps


@pytest.mark.parametrize(("steps", "near"), [(999, "1000"), (45, "44 and 46"), (0, "1 and 2"), (-3, "1 and 2")])
def test_impossible_counts_name_the_nearest(steps, near):
    with pytest.raises(InputError, match=near):
        DDIMSchedule(steps)


def test_a_perfect_prediction_gives_the_image():
    schedule = DDIMSchedule(15)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    for i, abar in enumerate(schedule.alphas_cumprod):
        noisy = image * abar**0.5 + noise * (1 - abar) ** 0.5
        after = schedule.step(noisy, noise, i)
        following = schedule.alphas_cumprod[i + 1] if i < 14 else 1.0
        torch.testing.assert_close(after, image * following**0.5 + noise * (1 - following) ** 0.5)


def test_the_predicted_image_is_clipped():
    schedule = DDIMSchedule(15)
    last = schedule.step(torch.tensor([50.0, -50.0]), torch.zeros(2), 14)
    assert last.tolist() == [1, -1]
