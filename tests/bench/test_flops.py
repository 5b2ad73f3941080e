"""The work of one step, counted at the published size without computing anything."""

import flops
import pytest
import torch

from teramind import ModelConfig, TeraMind


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return TeraMind(ModelConfig()).eval()


def test_work_at_1024_px(published):
    assert flops.count(published, 1024) <= 1850  # the published code: 6,424
    assert flops.count(published, 256, paired=True) <= 1600  # 1,414 at 1024 px


def test_the_baseline_does_the_published_code_s_work(published):
    assert flops.count_baseline(published) == pytest.approx(6424, rel=0.005)
