"""What a device computes in."""

import logging

import pytest
import torch

from teramind.model import policy
from teramind.model.policy import computes_in, warn_if_slow

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("supported", [True, False])
def test_half_precision_without_instructions_is_said(monkeypatch, caplog, supported):
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported)
    for dtype in (torch.bfloat16, torch.float16):
        assert computes_in(dtype, CPU) == supported
        with caplog.at_level(logging.WARNING, policy.__name__):
            caplog.clear()
            warn_if_slow(dtype, CPU)
        assert ("float32 is several times as fast" in caplog.text) != supported


def test_float32_and_gpus_are_never_warned_of(caplog):
    for dtype, device in ((torch.float32, CPU), (torch.float32, GPU), (torch.bfloat16, GPU), (torch.float16, GPU)):
        assert computes_in(dtype, device)
        warn_if_slow(dtype, device)
    assert not caplog.text
